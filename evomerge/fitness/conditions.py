"""Conditions on a model: what it must keep of the base's scores, whatever else it gains or loses.

In: outcomes of a model and of the base on the same items, or a text such as `>= 0.98 * base`. Out: how much the model
lacks; what violates no condition lacks nothing. The first use is forgetting (Ilharco et al. 2023, Editing Models with
Task Arithmetic, section 3): of all merges that keep 95 % of the base's score on control tasks, the one with the lowest
score on the task to forget.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.values import combined, task_weights

ROUNDING = 12
"""Digits that count: what is nearer to the limit than the rounding of a mean violates nothing."""
LIMIT = re.compile(r"\s*(?P<sign>>=|<=)\s*(?:(?P<number>[-+\d.eE]+)(?P<times>\s*\*\s*base)?|base)\s*")


@dataclass(frozen=True)
class Condition:
    """A score of some tasks is at least, or at most, a share of the base's, or a number.

    Of scores below zero, such as log-probabilities, a share of 0.95 allows 5 % more loss: what may be lost is that part
    of the base's score, whatever its sign.

    Attributes:
        metric: which metric of the fitness.
        weights: of each of the tasks in their mean.
        share: of the base's score that is to be kept, or that must not be passed; or the limit itself.
        name: what the user calls it; a named one says what is lacked as a share of the limit, so that several can be
            added up, another one says it in the metric.
        most: whether the score must not be above the limit.
        fixed: whether `share` is the limit itself, whatever the base scores.
        aggregate: `mean` or `worst` of the tasks.
        sure: by how many standard errors it must hold: what is chosen among many because it holds on some items may
            lack a little on others.
    """

    metric: str
    weights: Mapping[str, float]
    share: float
    name: str = ""
    most: bool = False
    fixed: bool = False
    aggregate: str = "mean"
    sure: float = 0.0

    def score(self, outcome: Outcome) -> float:
        """Return the mean over the tasks, or the worst of them."""
        return combined(outcome, self.metric, self.weights, self.aggregate, self.most)

    def kept(self, outcome: Outcome, base: Outcome) -> float | None:
        """Return the share of the base's score that a model keeps; None where the base has the score 0."""
        own, known = self.score(outcome), self.score(base)
        return 1 + (own - known) / abs(known) if known else None

    def limit(self, base: Outcome) -> float:
        """Return the number that the score is held against."""
        if self.fixed:
            return self.share
        known = self.score(base)
        return known - (1 - self.share) * abs(known)

    def violation(self, outcome: Outcome, base: Outcome) -> float:
        """Return how much a model lacks; not positive where it keeps enough."""
        limit, own = self.limit(base), self.score(outcome)
        lacks = own - limit if self.most else limit - own
        lacks += self.sure * self.error(outcome, base) if self.sure else 0.0
        return round(lacks / abs(limit) if self.name and limit else lacks, ROUNDING)

    def error(self, outcome: Outcome, base: Outcome) -> float:
        """Return the standard error of how far the score lies from the limit: by item, since both are scored on the
        same ones. Of the worst task it is that of its mean.
        """
        times = 0.0 if self.fixed else self.limit(base) / known if (known := self.score(base)) else 1.0
        apart = {
            task: outcome.results[task][self.metric] - times * np.asarray(base.results[task][self.metric])
            for task in self.weights
        }
        squared = {
            task: float(np.var(each, ddof=1)) / len(each) if len(each) > 1 else 0.0 for task, each in apart.items()
        }
        if self.aggregate == "worst":
            scores, pick = outcome.scores(), max if self.most else min
            return math.sqrt(squared[pick(squared, key=lambda task: scores[task][self.metric])])
        shares = task_weights(self.weights, squared)
        return math.sqrt(sum(share**2 * squared[task] for task, share in shares.items()))


def read_limit(where: str, text: object) -> tuple[bool, float, bool]:
    """Return what a constraint says: whether it is an upper limit, the share of the base's score or the number, and
    whether it is a number.

    Args:
        where: the setting that says it.
        text: such as `>= 0.98 * base`, `>= base` or `<= 0.3`.

    Raises:
        ConfigError: it is no such text.
    """
    found = LIMIT.fullmatch(text) if isinstance(text, str) else None
    try:
        number = float(found["number"] or 1.0) if found else math.nan
    except ValueError:
        number = math.nan
    if found is None or not math.isfinite(number):
        raise ConfigError(
            f"{where} is {text!r}: write a limit that is a share of the base's score or a number, "
            f"such as '>= 0.98 * base', '<= 1.2 * base' or '>= 0.5'."
        )
    fixed = found["number"] is not None and not found["times"]
    if not fixed and number <= 0:
        raise ConfigError(f"{where} is {text!r}: a share of the base's score is above 0; write '>= 0.98 * base'.")
    return found["sign"] == "<=", number, fixed
