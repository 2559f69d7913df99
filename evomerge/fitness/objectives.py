"""Objectives: from per-item results to the numbers that a searcher maximises.

mean       the weighted mean over tasks of a metric
worst      the worst task
normalised either of them on (score - base) / (expert - base), so that a task where experts gain much does not drown
           the others
chebyshev  min over tasks of w (normalised score - 1), the weighted distance from the experts where it is largest: the
           weighted Chebyshev scalarisation with the experts as ideal point (Bowman 1976; Miettinen 1999, Nonlinear
           Multiobjective Optimization, section 3.4; Zhang and Li 2007, MOEA/D, equation 4). Each optimum of the front
           is the best for some weights, also where the front is not convex, which a weighted mean does not reach
pareto     each value by itself: see `values.py`

A weight below 0 stands for a task that is to be forgotten: the lower its score, the higher the value.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.values import Value, task_weights

if TYPE_CHECKING:
    from evomerge.fitness.conditions import Condition

CHEBYSHEV, PARETO = "chebyshev", "pareto"
AGGREGATES = ("mean", "worst", CHEBYSHEV, PARETO)
KNEE = "knee"
"""How the winner is chosen of a front where the user does not say: the point where more of one value costs most."""
LEAST_GAIN = 1e-3
"""The gain of an expert over the base, as a share of the larger of their scores, from which on it can be divided by."""


@dataclass(frozen=True)
class Objective:
    """Outcome -> (values, violations).

    Where there is one value, a model that violates a condition is worth less than the base, by as much as it lacks: it
    is ranked below all that are better than the base and violate none, and among its like by how near it comes. Of
    several values each stays what it is, and searchers go by the violations as well.

    Attributes:
        metric: which metric of the fitness.
        aggregate: `mean`, `worst` or `chebyshev` (the worst where there are no ends); not looked at where there are
            several values.
        weights: the weight of each task in the mean; a missing task counts 1, and the weights are divided by the sum of
            their sizes.
        ends: {task: (score of the base, score of its expert)}; None to take scores as they are.
        conditions: what a model must keep of the base's scores.
        base: the outcome of the base on the items that are scored, where there are conditions.
        values: of a search that has several; empty where there is one.

    Raises:
        ConfigError: an unknown aggregate, or an expert that is hardly better than the base.
    """

    metric: str
    aggregate: str = "mean"
    weights: Mapping[str, float] | None = None
    ends: Mapping[str, tuple[float, float]] | None = None
    conditions: tuple[Condition, ...] = ()
    base: Outcome | None = None
    values: tuple[Value, ...] = ()

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

    @property
    def names(self) -> tuple[str, ...]:
        """What the values are called."""
        return tuple(value.name for value in self.values) or ("value",)

    def __call__(self, outcome: Outcome) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the values to maximise, (m,), and how far each condition is violated; not positive where it holds."""
        violations = ()
        if self.base is not None:
            violations = tuple(condition.violation(outcome, self.base) for condition in self.conditions)
        if self.values:
            return tuple(value(outcome) for value in self.values), violations
        if self.base is None or not violations:
            return (self._value(outcome),), ()
        worst = float(np.max(violations))  # NaN if one is
        return (self._value(outcome) if worst <= 0 else self._value(self.base) - worst,), violations

    def _value(self, outcome: Outcome) -> float:
        scores = {task: metrics[self.metric] for task, metrics in outcome.scores().items()}
        if self.ends is not None:
            scores = {
                task: (score - self.ends[task][0]) / (self.ends[task][1] - self.ends[task][0])
                for task, score in scores.items()
            }
        if self.aggregate == CHEBYSHEV and self.ends is not None:
            shares = task_weights(self.weights, scores)
            return float(np.min([share * (scores[task] - 1) for task, share in shares.items() if share]))
        if self.aggregate in ("worst", CHEBYSHEV):
            return float(np.min(list(scores.values())))  # NaN if one is, which `min` would pass over
        weights = task_weights(self.weights, scores)
        return sum(weights[task] * score for task, score in scores.items())

    def weights_of(self, tasks: Mapping[str, object]) -> dict[str, float] | None:
        """Return how much the mean of each task weighs in the value, beside a constant; None where it is no such
        sum: for the worst task, where there are conditions, and of several values.
        """
        if self.aggregate != "mean" or self.conditions or self.values:
            return None
        gains = {task: expert - base for task, (base, expert) in (self.ends or {}).items()}
        return {task: weight / gains.get(task, 1.0) for task, weight in task_weights(self.weights, tasks).items()}


def can_normalise(base: float, expert: float) -> bool:
    """Return whether scores can be divided by the gain of an expert over the base: one below the base would turn the
    objective round, and a gain of nearly nothing would let one task drown all others.
    """
    return expert - base > max(LEAST_GAIN * max(abs(base), abs(expert)), 1e-9)


def counted(
    weights: Mapping[str, float] | None, forget: Collection[str], tasks: Iterable[str]
) -> Mapping[str, float] | None:
    """Return the weights with which tasks count in the value: below 0 those that are to be forgotten, 0 the others; the
    given weights where nothing is to be forgotten.
    """
    if not forget:
        return weights
    return {task: -(weights or {}).get(task, 1.0) if task in forget else 0.0 for task in tasks}
