"""Activity: on which items models may differ, told from how sure one of them is; and how they stand by it.

In: of one model, the reference, what is right and with what probability, on all items. Out: how likely other models
are to differ there, and the chance of each to end ahead of the best one, from the items that all were scored on.

Near merges differ on items of which they are unsure. The log-odds s of the right answer say how sure the reference is:
right and wrong part at about one point c of each task, and the activity g of an item is exp(-|s - c| / `WIDTH`). Items
come in a random order in which the active ones are early. A difference d of two models on an item is taken to have a
mean and a variance in proportion to g. Then the sum over all items of a task is best predicted by G Σd/Σg, with the
variance G (G - Σg) κ / Σg, where G is the activity of all items, β = Σd/Σg and κ = Σ((d - βg)²/g)/(n - 1) (Royall 1970,
On finite population sampling theory under certain linear regression models). With equal activities these are the mean
and the variance of `search/evaluators/dropping.py`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

WIDTH = 2.0
"""How far from the point where right and wrong part activity falls to 1/e, in log-odds."""
FAR = -1e3
"""The least log-probability that makes a difference."""
LEAST = 0.05
"""The least activity: models differ where nobody expects it, too."""
INDIFFERENT = 0.15
"""A lead of so many standard errors of the best value does not matter."""


def activity_of(right: np.ndarray, smooth: np.ndarray, tasks: np.ndarray) -> np.ndarray:
    """Return the activity of items, (N,), from `LEAST` to 1.

    Args:
        right: 0 or 1 of the reference, (N,).
        smooth: its log-probability of the right answer, (N,); one that is not known stands for a very small one.
        tasks: the number of the task of each item, (N,).
    """
    capped = np.clip(np.nan_to_num(smooth, nan=FAR), FAR, -1e-9)
    odds, found = capped - np.log(-np.expm1(capped)), np.empty(len(right))
    for task in np.unique(tasks):
        of = tasks == task
        found[of] = np.exp(-np.abs(odds[of] - _parting(odds[of], right[of])) / WIDTH)
    return np.maximum(found, LEAST)


def _parting(odds: np.ndarray, right: np.ndarray) -> float:
    """Return the point above which items are right, with the fewest exceptions; the mean of such points."""
    order = np.argsort(odds, kind="stable")
    below = np.concatenate([[0], np.cumsum(right[order])])  # right, though below the point
    above = np.concatenate([np.cumsum((1 - right[order])[::-1])[::-1], [0]])  # wrong, though above it
    sorted_odds = odds[order]
    points = np.concatenate([sorted_odds[:1] - 1, (sorted_odds[1:] + sorted_odds[:-1]) / 2, sorted_odds[-1:] + 1])
    exceptions = below + above
    return float(points[exceptions == exceptions.min()].mean())


def active_first(activity: np.ndarray, places: np.ndarray, looks: int) -> list[np.ndarray]:
    """Return items in parts of equal activity, drawn without replacement with chances in proportion to it.

    The order is the same for every search: it depends on nothing but the activity.
    """
    waits = np.random.default_rng([len(activity), len(places)]).exponential(size=len(places)) / activity[places]
    order = places[np.argsort(waits, kind="stable")]
    cumulated = np.cumsum(activity[order])
    return np.split(order, np.searchsorted(cumulated, cumulated[-1] * np.arange(1, looks) / looks))


class Standing:
    """How models stand, from the items that all were scored on.

    Args:
        rows: right or wrong of each model, (N,); looked at on the seen items alone.
        seen: the places of these.
        activity: of all items, (N,).
        tasks: the number of the task of each, (N,).
        weights: of the mean of each task in the value that decides, in the order of their numbers.

    Attributes:
        values: what each model is worth beside the first, by prediction.
    """

    def __init__(
        self,
        rows: Mapping[str, np.ndarray],
        seen: np.ndarray,
        activity: np.ndarray,
        tasks: np.ndarray,
        weights: Sequence[float],
    ) -> None:
        self._names, self._rows = list(rows), np.stack([row[seen] for row in rows.values()])
        self._of, self._activity, self._weights = tasks[seen], activity[seen], weights
        self._totals, self._sizes = np.bincount(tasks, activity), np.bincount(tasks)
        predicted = self._against(0)[0]
        self.values = dict(zip(self._names, (-predicted).tolist(), strict=True))

    def chances(self, among: Sequence[str]) -> dict[str, float]:
        """Return the chance of each of some models to end ahead of the best of them by more than does not matter.

        As in `search/evaluators/dropping.py`, half an item won and half an item lost more, over all tasks, so that
        models that were alike on few items are not taken to be alike on all.
        """
        best = max(among, key=lambda name: self.values[name])
        behind, variances = self._against(self._names.index(best))
        matters = INDIFFERENT * math.sqrt(self._own_variance(self._names.index(best)))
        return {
            name: 0.5 * math.erfc((behind[i] + matters) / math.sqrt(max(2 * variances[i], 1e-300)))
            for i, name in enumerate(self._names)
            if name in among and name != best
        }

    def _against(self, one: int) -> tuple[np.ndarray, np.ndarray]:
        """Return how far each model ends behind one of them, (J,), and the variances of that."""
        behind, variances = np.zeros(len(self._names)), np.zeros(len(self._names))
        for task, weight in enumerate(self._weights):
            at = self._of == task
            d, g, total = self._rows[one, at] - self._rows[:, at], self._activity[at], self._totals[task]
            n, known, share = len(g), g.sum(), len(g) / len(self._of)
            ratio = d.sum(1) / known
            spread = ((d - ratio[:, None] * g) ** 2 / g).sum(1) + share * n / known
            each = weight / self._sizes[task]
            behind += each * ratio * total
            variances += each**2 * total * max(total - known, 0.0) / known * spread / (n - 1 + 2 * share)
        return behind, variances

    def _own_variance(self, one: int) -> float:
        """Return the variance of the value of a model: that of items drawn at random from very many."""
        means = [float(self._rows[one, self._of == task].mean()) for task in range(len(self._weights))]
        return sum(w**2 * p * (1 - p) / n for w, p, n in zip(self._weights, means, self._sizes, strict=True))
