"""Uniform random search: the baseline that any searcher must beat (Bergstra and Bengio 2012).

In: a start point, scored first. Out: points drawn uniformly from the box, each from its own seed, so a replay draws
the same.
"""

from __future__ import annotations

import numpy as np

from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Parents, Part, Turns, checked_batch, checked_lag, inside
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason


class Random:
    """Searcher that draws uniformly within the bounds.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: any integer from 0.
        batch: points asked at once.
        lag: how many batches are asked ahead of the oldest that is not told yet.
        keep: how many of the best points seen stay incumbents.
        incumbents: how many points of a front do, where a point has several values.
        objectives: how many values a point has.

    Raises:
        ConfigError: for a batch below 1, a lag below 0, or a start outside the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        batch: int = 8,
        keep: int = 5,
        lag: int = 0,
        incumbents: int = SIZE,
        objectives: int = 1,
    ) -> None:
        self._space, self._start, self._seed, self._batch = space, inside(space, start), seed, checked_batch(batch)
        self.lag = checked_lag(lag)
        self._turns = Turns()
        self._seen = memory(objectives, keep, incumbents)

    def ask(self) -> Batch:
        """Return the next points, shape (batch, dim)."""
        draws = np.random.default_rng([self._seed, self._turns.asks]).random((self._batch, self._space.dim))
        points = self._space.low + draws * (self._space.high - self._space.low)
        if self._turns.asks == 0:
            points[0] = self._start
        return self._turns.asked(points, lag=self.lag)

    def tell(self, batch: Batch) -> None:
        """Remember the best."""
        self._turns.told(batch)
        self._seen.update(batch)

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget."""
        return [Part(False, budget, self._seen.size, self.parents())]

    def parents(self) -> Parents:
        """Return how many of the best points stay incumbents."""
        return Parents(self._seen.size, self._turns.index)

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen."""
        return self._seen.incumbents()
