"""Scores and paired differences of models in each of several values.

In: outcomes, and the values of a search. Out: a score for each value, and the difference of two models on the same
items. Where a value is the worst of its tasks, the standard error is that of the task which is the worst; if that is
another task for each of two models, their items are other ones, and the variances add up.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from evomerge.fitness.base import Outcome
from evomerge.fitness.values import Value
from evomerge.selection.forgetting import part_of
from evomerge.selection.statistics import Paired, Score, paired, score_of

WORST = "worst"


def scores_on(values: Sequence[Value], outcome: Outcome) -> dict[str, Score]:
    """Return the score of a model in each value, as the metric has it; none in a value that lacks a task."""
    return {value.name: _score(value, outcome) for value in values if _has(value, outcome)}


def paired_on(values: Sequence[Value], one: Outcome, other: Outcome) -> dict[str, Paired]:
    """Return one model minus another in each value, on the same items; none in a value where one lacks a task."""
    return {value.name: _paired(value, one, other) for value in values if _has(value, one) and _has(value, other)}


def _has(value: Value, outcome: Outcome) -> bool:
    return all(task in outcome.results for task in value.weights)


def _score(value: Value, outcome: Outcome) -> Score:
    found = score_of(part_of(outcome, list(value.weights)), value.metric, value.weights)
    if value.aggregate != WORST:
        return found
    task = _worst(value, found)
    return Score(found.tasks[task], found.tasks_se[task], found.tasks, found.tasks_se)


def _paired(value: Value, one: Outcome, other: Outcome) -> Paired:
    tasks = list(value.weights)
    parts = part_of(one, tasks), part_of(other, tasks)
    found = paired(*parts, value.metric, value.weights)
    if value.aggregate != WORST:
        return found
    scores = [score_of(part, value.metric, value.weights) for part in parts]
    (first, second), (a, b) = scores, [_worst(value, score) for score in scores]
    if a == b:
        return Paired(found.tasks[a], found.tasks_se[a], found.tasks, found.tasks_se)
    difference = (first.tasks[a] or 0.0) - (second.tasks[b] or 0.0)
    se = math.hypot(first.tasks_se[a] or 0.0, second.tasks_se[b] or 0.0)
    return Paired(difference, se, found.tasks, found.tasks_se)


def _worst(value: Value, score: Score) -> str:
    pick = max if value.minimise else min
    return pick(score.tasks, key=lambda task: score.tasks[task] or 0.0)
