"""A warm start from the best of a few constants, in front of any searcher.

In: a space and a way to make a searcher from a start point. Out: first one batch of constants (every weight the same,
other variables at their start), then the batches of a searcher that starts from the best of them. A handful of
candidates finds the right overall scale, which a search in many dimensions would spend most of a small budget on. If
all of them fail, the search starts where it would have without them. A searcher with a lag is asked ahead once all
constants are scored, since it starts from one of them. Of several values, it starts from a compromise between them, and
the front that is handed over is that of the constants and what the searcher has found.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import replace

import numpy as np

from evomerge.searchers.archive import Archive, memory
from evomerge.searchers.base import (
    Incumbent,
    Parents,
    Part,
    Searcher,
    Turns,
    cautions_of,
    lag_of,
    later_lag_of,
    parents_of,
    parts_of,
)
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

TRIED_FIRST = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)


def constants(space: CoefficientSpace, sign: int = 1, rows: Collection[str] = ()) -> np.ndarray:
    """Return the points of `TRIED_FIRST`, (n, dim), or of the same below 0; a bound stands for all of them that lie
    beyond it. Where rows are named, the others are at 0, or as near to it as the space allows.
    """
    wanted = [space.flat(sign * constant, rows) for constant in TRIED_FIRST]
    return np.unique(np.array([space.nearest({"weight": each}) for each in wanted]), axis=0)


class WarmStart:
    """Searcher that scores constants (see `constants`) and then becomes another one.

    Args:
        space: the coefficient space.
        make: makes the searcher that takes over, from a start point (dim,).
        sign: of the constants: -1 where task vectors are to be taken away.
        objectives: how many values a point has.
        rows: of which the constants are; all where none is named.

    Raises:
        ConfigError: what that searcher refuses.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        make: Callable[[np.ndarray], Searcher],
        sign: int = 1,
        objectives: int = 1,
        rows: Collection[str] = (),
    ) -> None:
        self._points = constants(space, sign, rows)
        self._make = make
        # takes over if all constants fail; what does not fit is refused now
        self._inner = make(space.start({}) if sign > 0 else self._points[-1])
        self.needs = self._inner.needs
        self._turns = Turns()
        size = sum(part.incumbents for part in parts_of(self._inner, sys.maxsize)) if objectives > 1 else 1
        self._seen = memory(objectives, 1, size)

    @property
    def lag(self) -> int:
        """That of the searcher, once the constants are scored."""
        return lag_of(self._inner) if self._turns.index else 0

    @property
    def later_lag(self) -> int:
        """That of the searcher, whose turn comes after the constants."""
        return later_lag_of(self._inner)

    def ask(self) -> Batch:
        """Return the constants, then what the searcher asks."""
        if self._turns.index == 0:
            return self._turns.asked(self._points)
        batch = self._inner.ask()
        return self._turns.asked(batch.points, batch.gradient, self.lag)

    def tell(self, batch: Batch) -> None:
        """Make the searcher from the best constant, then pass on what it asked for."""
        self._turns.told(batch)
        if batch.index > 0:
            self._inner.tell(replace(batch, index=batch.index - 1))
        if batch.index == 0 or isinstance(self._seen, Archive):
            self._seen.update(batch)
        if batch.index == 0 and (best := self._best()) is not None:
            self._inner = self._make(best)

    def stop(self) -> StopReason | None:
        """Return why the searcher ended, or None; not before the constants are scored."""
        return None if self._turns.index == 0 else self._inner.stop()

    def parts(self, budget: int) -> list[Part]:
        """Return the constants, then what the searcher will ask for."""
        several = isinstance(self._seen, Archive)
        constants = Part(False, min(len(self._points), budget), 0 if several else 1, Parents(1))
        return [constants, *parts_of(self._inner, budget - len(self._points))]

    def parents(self) -> Parents | None:
        """Return the best constant, then the points by which the searcher goes."""
        return parents_of(self._inner) if self._turns.index else Parents(1)

    def cautions(self, budget: int) -> list[str]:
        """Return those of the searcher, of what the constants leave."""
        return cautions_of(self._inner, budget - len(self._points))

    def incumbents(self) -> dict[str, Incumbent]:
        """Return those of the searcher, and the constant that it started from."""
        best = self._seen.incumbents()
        if isinstance(self._seen, Archive):
            return best
        return self._inner.incumbents() | ({"constant": best["best"]} if best else {})

    def _best(self) -> np.ndarray | None:
        """Return the constant that the searcher starts from; None where all have failed."""
        if isinstance(self._seen, Archive):
            return self._seen.middle()
        best = self._seen.incumbents()
        return best["best"].x if best else None
