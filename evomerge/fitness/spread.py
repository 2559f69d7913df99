"""How far candidates are apart on each item, by what earlier generations have shown: what adaptive sampling goes by.

In: trials, one after the other. Out: a standard deviation for each search item. Few results say little, so an item's
variance is drawn to the mean over all items, as if there were four more results of it; one that nobody has scored has
that mean (a conjugate prior of the variance; Gelman et al. 2013, Bayesian Data Analysis, chapter 2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.fitness.items import Item
from evomerge.trials import Trial

PRIOR = 4
"""So many results is the mean over all items worth."""


class Spread:
    """Adds up results of trials.

    Args:
        items: the search items by task.
        metric: whose results count.
    """

    def __init__(self, items: Mapping[str, Sequence[Item]], metric: str) -> None:
        self._metric = metric
        self._place = {task: {item.id: i for i, item in enumerate(each)} for task, each in items.items()}
        self._sums = {task: np.zeros((3, len(each))) for task, each in items.items()}  # of x⁰, x¹ and x²

    def take(self, trial: Trial) -> None:
        """Add the results of a trial, as far as it has any."""
        for task, metrics in trial.results.items():
            known = [
                (self._place[task][item], x)
                for item, x in zip(trial.items[task], metrics.get(self._metric, ()), strict=False)
                if x is not None
            ]
            places, results = [place for place, _ in known], np.array([x for _, x in known])
            self._sums[task][:, places] += results ** np.arange(3)[:, None]

    def deviations(self) -> dict[str, np.ndarray] | None:
        """Return the standard deviation of each item, float64 (n,) by task; None where no item has two results yet."""
        if not any((sums[0] > 1).any() for sums in self._sums.values()):
            return None
        return {task: _shrunk(*sums) for task, sums in self._sums.items()}


def _shrunk(count: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    several = count > 1
    own = np.where(several, second - first**2 / np.maximum(count, 1), 0.0) / np.maximum(count - 1, 1)
    own, weight = np.maximum(own, 0.0), np.where(several, count, 0)
    mean = float(own[several].mean()) if several.any() else 0.0
    return np.sqrt((weight * own + PRIOR * mean) / (weight + PRIOR))
