"""A warm start from the best of a few constants, in front of any searcher.

In: a space and a way to make a searcher from a start point. Out: first one batch of constants (every weight the same,
other variables at their start), then the batches of a searcher that starts from the best of them. A handful of
candidates finds the right overall scale, which a search in many dimensions would spend most of a small budget on. If
all of them fail, the search starts where it would have without them. A searcher with a lag is asked ahead once all
constants are scored, since it starts from one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from evomerge.searchers.base import (
    Elite,
    Incumbent,
    Parents,
    Part,
    Searcher,
    Turns,
    cautions_of,
    lag_of,
    parents_of,
    parts_of,
)
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

TRIED_FIRST = (0.2, 0.4, 0.6, 0.8, 1.0, 1.2)


def constants(space: CoefficientSpace, sign: int = 1) -> np.ndarray:
    """Return the points of `TRIED_FIRST`, (n, dim), or of the same below 0; a bound stands for all of them that lie
    beyond it.
    """
    return np.unique(np.array([space.nearest({"weight": sign * constant}) for constant in TRIED_FIRST]), axis=0)


class WarmStart:
    """Searcher that scores constants (see `constants`) and then becomes another one.

    Args:
        space: the coefficient space.
        make: makes the searcher that takes over, from a start point (dim,).
        sign: of the constants: -1 where task vectors are to be taken away.

    Raises:
        ConfigError: what that searcher refuses.
    """

    def __init__(self, space: CoefficientSpace, make: Callable[[np.ndarray], Searcher], sign: int = 1) -> None:
        self._points = constants(space, sign)
        self._make = make
        # takes over if all constants fail; what does not fit is refused now
        self._inner = make(space.start({}) if sign > 0 else self._points[-1])
        self.needs = self._inner.needs
        self._turns = Turns()
        self._elite = Elite(1)

    @property
    def lag(self) -> int:
        """That of the searcher, once the constants are scored."""
        return lag_of(self._inner) if self._turns.index else 0

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
            return
        self._elite.update(batch)
        if best := self._elite.incumbents():
            self._inner = self._make(best["best"].x)

    def stop(self) -> StopReason | None:
        """Return why the searcher ended, or None; not before the constants are scored."""
        return None if self._turns.index == 0 else self._inner.stop()

    def parts(self, budget: int) -> list[Part]:
        """Return the constants, then what the searcher will ask for."""
        constants = Part(False, min(len(self._points), budget), 1, Parents(1))
        return [constants, *parts_of(self._inner, budget - len(self._points))]

    def parents(self) -> Parents | None:
        """Return the best constant, then the points by which the searcher goes."""
        return parents_of(self._inner) if self._turns.index else Parents(1)

    def cautions(self, budget: int) -> list[str]:
        """Return those of the searcher, of what the constants leave."""
        return cautions_of(self._inner, budget - len(self._points))

    def incumbents(self) -> dict[str, Incumbent]:
        """Return those of the searcher, and the constant that it started from."""
        best = self._elite.incumbents()
        return self._inner.incumbents() | ({"constant": best["best"]} if best else {})
