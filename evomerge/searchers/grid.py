"""Grid search over one coefficient: what people do by hand, and how the best constant is found.

In: the name of a coordinate. Out: equally spaced values of it over its range, all other coordinates at the start
point; one generation, then the end. With `space=model space.sharing=shared` the one coordinate is the single constant
of task arithmetic (Ilharco et al. 2023).
"""

from __future__ import annotations

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import nearest
from evomerge.searchers.base import Elite, Incumbent, Needs, Part, Turns, inside
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason


class Grid:
    """Searcher that scores `points` equally spaced values of one coordinate.

    Args:
        space: the coefficient space.
        start: the values of all other coordinates, shape (dim,).
        seed: not used; every searcher takes one.
        coordinate: the name of the coordinate; None when the space has only one.
        points: how many values, both ends of the range included.
        keep: how many of the best points seen stay incumbents.

    Raises:
        ConfigError: for an unknown coordinate, none named among several, fewer than 2 points, or a start outside the
            bounds.
    """

    needs = Needs()

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        coordinate: str | None = None,
        points: int = 16,
        keep: int = 5,
    ) -> None:
        if points < 2:
            raise ConfigError(f"searcher.points is {points}; a grid needs at least 2.")
        if coordinate is None and space.dim > 1:
            raise ConfigError(
                f"A grid goes over one coefficient, and this space has {space.dim}. Name one "
                f"(searcher.coordinate='{space.names[0]}'), "
                f"or make it one: space=model space.sharing=shared."
            )
        name = space.names[0] if coordinate is None else coordinate
        if name not in space.names:
            near = nearest(name, space.names, n=3, cutoff=0.0)
            raise ConfigError(f"This space has no coordinate '{name}'. Near ones: {', '.join(near)}.")
        axis = space.names.index(name)
        self._points = np.tile(inside(space, start), (points, 1))
        self._points[:, axis] = np.linspace(space.low[axis], space.high[axis], points)
        self._turns = Turns()
        self._elite = Elite(keep)

    def ask(self) -> Batch:
        """Return all the points, shape (points, dim)."""
        return self._turns.asked(self._points)

    def tell(self, batch: Batch) -> None:
        """Remember the best."""
        self._turns.told(batch)
        self._elite.update(batch)

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED after the one generation."""
        return StopReason.EXHAUSTED if self._turns.index else None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, the points."""
        return [Part(False, min(len(self._points), budget), self._elite.size)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen."""
        return self._elite.incumbents()
