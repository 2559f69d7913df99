"""Objectives: from per-item results to the numbers that a searcher maximises.

mean       the weighted mean over tasks of a metric
worst      the worst task
normalised either of them on (score - base) / (expert - base), so that a task where experts gain much does not drown
           the others
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.fitness.base import Outcome

AGGREGATES = ("mean", "worst")
LEAST_GAIN = 1e-3
"""The gain of an expert over the base, as a share of the larger of their scores, from which on it can be divided by."""


@dataclass(frozen=True)
class Objective:
    """Outcome -> (values, violations).

    Attributes:
        metric: which metric of the fitness.
        aggregate: `mean` or `worst`.
        weights: the weight of each task in the mean; a missing task counts 1, and the weights are divided by their sum.
        ends: {task: (score of the base, score of its expert)}; None to take scores as they are.

    Raises:
        ConfigError: an unknown aggregate, negative weights, or an expert that is hardly better than the base.
    """

    metric: str
    aggregate: str = "mean"
    weights: Mapping[str, float] | None = None
    ends: Mapping[str, tuple[float, float]] | None = None

    def __post_init__(self) -> None:
        if self.aggregate not in AGGREGATES:
            raise ConfigError(f"objective.aggregate is '{self.aggregate}'; write one of {', '.join(AGGREGATES)}.")
        if not all(0 <= weight < np.inf for weight in (self.weights or {}).values()):
            raise ConfigError(f"objective.weights are {dict(self.weights or {})}; write finite numbers, none negative.")
        for task, (base, expert) in (self.ends or {}).items():
            if not can_normalise(base, expert):
                how = "hardly better" if expert > base else "no better"
                raise ConfigError(
                    f"The score of the task {task} cannot be normalised: its expert scores {expert:.4f}, {how} "
                    f"than the base ({base:.4f}). Use objective.normalised=false, or more items."
                )

    def __call__(self, outcome: Outcome) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Return the values to maximise, (1,), and the violations of constraints, none here."""
        scores = {task: metrics[self.metric] for task, metrics in outcome.scores().items()}
        if self.ends is not None:
            scores = {
                task: (score - self.ends[task][0]) / (self.ends[task][1] - self.ends[task][0])
                for task, score in scores.items()
            }
        if self.aggregate == "worst":
            return (float(np.min(list(scores.values()))),), ()  # NaN if one is, which `min` would pass over
        weights = task_weights(self.weights, scores)
        return (sum(weights[task] * score for task, score in scores.items()),), ()

    def weights_of(self, tasks: Mapping[str, object]) -> dict[str, float] | None:
        """Return how much the mean of each task weighs in the value, beside a constant; None for the worst task."""
        if self.aggregate == "worst":
            return None
        gains = {task: expert - base for task, (base, expert) in (self.ends or {}).items()}
        return {task: weight / gains.get(task, 1.0) for task, weight in task_weights(self.weights, tasks).items()}


def can_normalise(base: float, expert: float) -> bool:
    """Return whether scores can be divided by the gain of an expert over the base: one below the base would turn the
    objective round, and a gain of nearly nothing would let one task drown all others.
    """
    return expert - base > max(LEAST_GAIN * max(abs(base), abs(expert)), 1e-9)


def task_weights(weights: Mapping[str, float] | None, tasks: Mapping[str, object]) -> dict[str, float]:
    """Return the share of each task in the mean: weights over their sum, 1 where none is given.

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
    if not raw.sum() > 0:
        raise ConfigError(f"objective.weights are {dict(weights or {})}; the weight of one task must be positive.")
    return dict(zip(tasks, (raw / raw.sum()).tolist(), strict=True))
