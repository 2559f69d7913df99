"""One searcher after the other: gradient first, then CMA-ES from where it ended.

In: how to make the two. Out: the first one's batches until it has nothing more to ask, then those of the second, which
starts from the last incumbent of the first. The gradient finds the valley in many coefficients at once; the evolution
strategy then climbs on the benchmark itself, which need not be differentiable.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import (
    Incumbent,
    Needs,
    Parents,
    Part,
    Searcher,
    Turns,
    lag_of,
    later_lag_of,
    parents_of,
    parts_of,
)
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

Make = Callable[..., Searcher]
"""`(space, start, seed) -> searcher`: a searcher's YAML with `_partial_: true`."""


class Hybrid:
    """Searcher that is one searcher and then another.

    Args:
        space: the coefficient space.
        start: where the first one starts, shape (dim,).
        seed: of both.
        first: makes the first searcher; it must end by itself, or the second never has its turn.
        second: makes the second one, from the last incumbent of the first.

    Raises:
        ConfigError: what either of them refuses.
    """

    def __init__(self, space: CoefficientSpace, start: np.ndarray, seed: int, first: Make, second: Make) -> None:
        self._begin = lambda x: _made("second", second, space=space, start=x, seed=seed)
        self._inner = self._first = _made("first", first, space=space, start=start, seed=seed)
        self._second = self._begin(start)  # takes over if the first finds nothing; bad settings are refused now
        self.needs = Needs(gradient=self._inner.needs.gradient or self._second.needs.gradient)
        self._turns = Turns()
        self._switched: int | None = None  # the number of the batch at which the second one began
        self._earlier: dict[str, Incumbent] = {}

    @property
    def lag(self) -> int:
        """That of the second searcher, once it has its turn; the first one is asked batch by batch."""
        return 0 if self._switched is None else lag_of(self._inner)

    @property
    def later_lag(self) -> int:
        """That of the second searcher, which has not had its turn yet."""
        return later_lag_of(self._second)

    def ask(self) -> Batch:
        """Return what the searcher of the moment asks."""
        if self._switched is None and self._inner.stop() is not None:
            self._earlier = self.incumbents()
            self._inner = self._begin(list(self._earlier.values())[-1].x) if self._earlier else self._second
            self._switched = self._turns.index
        batch = self._inner.ask()
        return self._turns.asked(batch.points, batch.gradient, self.lag)

    def tell(self, batch: Batch) -> None:
        """Pass on the values, or the gradient."""
        self._turns.told(batch)
        self._inner.tell(replace(batch, index=batch.index - (self._switched or 0)))

    def stop(self) -> StopReason | None:
        """Return why the second searcher ended, or None."""
        return None if self._switched is None else self._inner.stop()

    def parts(self, budget: int) -> list[Part]:
        """Return those of the first searcher, then those of the second."""
        first = parts_of(self._first, budget)
        return [*first, *parts_of(self._second, budget - sum(part.count for part in first))]

    def parents(self) -> Parents | None:
        """Return the points by which the searcher of the moment goes."""
        return parents_of(self._inner)

    def cautions(self, budget: int) -> list[str]:
        """Say that the second searcher never has its turn."""
        if sum(part.count for part in parts_of(self._first, budget)) < budget:
            return []
        wanted = sum(part.count for part in parts_of(self._first, sys.maxsize))
        if wanted == sys.maxsize:
            return ["the budget ends within the first part, which goes on for ever: write searcher.first.steps=60"]
        return [
            f"the budget ends within the first part, which takes {wanted}, and {max(budget, 0)} are left for it: raise "
            f"the budget, or shorten that part (searcher.first.steps)"
        ]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return those of both: those of the first one as `first_...`, then those of the second one."""
        found = self._inner.incumbents()
        if self._switched is None:
            return {f"first_{name}": one for name, one in found.items()}
        return self._earlier | found


def _made(part: str, make: Make, **arguments: Any) -> Searcher:
    """Make a searcher, whose complaints name the setting as the user wrote it."""
    try:
        return make(**arguments)
    except ConfigError as error:
        raise ConfigError(str(error).replace("searcher.", f"searcher.{part}.")) from error
