"""A warm start from the best of a few constants, in front of any searcher.

In: a space and a way to make a searcher from a start point. Out: first one batch of constants (every weight the same,
other variables at their start), then the batches of a searcher that starts from the best of them. A handful of
candidates finds the right overall scale, which a search in many dimensions would spend most of a small budget on. If
all of them fail, the search starts where it would have without them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evomerge.searchers.base import Elite, Searcher, Turns
from evomerge.space import CoefficientSpace
from evomerge.stopping import StopReason
from evomerge.trials import Batch

CONSTANTS = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)


class WarmStart:
    """Searcher that scores `CONSTANTS` (those within the bounds) and then becomes another one.

    Args:
        space: the coefficient space.
        make: makes the searcher that takes over, from a start point (dim,).
    """

    def __init__(self, space: CoefficientSpace, make: Callable[[np.ndarray], Searcher]) -> None:
        points = [space.start({"weight": constant}) for constant in CONSTANTS]
        self._points = np.unique(np.array(points), axis=0)  # constants beyond the bounds fall together on them
        self._start = space.start({})
        self._make = make
        self.needs = make(
            self._start
        ).needs  # made now, so that settings which do not fit are refused before the search
        self._turns = Turns()
        self._elite = Elite(1)
        self._inner: Searcher | None = None

    def ask(self) -> Batch:
        """Return the constants, then what the searcher asks."""
        if self._inner is None:
            return self._turns.asked(self._points)
        batch = self._inner.ask()
        return self._turns.asked(batch.points, batch.gradient)

    def tell(self, batch: Batch) -> None:
        """Make the searcher from the best constant, then pass on what it asked for."""
        self._turns.told(batch)
        if self._inner is not None:
            self._inner.tell(replace(batch, index=batch.index - 1))
            return
        self._elite.update(batch)
        self._inner = self._make(self._elite.points().get("best", self._start))

    def stop(self) -> StopReason | None:
        """Return why the searcher ended, or None."""
        return None if self._inner is None else self._inner.stop()

    def incumbents(self) -> dict[str, np.ndarray]:
        """Return those of the searcher, and the constant that it started from."""
        inner = {} if self._inner is None else self._inner.incumbents()
        best = self._elite.points()
        return inner | {"constant": best["best"]} if best else inner
