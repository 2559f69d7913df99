"""Conditions on a model: what it must keep of the base's scores, whatever else it gains or loses.

In: outcomes of a model and of the base on the same items. Out: how much the model lacks; what violates no condition
lacks nothing. The first use is forgetting (Ilharco et al. 2023, Editing Models with Task Arithmetic, section 3): of all
merges that keep 95 % of the base's score on control tasks, the one that is worst on the task to forget.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import task_weights

ROUNDING = 12
"""Digits that count: what is nearer to the limit than the rounding of a mean violates nothing."""


@dataclass(frozen=True)
class Condition:
    """The mean score of some tasks is at least a share of the base's.

    Of scores below zero, such as log-probabilities, a share of 0.95 allows 5 % more loss: what may be lost is that part
    of the base's score, whatever its sign.

    Attributes:
        metric: which metric of the fitness.
        weights: of each of the tasks in their mean.
        share: of the base's score that is to be kept, up to 1.
    """

    metric: str
    weights: Mapping[str, float]
    share: float

    def score(self, outcome: Outcome) -> float:
        """Return the mean over the tasks."""
        scores = outcome.scores()
        shares = task_weights(self.weights, {task: scores[task] for task in self.weights})
        return sum(share * scores[task][self.metric] for task, share in shares.items())

    def kept(self, outcome: Outcome, base: Outcome) -> float | None:
        """Return the share of the base's score that a model keeps; None where the base has the score 0."""
        own, known = self.score(outcome), self.score(base)
        return 1 + (own - known) / abs(known) if known else None

    def violation(self, outcome: Outcome, base: Outcome) -> float:
        """Return how much a model lacks, in the metric; not positive where it keeps enough."""
        known = self.score(base)
        return round(known - (1 - self.share) * abs(known) - self.score(outcome), ROUNDING)
