"""How far two fronts differ in what they are worth, and how sure that is.

In: for each arm and seed, a table of scores by item: base, experts and the points of its front, all on the same report
items. Out: the hypervolume of a front, and its difference to that of another arm: by seed, and with two standard
errors. That of seeds says how much another search would differ. That of items draws report items anew, the same ones
for all arms and seeds (a paired bootstrap, Efron and Tibshirani 1993): it says how much other items would.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.fitness.objectives import can_normalise
from evomerge.selection.rules import hypervolume

BELOW = -0.5
"""The reference of the hypervolume in each task: half an expert's gain below the base."""
DRAWS = 300
"""How often items are drawn anew."""

Scores = Mapping[str, np.ndarray]
"""Task -> scores by item, (2 + n, items): of the base, of the task's expert, of n points."""


@dataclass(frozen=True)
class Difference:
    """What one arm's fronts are worth beyond another's.

    Attributes:
        seeds: by seed.
        between_seeds: the standard error of their mean over seeds; None for one seed.
        between_items: the standard error of the same mean over report items.
    """

    seeds: Sequence[float]
    between_seeds: float | None
    between_items: float

    @property
    def mean(self) -> float:
        """Over the seeds."""
        return float(np.mean(self.seeds))


def flat_task(scores: Scores) -> str | None:
    """Return a task whose expert is no better than the base there, so that nothing can be normalised; None without."""
    ends = {task: table[:2].mean(axis=1).tolist() for task, table in scores.items()}
    return next((task for task, (low, high) in ends.items() if not can_normalise(low, high)), None)


def volume(scores: Scores, chosen: Mapping[str, np.ndarray] | None = None) -> float:
    """Return the hypervolume of a front: of scores between base (0) and expert (1), above `BELOW` in each task.

    Args:
        scores: by item.
        chosen: the places of the items that count, by task; None for all.
    """
    means = np.array([(table if chosen is None else table[:, chosen[task]]).mean(1) for task, table in scores.items()])
    low, high, points = means[:, :1], means[:, 1:2], means[:, 2:]
    return hypervolume(((points - low) / (high - low)).T, np.full(len(means), BELOW))


def difference(one: Sequence[Scores], other: Sequence[Scores]) -> Difference:
    """Compare two arms, whose searches have the same seeds in the same order."""
    seeds = [volume(a) - volume(b) for a, b in zip(one, other, strict=True)]
    rng, sizes = np.random.default_rng(0), {task: table.shape[1] for task, table in one[0].items()}
    drawn = np.zeros(DRAWS)
    for i in range(DRAWS):
        chosen = {task: rng.integers(size, size=size) for task, size in sizes.items()}
        drawn[i] = np.mean([volume(a, chosen) - volume(b, chosen) for a, b in zip(one, other, strict=True)])
    apart = float(np.std(seeds, ddof=1) / np.sqrt(len(seeds))) if len(seeds) > 1 else None
    return Difference(seeds, apart, float(drawn.std(ddof=1)))
