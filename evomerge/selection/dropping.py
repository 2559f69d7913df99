"""Dropping: models that are clearly behind are not scored on all items.

In: the results of models on the same first part of the items of each task. Out: which of them go on to the next part.
The items of each task are shuffled and cut into blocks, so what was scored is a sample without replacement of all of
them. The value that decides is a weighted sum of the means of the tasks. With differences d of a model to the leader on
n of the N items of a task, the difference on all N is about normal around their mean, with variance s²(1/n - 1/N)
(Cochran 1977, chapter 2): nothing is left to chance when all are scored. Its tail is the chance that the model ends
above the leader. The least likely models are dropped, as long as the chances of all that were dropped together stay
within what may be spent so far: `ALPHA` in equal parts, one a look. So the chance that a dropped model would have had
the highest value on all items is about `ALPHA` at most, however many models there are.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from statistics import NormalDist

import numpy as np

ALPHA = 0.2
"""The chance that a model is dropped that would have had the highest value on all items. Most often it is ahead by a
hair then: experiments/dropping.md.
"""
BLOCKS = 20
"""Into how many blocks items are cut; after each but the last, models may be dropped."""
FEW, FEWER = 400, 4
"""Below so many items of all tasks there are so many blocks at most: each look at few of few items errs more than it
saves (experiments/dropping.md)."""
TOGETHER = 15
"""The fewest items of all tasks in a block: with fewer, a difference is not about normal."""
LEAST = 5
"""The fewest items of a task in a block: with fewer, they say nothing of how far its differences lie apart."""

Items = Mapping[str, Sequence[str]]
"""By task, ids of items."""
Results = Mapping[str, np.ndarray]
"""By task, (n,) numbers of one model in the order of the items."""


def blocks(sizes: Collection[int]) -> int:
    """Return into how many blocks items are cut.

    Args:
        sizes: the number of items of each task.
    """
    most = BLOCKS if sum(sizes) >= FEW else FEWER
    return max(1, min(most, min(sizes, default=0) // LEAST, sum(sizes) // TOGETHER))


def cut(ids: Items) -> list[dict[str, list[str]]]:
    """Cut items into blocks, in a random order that is the same for every model and every search.

    Args:
        ids: by task.

    Returns:
        The items of each block by task; each task has its share of every block.
    """
    count = blocks([len(all_of_it) for all_of_it in ids.values()])
    parts: list[dict[str, list[str]]] = [{} for _ in range(count)]
    for number, (task, all_of_it) in enumerate(ids.items()):
        order = np.random.default_rng([number, len(all_of_it)]).permutation(len(all_of_it))
        for part, chosen in zip(parts, np.array_split(order, count), strict=True):
            part[task] = [all_of_it[int(i)] for i in chosen]
    return parts


class Race:
    """Says after each block of items which models are dropped.

    Args:
        sizes: how many items there are in all, by task.
        weights: of the mean of each task in the value that decides.
        looks: how many times `drop` may be called.
        alpha: the chance that a model is dropped that would have been the best on all items.
    """

    def __init__(
        self, sizes: Mapping[str, int], weights: Mapping[str, float], looks: int, alpha: float = ALPHA
    ) -> None:
        self._sizes, self._weights = sizes, weights
        self._each = alpha / max(looks, 1)
        self._left = 0.0

    def drop(self, results: Mapping[str, Results]) -> list[str]:
        """Return the models that are dropped now, the least likely first.

        Args:
            results: of the models that are still in the race, on all items that they were scored on so far.
        """
        self._left += self._each
        dropped = []
        for name, chance in sorted(chances(results, self._sizes, self._weights).items(), key=lambda pair: pair[1]):
            if chance > self._left:
                break
            self._left -= chance
            dropped.append(name)
        return dropped


def chances(results: Mapping[str, Results], sizes: Mapping[str, int], weights: Mapping[str, float]) -> dict[str, float]:
    """Return the chance of each model but the leader to end above the leader when all items are scored.

    In place of s² stands (∑(d - mean d)² + f q²) / (n - 1 + 2f), with f the task's share of the items. For right and
    wrong answers q is 1: over all tasks half an item won and half an item lost more (after Agresti and Min 2005), so
    that models that were alike on few items are not taken to be alike on all. For other numbers q is the largest
    difference of the two, since few items hide the length of a tail, or the root mean square of all differences to the
    leader that are not 0, if that is larger.

    Args:
        results: by model and task, all models on the same items.
        sizes: how many items there are in all, by task.
        weights: of the mean of each task in the value that decides.
    """
    names = list(results)
    tasks = {task: np.stack([results[name][task] for name in names]) for task in results[names[0]]}  # (models, n)
    values, variances = np.zeros(len(names)), np.zeros(len(names))
    for task, rows in tasks.items():
        values += weights[task] * rows.mean(1)
    leader = int(np.argmax(values))
    total = sum(rows.shape[1] for rows in tasks.values())
    for task, rows in tasks.items():
        d, n, share = rows[leader] - rows, rows.shape[1], rows.shape[1] / total
        q2 = np.maximum((d**2).max(1), np.sum(d**2) / max(np.count_nonzero(d), 1))
        s2 = (n * d.var(1) + share * q2) / (n - 1 + 2 * share)
        variances += weights[task] ** 2 * s2 * (1 / n - 1 / sizes[task])
    behind = values[leader] - values
    return {
        name: NormalDist().cdf(-behind[i] / math.sqrt(max(variances[i], 1e-300)))  # 0 where all items are scored
        for i, name in enumerate(names)
        if i != leader
    }
