"""Experts as points of a space: each alone or several together, for searchers that choose among experts.

In: a space, and what an expert weighs that is taken. Out: the point at which some experts are taken and the others
left out, with a weight of 0.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import inside
from evomerge.space.coefficients import CoefficientSpace


class Experts:
    """Which experts can be taken, and where.

    Args:
        space: the coefficient space, with coordinates of their own for each expert.
        start: the coefficients of an expert that is taken, shape (dim,).
        searcher: what messages call the searcher.

    Attributes:
        free: the places of the rows that can be taken, or left out.

    Raises:
        ConfigError: experts share a coordinate, an expert cannot be left out within the bounds, or one that is taken
            would weigh nothing.
    """

    def __init__(self, space: CoefficientSpace, start: np.ndarray, searcher: str) -> None:
        self._start = inside(space, start)
        self._owners = _owners(space, searcher)
        self.free = [int(row) for row in np.unique(self._owners) if row >= 0]
        self._check(space, searcher)

    def point(self, members: Sequence[int]) -> np.ndarray:
        """Return where some experts are taken, by the places of their rows, shape (dim,)."""
        return np.where((self._owners < 0) | np.isin(self._owners, members), self._start, 0.0)

    def weights(self, x: np.ndarray) -> np.ndarray:
        """Return the coordinates of a point that move weights."""
        return x[self._owners >= 0]

    def _check(self, space: CoefficientSpace, searcher: str) -> None:
        if not self.free:
            raise ConfigError(
                f"searcher={searcher} takes experts one by one, and no weight is free: leave out space.frozen."
            )
        moved = self._owners >= 0
        if bad := np.flatnonzero(moved & ((space.low > 0) | (space.high < 0))).tolist():
            raise ConfigError(
                f"searcher={searcher} leaves experts out, which is a weight of 0, outside of the bounds of "
                f"{space.names[bad[0]]}: write space.bounds={{weight: [0, 1.5]}}."
            )
        for row in self.free:
            if not self._start[self._owners == row].any():
                raise ConfigError(
                    f"searcher={searcher} would take {space.rows[row]} with a weight of 0: write start=0.4."
                )
        if space.decode(self.point(self.free[:1]))["weight"][:, self.free[1:]].any():
            raise ConfigError(
                f"searcher={searcher} leaves experts out, which is a weight of 0, and space.sum with bounds below 0 "
                f"moves all weights of a group: write space.bounds={{weight: [0, 1.5]}}."
            )


def _owners(space: CoefficientSpace, searcher: str) -> np.ndarray:
    """Return for each coordinate the row whose weight it moves, -1 where it moves no weight, (dim,).

    Raises:
        ConfigError: one moves the weights of several rows.
    """
    matrix = space.matrices["weight"].tocoo()
    owners = np.full(space.dim, -1)
    for place, column in zip(matrix.row, matrix.col, strict=True):
        row = int(place) % len(space.rows)
        if owners[column] not in (-1, row):
            raise ConfigError(
                f"searcher={searcher} takes experts one by one, and {space.names[column]} is a coefficient of several: "
                f"leave out space.sharing=shared and space.tied."
            )
        owners[column] = row
    return owners
