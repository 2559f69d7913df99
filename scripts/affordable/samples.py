"""Which search items a generation sees, and how much each of them counts: the estimate of a value is answers @ weights.

In: a draw and a number of items. Out: indices of items and their weights. Each task has an even share of the items.
Every estimate is without bias; those in the order of `Growing` are made of the first items of one order, so that a
larger sample holds the smaller ones.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from affordable.draws import Draw
from evomerge.fitness import draws as evomerge_draws

MIX = 0.5
"""How much of the chance of an item is the same for all, when others have more of it by disagreement."""


class Sample(NamedTuple):
    """Items (n,) and their weights (n,)."""

    items: np.ndarray
    weights: np.ndarray


Sampler = Callable[[Draw, int], Sample]


def even(draw: Draw, size: int) -> list[int]:
    """Return how many items of each task are in a sample; what a small task lacks, larger ones have more."""
    most = [len(chosen) for chosen in draw.known.of_tasks]
    shares, left = [0] * len(most), size
    for rank, t in enumerate(sorted(range(len(most)), key=lambda t: most[t])):
        shares[t] = min(most[t], left // (len(most) - rank))
        left -= shares[t]
    return shares


def _joined(draw: Draw, chosen: list[np.ndarray]) -> Sample:
    """Return the items of all tasks; those of a task count alike."""
    tasks = draw.known.bank.weights
    weights = [np.full(len(items), tasks[t] / max(len(items), 1)) for t, items in enumerate(chosen)]
    return Sample(np.concatenate(chosen), np.concatenate(weights))


def by(draw_items: Callable[[Draw], evomerge_draws.Draw]) -> Sampler:
    """Return a sample as evomerge draws it; where items stand for others, weights say for how many.

    Args:
        draw_items: from a generation to what draws the items of a task.
    """

    def sampler(draw: Draw, size: int) -> Sample:
        drawn, known = draw_items(draw), draw.known
        chosen, weights = list[np.ndarray](), list[np.ndarray]()
        for t, ((task, items), n) in enumerate(zip(known.items.items(), even(draw, size), strict=True)):
            found = drawn(task, items, n, draw.rng)
            chosen.append(known.of_tasks[t][found.places])
            each = np.full(n, 1 / max(n, 1)) if found.weights is None else found.weights / found.weights.sum()
            weights.append(known.bank.weights[t] * each)
        return Sample(np.concatenate(chosen), np.concatenate(weights))

    return sampler


uniform = by(lambda draw: evomerge_draws.uniform)
stratified = by(lambda draw: evomerge_draws.stratified)
disagreement = by(
    lambda draw: evomerge_draws.ByDisagreement(
        {task: draw.known.disagreement[own] for task, own in zip(draw.known.items, draw.known.of_tasks, strict=True)}
    )
)
"""Base and all experts disagree; evomerge asks base and the expert of the task."""
disagreement_of_constants = by(
    lambda draw: evomerge_draws.ByDisagreement(
        {
            task: draw.known.disagreement_of_constants[own]
            for task, own in zip(draw.known.items, draw.known.of_tasks, strict=True)
        }
    )
)


def _size(draw: Draw) -> np.ndarray:
    """Return what the chance of each item is in proportion to (N,)."""
    return MIX + (1 - MIX) * draw.known.disagreement


def _chances(size: np.ndarray, n: int) -> np.ndarray:
    """Return chances in proportion to sizes, 1 at most, that sum up to n."""
    if n >= len(size):
        return np.ones(len(size))
    sure = np.zeros(len(size), dtype=bool)
    while True:
        chances = np.where(sure, 1.0, (n - sure.sum()) * size / size[~sure].sum())
        if not (more := ~sure & (chances > 1)).any():
            return chances
        sure |= more


class Growing:
    """An order of the items of each task, of which a sample takes the first ones.

    Args:
        draw: the generation.
        by_disagreement: items on which base and experts disagree come earlier, and count less (sequential Poisson
            sampling, Ohlsson 1998, with weights that sum up to 1, so nearly without bias); else each class has its
            share of every beginning.
    """

    def __init__(self, draw: Draw, by_disagreement: bool = False) -> None:
        self._draw, self._sizes = draw, _size(draw) if by_disagreement else None
        labels = draw.known.bank.labels[draw.known.columns]
        self._orders = []
        for chosen in draw.known.of_tasks:
            if self._sizes is not None:
                key = draw.rng.random(len(chosen)) / self._sizes[chosen]
            else:
                key = np.empty(len(chosen))
                for label in np.unique(labels[chosen]):
                    own = np.flatnonzero(labels[chosen] == label)
                    key[own] = (draw.rng.permutation(len(own)) + draw.rng.random()) / len(own)
            self._orders.append(chosen[np.argsort(key)])

    def __call__(self, size: int) -> Sample:
        """Return the first items of all tasks."""
        first = [order[:n] for order, n in zip(self._orders, even(self._draw, size), strict=True)]
        if self._sizes is None:
            return _joined(self._draw, first)
        weights = []
        for t, (order, items) in enumerate(zip(self._orders, first, strict=True)):
            each = 1 / _chances(self._sizes[order], len(items))[: len(items)]
            weights.append(self._draw.known.bank.weights[t] * each / each.sum())
        return Sample(np.concatenate(first), np.concatenate(weights))
