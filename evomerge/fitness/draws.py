"""How n of the items of a task are drawn: stratified by class, uniformly, or by how much base and expert disagree.

In: the items of a task, a number, and a random generator. Out: places, and where items are not equally likely, how many
items each of them stands for. The mean over the items drawn, weighed so, is on average the mean over all of them.

stratified    Items are ordered by class, at random within a class, and every (N/n)-th is taken from a random start:
              each class has its share, and each item the same chance (systematic sampling; Madow 1949).
uniform       Every set of n items is equally likely.
disagreement  Items are ordered by how far apart base and expert are on them, and cut into n strata which hold the same
              amount, three parts of items and one of disagreement; one item is drawn from each, and stands for all of
              its stratum. Where base and expert agree, most merges agree with them: few such items say it (stratified
              sampling with unequal shares, Neyman 1934; the part of items is the defence of Hesterberg 1995 against
              weights without bound).
adaptive      The same by how far candidates of earlier generations were apart (`spread.py`); half is items, half that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.fitness.items import Item

STRATIFIED, UNIFORM, DISAGREEMENT, ADAPTIVE = CHOICES = ("stratified", "uniform", "disagreement", "adaptive")
EVEN = 0.75
"""The part of a stratum's amount that counts items, whatever base and expert say of them."""
LESS_EVEN = 0.5
"""The same where candidates say it, of which there are more."""


@dataclass(frozen=True)
class Drawn:
    """Items that were drawn.

    Attributes:
        places: int64 (n,), distinct, in the order in which the draw went through the items: by class, say.
        weights: int64 (n,), how many items each stands for; None where all stand for as many.
    """

    places: np.ndarray
    weights: np.ndarray | None = None

    def beginning(self, n: int, rng: np.random.Generator) -> Drawn:
        """Return n of them, spread evenly over their order; among these are those of every smaller n.

        Each item has the same chance to be one of them. Weights are as they were, so only their ratios say something,
        and the mean over n items is off on average by what shrinks as 1/n, since it is a ratio of two sums.

        Args:
            n: up to their number.
            rng: as far as that of the same draw for another n.
        """
        chosen = spread(len(self.places), rng)[:n]
        return Drawn(self.places[chosen], None if self.weights is None else self.weights[chosen])


class Draw(Protocol):
    """Draws n of the items of a task, n up to their number."""

    def __call__(self, task: str, items: Sequence[Item], n: int, rng: np.random.Generator) -> Drawn:
        """Return n of them; a function of its arguments alone."""
        ...


def stratified(task: str, items: Sequence[Item], n: int, rng: np.random.Generator) -> Drawn:
    """Draw with the same chance for each item, and for each class its share."""
    order = np.lexsort((rng.random(len(items)), np.array([item.label for item in items])))
    if not n:
        return Drawn(order[:0])
    return Drawn(order[np.floor((rng.random() + np.arange(n)) * len(items) / n).astype(int)])


def uniform(task: str, items: Sequence[Item], n: int, rng: np.random.Generator) -> Drawn:
    """Draw with the same chance for each set of items."""
    return Drawn(rng.permutation(len(items))[:n])


class ByDisagreement:
    """Draws items on which models disagree more often than others.

    Args:
        disagreement: how much they disagree on each item, by task; none is negative.
        even: the part of a stratum's amount that counts items.
    """

    def __init__(self, disagreement: Mapping[str, np.ndarray], even: float = EVEN) -> None:
        self._disagreement, self._even = disagreement, even

    def __call__(self, task: str, items: Sequence[Item], n: int, rng: np.random.Generator) -> Drawn:
        """Draw one item from each of n strata."""
        apart = self._disagreement[task]
        order = np.lexsort((rng.random(len(items)), np.array([item.label for item in items]), -apart))
        total = apart.sum()
        amount = np.full(len(items), 1 / len(items))
        if total > 0:
            amount = self._even * amount + (1 - self._even) * apart[order] / total
        ends = strata(amount, n)
        starts = np.concatenate([[0], ends[:-1]]) if n else ends
        counts = ends - starts
        return Drawn(order[starts + np.floor(rng.random(n) * counts).astype(int)], counts)


def spread(n: int, rng: np.random.Generator) -> np.ndarray:
    """Return the numbers below n, int64 (n,), in an order of which every beginning is spread evenly over them, around a
    circle that begins at random: by their binary digits from behind (van der Corput 1935).
    """
    numbers, bits = np.arange(n), n.bit_length()
    behind = sum(((numbers >> bit & 1) << bits - bit for bit in range(bits)), np.zeros_like(numbers))
    return (np.argsort(behind) + rng.integers(max(n, 1))) % max(n, 1)


def strata(amount: np.ndarray, n: int) -> np.ndarray:
    """Cut a row of items into n strata, none empty, which hold as nearly the same amount as whole items allow.

    Args:
        amount: of each item, float64 (N,), none negative; the largest come first.
        n: up to N.

    Returns:
        Where each stratum ends, int64 (n,); the last one at N.

    >>> strata(np.array([4.0, 2.0, 1.0, 1.0, 1.0, 1.0]), 3).tolist()
    [1, 3, 6]
    """
    sums = np.cumsum(amount)
    middles, ends, end = sums - amount / 2, list[int](), 0
    for left in range(n, 0, -1):
        before = sums[end - 1] if end else 0.0
        due = int(np.searchsorted(middles, before + (sums[-1] - before) / left))
        end = min(max(due, end + 1), len(amount) - left + 1) if left > 1 else len(amount)
        ends.append(end)
    return np.array(ends, dtype=np.int64)
