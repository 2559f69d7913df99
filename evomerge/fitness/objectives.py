"""Objectives: from per-item results to the numbers that a searcher maximises.

mean       the weighted mean over tasks of a metric
worst      the worst task
normalised either of them on (score - base) / (expert - base), so that a task where experts gain much does not drown
           the others

A weight below 0 stands for a task that is to be forgotten: the lower its score, the higher the value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.fitness.base import Outcome

if TYPE_CHECKING:
    from evomerge.fitness.conditions import Condition

AGGREGATES = ("mean", "worst")
LEAST_GAIN = 1e-3
"""The gain of an expert over the base, as a share of the larger of their scores, from which on it can be divided by."""


@dataclass(frozen=True)
class Objective:
    """Outcome -> (values, violations).

    A model that violates a condition is worth less than the base, by as much as it lacks: it is ranked below all that
    are better than the base and violate none, and among its like by how near it comes.

    Attributes:
        metric: which metric of the fitness.
        aggregate: `mean` or `worst`.
        weights: the weight of each task in the mean; a missing task counts 1, and the weights are divided by the sum of
            their sizes.
        ends: {task: (score of the base, score of its expert)}; None to take scores as they are.
        conditions: what a model must keep of the base's scores.
        base: the outcome of the base on the items that are scored, where there are conditions.

    Raises:
        ConfigError: an unknown aggregate, or an expert that is hardly better than the base.
    """

    metric: str
    aggregate: str = "mean"
    weights: Mapping[str, float] | None = None
    ends: Mapping[str, tuple[float, float]] | None = None
    conditions: tuple[Condition, ...] = ()
    base: Outcome | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ConfigError(f"objective.aggregate is '{self.aggregate}'; write one of {', '.join(AGGREGATES)}.")
        for task, (base, expert) in (self.ends or {}).items():
            if not can_normalise(base, expert):
                how = "hardly better" if expert > base else "no better"
                raise ConfigError(
                    f"The score of the task {task} cannot be normalised: its expert scores {expert:.4f}, {how} "
                    f"than the base ({base:.4f}). Use objective.normalised=false, or more items."
                )

    def __call__(self, outcome: Outcome) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the values to maximise, (1,), and how far each condition is violated; not positive where it holds."""
        if self.base is None or not self.conditions:
            return (self._value(outcome),), ()
        violations = tuple(condition.violation(outcome, self.base) for condition in self.conditions)
        worst = float(np.max(violations))  # NaN if one is
        return (self._value(outcome) if worst <= 0 else self._value(self.base) - worst,), violations

    def _value(self, outcome: Outcome) -> float:
        scores = {task: metrics[self.metric] for task, metrics in outcome.scores().items()}
        if self.ends is not None:
            scores = {
                task: (score - self.ends[task][0]) / (self.ends[task][1] - self.ends[task][0])
                for task, score in scores.items()
            }
        if self.aggregate == "worst":
            return float(np.min(list(scores.values())))  # NaN if one is, which `min` would pass over
        weights = task_weights(self.weights, scores)
        return sum(weights[task] * score for task, score in scores.items())

    def weights_of(self, tasks: Mapping[str, object]) -> dict[str, float] | None:
        """Return how much the mean of each task weighs in the value, beside a constant; None where it is no such
        sum: for the worst task, and where there are conditions.
        """
        if self.aggregate == "worst" or self.conditions:
            return None
        gains = {task: expert - base for task, (base, expert) in (self.ends or {}).items()}
        return {task: weight / gains.get(task, 1.0) for task, weight in task_weights(self.weights, tasks).items()}


def can_normalise(base: float, expert: float) -> bool:
    """Return whether scores can be divided by the gain of an expert over the base: one below the base would turn the
    objective round, and a gain of nearly nothing would let one task drown all others.
    """
    return expert - base > max(LEAST_GAIN * max(abs(base), abs(expert)), 1e-9)


def task_weights(weights: Mapping[str, float] | None, tasks: Mapping[str, object]) -> dict[str, float]:
    """Return the share of each task in the mean: weights over the sum of their sizes, 1 where none is given.

    Raises:
        ConfigError: a weight names a task that does not exist, or all tasks weigh nothing.
    """
    for name in weights or {}:
        if name not in tasks:
            near = nearest(name, tasks, cutoff=0.0)
            raise ConfigError(
                f"objective.weights names the task '{name}', which is not there. Did you mean '{near[0]}'?"
            )
    raw = np.array([(weights or {}).get(task, 1.0) for task in tasks], dtype=np.float64)
    total = np.abs(raw).sum()
    if not total > 0:
        raise ConfigError(f"objective.weights are {dict(weights or {})}; the weight of one task must be positive.")
    return dict(zip(tasks, (raw / total).tolist(), strict=True))


def counted(
    weights: Mapping[str, float] | None, forget: Collection[str], tasks: Iterable[str]
) -> Mapping[str, float] | None:
    """Return the weights with which tasks count in the value: below 0 those that are to be forgotten, 0 the others; the
    given weights where nothing is to be forgotten.
    """
    if not forget:
        return weights
    return {task: -(weights or {}).get(task, 1.0) if task in forget else 0.0 for task in tasks}
