"""The values of a search that has several: each is a number of its own, made of some tasks, and none is added up.

In: an outcome, the tasks of a value and its metric. Out: one number of each value. A value that is to be small, such as
the length of answers, counts negated.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.fitness.base import Outcome

DISTANCE = "distance"
"""The metric that is no fitness's: how far the weights lie from the base (`merging/distance.py`), for every item the
same. A fitness that has a metric of this name gives its own."""
AGGREGATES = ("mean", "worst")
"""How the scores of some tasks become one."""


@dataclass(frozen=True)
class Value:
    """One of the values of a search.

    Attributes:
        name: what it is called.
        metric: which metric of the fitness.
        weights: of each of its tasks in their mean.
        minimise: whether less is better.
        aggregate: `mean` or `worst` of its tasks; the worst of a value to be small is the largest.
    """

    name: str
    metric: str
    weights: Mapping[str, float]
    minimise: bool = False
    aggregate: str = "mean"

    def score(self, outcome: Outcome) -> float:
        """Return the number as people read it."""
        return combined(outcome, self.metric, self.weights, self.aggregate, self.minimise)

    def __call__(self, outcome: Outcome) -> float:
        """Return the number to be maximised."""
        return -self.score(outcome) if self.minimise else self.score(outcome)


def combined(
    outcome: Outcome, metric: str, weights: Mapping[str, float], aggregate: str = "mean", minimise: bool = False
) -> float:
    """Return one number of the scores of some tasks; NaN if one of them is.

    Args:
        outcome: of a model.
        metric: which metric of the fitness.
        weights: of each of the tasks in their mean.
        aggregate: `mean` or `worst`.
        minimise: whether the worst is the largest.
    """
    scores = outcome.scores()
    if aggregate == "worst":
        return float((np.max if minimise else np.min)([scores[task][metric] for task in weights]))
    shares = task_weights(weights, {task: scores[task] for task in weights})
    return sum(share * scores[task][metric] for task, share in shares.items())


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
