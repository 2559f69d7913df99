"""Which of many points are worth scoring, by a regression over the search so far (pre-selection, as in the
model-assisted evolution strategies of Ulmer, Streichert and Zell 2003).

In: points that a searcher has drawn, and batches that were scored. Out: the places of those that a regression expects
most of (`regression.py`); none, while too little is known, or while what it expected has not ranked what was found.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable

import numpy as np
from scipy.stats import rankdata

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Incumbent
from evomerge.searchers.regression import fitted
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch

AGREE = 0.1
"""Below this mean rank correlation of expected and found values the regression does not choose."""
LEAST = 12
"""So many points must be known before it chooses."""
RECENT = 300
"""The regression looks at so many of the last points: its costs rise with their cube."""
MEASURED = 3
"""Over so many parts of the search it is measured how well expected values rank."""


class Screening:
    """Remembers what was scored, and chooses among what was drawn.

    Args:
        space: the coefficient space.
        agree: the mean rank correlation of expected and found values below which it does not choose.
        part: over how many points, of whole batches, a rank correlation is measured at least.

    Raises:
        ConfigError: for a correlation that is none.
    """

    def __init__(self, space: CoefficientSpace, agree: float = AGREE, part: int = 2) -> None:
        if not -1 <= agree <= 1:
            raise ConfigError(f"searcher.agree={agree} is a rank correlation, from -1 to 1: write 0.1.")
        self._range, self._agree, self._part = space.high - space.low, agree, part
        self._points, self._batches = deque[np.ndarray](maxlen=RECENT), deque[int](maxlen=RECENT)
        self._values, self._scored = deque[float](maxlen=RECENT), deque[Incumbent | None](maxlen=RECENT)
        self._fit: Callable[[np.ndarray], np.ndarray] | None = None
        self._pairs = list[tuple[float, float]]()  # expected and found, of the part that is measured
        self._agreed = deque[float](maxlen=MEASURED)

    def expected(self, points: np.ndarray) -> np.ndarray | None:
        """Return what points, (n, dim), are expected to reach, up to scale; None while too little is known."""
        return None if self._fit is None else self._fit(points / self._range)

    def smoothed(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the last points that were scored, (n, dim), n up to `RECENT`, in the order told, and what is expected
        of them, (n,), -inf where they failed; their values while too little is known.
        """
        points, values = np.array(self._points), np.array(self._values)
        found = self.expected(points)
        return points, values if found is None else np.where(np.isfinite(values), found, -np.inf)

    def leaders(self, count: int) -> list[Incumbent]:
        """Return the points of which most is expected among the last that were scored in full, best first."""
        last = zip(self.smoothed()[1], self._scored, strict=True)
        known = [(value, one) for value, one in last if one is not None]
        return [one for _, one in sorted(known, key=lambda pair: -pair[0])[:count]]

    def better(self, found: np.ndarray | None, count: int) -> np.ndarray | None:
        """Return the places of so many points that most is expected of, in the order drawn; None where it does not
        choose.
        """
        if found is None or (self._agreed and np.mean(self._agreed) < self._agree):
            return None
        return np.sort(np.argsort(-found, kind="stable")[:count])

    def learn(self, batch: Batch, found: np.ndarray | None) -> None:
        """Remember a batch that was scored, and what was expected of its points when it was asked for."""
        if found is not None:
            self._pairs += zip(_apart(found), _apart(batch.values), strict=True)
            if len(self._pairs) >= self._part:
                self._agreed.append(_agreement(*np.array(self._pairs).T))
                self._pairs = []
        self._points += list(batch.points.copy())
        self._batches += [batch.index] * len(batch.points)
        self._values += batch.values.tolist()
        self._scored.extend(
            Incumbent(x.copy(), (trial.batch, trial.index)) if trial and trial.full and math.isfinite(value) else None
            for x, trial, value in zip(batch.points, batch.trials, batch.values.tolist(), strict=True)
        )
        if len(self._points) >= LEAST:
            scaled = np.array(self._points) / self._range
            self._fit = fitted(scaled, np.array(self._values), np.array(self._batches))


def _apart(values: np.ndarray) -> list[float]:
    """Return values of a batch beside their mean, if they are several: batches may have other items each."""
    finite = values[np.isfinite(values)]
    return (values - finite.mean() if len(finite) > 1 else values).tolist()


def _agreement(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's rank correlation; 0 where either says nothing."""
    ranks = [rankdata(one), rankdata(other)]
    return float(np.corrcoef(ranks)[0, 1]) if all(np.ptp(each) > 0 for each in ranks) else 0.0
