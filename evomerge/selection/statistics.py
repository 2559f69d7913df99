"""Scores and paired differences of models, with standard errors.

In: per-item outcomes. Out: means over tasks and their standard errors: of a task's mean, s/√n over its items; of the
weighted mean over tasks, √Σ w² se²; of a difference, the same on per-item differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import task_weights

Numbers = Mapping[str, float | None]
"""By name; None where there is no finite number, as JSON has none."""


@dataclass(frozen=True)
class Score:
    """What a model is worth on the items of a split.

    Attributes:
        mean: over tasks; None where some of them are missing.
        se: its standard error; NaN or None where it is not known.
        tasks: the mean over the items of each task.
        tasks_se: the standard error of each of these.
    """

    mean: float | None
    se: float | None
    tasks: Numbers = field(default_factory=dict)
    tasks_se: Numbers = field(default_factory=dict)


@dataclass(frozen=True)
class Paired:
    """How much one model is better than another on the same items.

    Attributes:
        diff: the mean over tasks; None where some of them are missing.
        se: its standard error; NaN or None where it is not known.
        tasks: the mean over the items of each task.
        tasks_se: the standard error of each of these.
    """

    diff: float | None
    se: float | None
    tasks: Numbers = field(default_factory=dict)
    tasks_se: Numbers = field(default_factory=dict)


def score_of(outcome: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> Score:
    """Return the score of one model."""
    return Score(*_weighted({task: metrics[metric] for task, metrics in outcome.results.items()}, weights))


def paired(one: Outcome, other: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> Paired:
    """Return one model minus another on the same items.

    Raises:
        ValueError: the outcomes are not of the same items.
    """
    if {task: list(ids) for task, ids in one.items.items()} != {task: list(ids) for task, ids in other.items.items()}:
        raise ValueError("paired statistics need outcomes on the same items in the same order")
    differences = {task: one.results[task][metric] - other.results[task][metric] for task in one.results}
    return Paired(*_weighted(differences, weights))


def _weighted(
    values: Mapping[str, np.ndarray], weights: Mapping[str, float] | None
) -> tuple[float, float, dict[str, float], dict[str, float]]:
    """Return the mean over tasks, its standard error, and both by task."""
    given = {task: weight for task, weight in (weights or {}).items() if task in values}
    share = task_weights(given if any(given.values()) or len(given) < len(values) else None, values)
    means = {task: float(np.mean(v)) for task, v in values.items()}
    with np.errstate(invalid="ignore", over="ignore"):  # infinite results have no variance, huge ones an infinite one
        variances = {task: float(np.var(v, ddof=1)) / len(v) if len(v) > 1 else math.nan for task, v in values.items()}
    mean = sum(share[task] * means[task] for task in values)
    se = math.sqrt(sum(share[task] ** 2 * variances[task] for task in values))
    return mean, se, means, {task: math.sqrt(variance) for task, variance in variances.items()}


def two_sided(difference: Paired) -> float | None:
    """Return the chance of a difference at least as large, of either sign, where there is none in truth; None where its
    standard error is not known.

    The mean over items is taken to be normal. Without any error a difference of zero has the chance 1.
    """
    diff, se = difference.diff, difference.se
    if diff is None or se is None or not math.isfinite(diff) or not math.isfinite(se):
        return None
    return math.erfc(abs(diff) / se / math.sqrt(2)) if se > 0 else float(diff == 0)


def holm(chances: Mapping[str, float | None]) -> dict[str, float | None]:
    """Return chances corrected for how many there are: the chance that even one of them is called a difference where
    there is none stays below what each is held against (Holm 1979, A simple sequentially rejective test).

    Args:
        chances: by name; one that is not known counts as the largest.
    """
    known = {name: 1.0 if chance is None else chance for name, chance in chances.items()}
    corrected, largest = dict[str, float | None](), 0.0
    for rank, name in enumerate(sorted(known, key=lambda name: known[name])):
        largest = max(largest, min(1.0, (len(known) - rank) * known[name]))
        corrected[name] = None if chances[name] is None else largest
    return {name: corrected[name] for name in chances}


def plus_minus(value: float | None, se: float | None, sign: str = "") -> str:
    """Return `0.7227 ± 0.0074` for a table; nothing for a value that is not there.

    Args:
        value: a mean or a difference.
        se: its standard error; None or NaN where it is not known.
        sign: `+` for a difference, which is written with its sign.
    """
    if value is None:
        return ""
    return f"{value:{sign}z.4f} ± {'unknown' if se is None or math.isnan(se) else f'{se:.4f}'}"


def chance_text(value: float | None) -> str:
    """Return a chance for a table; nothing for one that is not there."""
    return "" if value is None else "<0.001" if value < 0.001 else f"{value:.3f}"
