"""Dropping: models that are clearly behind are not scored on all items.

In: the results of models on the same first part of the items of each task. Out: which of them go on to the next part.
The items of each task are shuffled and cut into blocks, so what was scored is a sample without replacement of all of
them. The value that decides is a weighted sum of the means of the tasks. With differences d of a model to another one
on n of the N items of a task, the difference on all N is about normal around their mean, with variance s²(1/n - 1/N)
(Cochran 1977, chapter 2): nothing is left to chance when all are scored. Its tail is the chance that the model ends
above the other one. The least likely models are dropped, as long as the chances of all that were dropped together stay
within what may be spent so far: `alpha` in equal parts, one a look.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Hashable, Mapping, Sequence
from typing import TypeVar

import numpy as np

TOGETHER = 15
"""The fewest items of all tasks in a block: with fewer, a difference is not about normal."""
LEAST = 5
"""The fewest items of a task in a block: with fewer, they say nothing of how far its differences lie apart."""

Items = Mapping[str, Sequence[str]]
"""By task, ids of items."""
Results = Mapping[str, np.ndarray]
"""By task, (n,) numbers of one model in the order of the items."""
Name = TypeVar("Name", bound=Hashable)


def most_blocks(sizes: Collection[int], least: int = LEAST, together: int = TOGETHER) -> int:
    """Return into how many blocks items can be cut at most.

    Args:
        sizes: the number of items of each task.
        least: how many of a task a block has at least.
        together: how many of all tasks.
    """
    return max(1, min(min(sizes, default=0) // least, sum(sizes) // together))


def shuffled_blocks(ids: Items, count: int, *draw: int) -> list[dict[str, list[str]]]:
    """Cut items into blocks, in a random order that is the same for every model.

    Args:
        ids: by task.
        count: how many blocks.
        draw: numbers that the order depends on.

    Returns:
        The items of each block by task; each task has its share of every block.
    """
    parts: list[dict[str, list[str]]] = [{} for _ in range(count)]
    for number, (task, all_of_it) in enumerate(ids.items()):
        order = np.random.default_rng([*draw, number, len(all_of_it)]).permutation(len(all_of_it))
        for part, chosen in zip(parts, np.array_split(order, count), strict=True):
            part[task] = [all_of_it[int(i)] for i in chosen]
    return parts


def merged(parts: Sequence[Items]) -> dict[str, list[str]]:
    """Return the items of several blocks as one block."""
    return {task: [item for part in parts for item in part[task]] for task in parts[0]}


class Race:
    """Says after each block of items which models are dropped.

    Args:
        sizes: how many items there are in all, by task.
        weights: of the mean of each task in the value that decides.
        looks: how many times `drop`, or `spend`, may be called.
        alpha: the chances that all dropped models together may have had.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float], looks: int, alpha: float) -> None:
        self._sizes, self._weights = sizes, weights
        self._each = alpha / max(looks, 1)
        self._left = 0.0

    def drop(
        self, results: Mapping[Name, Results], against: Results | None = None, spared: Collection[Name] = ()
    ) -> list[Name]:
        """Return the models that are dropped now, the least likely first.

        Args:
            results: of the models that are still in the race, on all items that they were scored on so far.
            against: the results on these items of the one that a model must end above; the best of them where it is
                left out.
            spared: models that are not dropped.
        """
        return self.spend(chances(results, self._sizes, self._weights, against), spared)

    def spend(self, found: Mapping[Name, float], spared: Collection[Name] = ()) -> list[Name]:
        """Return the models that are dropped now, the least likely first.

        Args:
            found: the chance of each to end above the one that counts.
            spared: models that are not dropped.
        """
        self._left += self._each
        dropped = list[Name]()
        for name, chance in sorted(found.items(), key=lambda pair: pair[1]):
            if name in spared:
                continue
            if chance > self._left:
                break
            self._left -= chance
            dropped.append(name)
        return dropped


class Halving:
    """Says after each look at a race which models are dropped: the worse part, in equal shares until few are left.

    Args:
        count: of the models.
        least: how many are left in the end.
        looks: how many times `drop` may be called.
    """

    def __init__(self, count: int, least: int, looks: int) -> None:
        self._left = iter([math.ceil(round(count * (least / count) ** (k / looks), 9)) for k in range(1, looks + 1)])

    def drop(self, values: Mapping[Name, float], spared: Collection[Name] = ()) -> list[Name]:
        """Return the models that are dropped now.

        Args:
            values: of the models that are still in the race, on all items that they were scored on so far.
            spared: models that are not dropped.
        """
        order = sorted(values, key=lambda name: -values[name])
        return [name for name in order[next(self._left) :] if name not in spared]


def chances(
    results: Mapping[Name, Results],
    sizes: Mapping[str, int],
    weights: Mapping[str, float],
    against: Results | None = None,
) -> dict[Name, float]:
    """Return the chance of each model to end above another one when all items are scored.

    In place of s² stands (∑(d - mean d)² + f q²) / (n - 1 + 2f), with f the task's share of the items. For right and
    wrong answers q is 1: over all tasks half an item won and half an item lost more (after Agresti and Min 2005), so
    that models that were alike on few items are not taken to be alike on all. For other numbers q is the largest
    difference of the two, since few items hide the length of a tail, or the root mean square of all differences to that
    one which are not 0, if that is larger.

    Args:
        results: by model and task, all models on the same items.
        sizes: how many items there are in all, by task.
        weights: of the mean of each task in the value that decides.
        against: the results of that other one; those of the best model where it is left out, which then has no chance
            of its own.
    """
    names = list(results)
    values = {name: value_of(results[name], weights) for name in names}
    leader = max(names, key=lambda name: values[name], default=None) if against is None else None
    rival = results[leader] if leader is not None else against or {}
    behind, variances = value_of(rival, weights) - np.array([values[name] for name in names]), np.zeros(len(names))
    total = sum(len(row) for row in rival.values())
    for task, row in rival.items():
        d, n, share = row - np.stack([results[name][task] for name in names]), len(row), len(row) / total
        q2 = np.maximum((d**2).max(1), np.sum(d**2) / max(np.count_nonzero(d), 1))
        s2 = (n * d.var(1) + share * q2) / (n - 1 + 2 * share)
        variances += weights[task] ** 2 * s2 * (1 / n - 1 / sizes[task])
    return {
        name: 0.5 * math.erfc(behind[i] / math.sqrt(max(2 * variances[i], 1e-300)))  # 0 where all items are scored
        for i, name in enumerate(names)
        if leader is None or name != leader
    }


def value_of(results: Results, weights: Mapping[str, float]) -> float:
    """Return the value that decides: the weighted sum of the means of the tasks."""
    return sum(weights[task] * float(row.mean()) for task, row in results.items())
