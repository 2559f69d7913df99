"""Greedy selection of experts: the greedy soup of Wortsman et al. (2022, recipe 1).

In: what each expert weighs once it is taken. Out: first each expert alone; then, from the best one on in the order of
these values, the selection so far with the next expert, who stays if the value does not fall. An expert that is left
out has a weight of 0. With method=average that is the published soup; with any other method it chooses which experts
are merged at all. Values of different batches are compared, so leave fitness.rotate off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Elite, Incumbent, Needs, Part, Turns, inside
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason


@dataclass
class _Soup:
    """The experts that are taken, what they reached, and the trial that said so."""

    members: list[int]
    value: float
    trial: tuple[int, int]


class Greedy:
    """Searcher that takes experts one by one.

    Args:
        space: the coefficient space, with coordinates of their own for each expert.
        start: the coefficients of an expert that is taken, shape (dim,).
        seed: not used; every searcher takes one.
        keep: how many of the best points seen stay incumbents, beside the last selection.

    Raises:
        ConfigError: experts share a coordinate, an expert cannot be left out within the bounds, or one that is taken
            would weigh nothing.
    """

    needs = Needs()

    def __init__(self, space: CoefficientSpace, start: np.ndarray, seed: int, keep: int = 5) -> None:
        self._start = inside(space, start)
        self._owners = _owners(space)
        self._free = [int(row) for row in np.unique(self._owners) if row >= 0]
        _check(space, self._start, self._owners, self._free)
        self._turns = Turns()
        self._elite = Elite(keep)
        self._order: list[int] = []
        self._soup: _Soup | None = None

    def ask(self) -> Batch:
        """Return each expert alone, then the selection with the next one, shape (1, dim)."""
        if self._soup is None:
            return self._turns.asked(np.array([self._point([row]) for row in self._free]))
        return self._turns.asked(self._point([*self._soup.members, self._order[0]])[None])

    def tell(self, batch: Batch) -> None:
        """Put the experts in order, or take the next one if the value does not fall."""
        self._turns.told(batch)
        self._elite.update(batch)
        values = batch.values
        if batch.index == 0:
            ranked = sorted((i for i, v in enumerate(values) if np.isfinite(v)), key=lambda i: -values[i])
            if ranked:
                first, *_ = ranked
                self._soup = _Soup([self._free[first]], float(values[first]), (0, first))
                self._order = [self._free[i] for i in ranked[1:]]
            return
        expert, soup = self._order.pop(0), self._soup
        if soup is not None and np.isfinite(values[0]) and values[0] >= soup.value:
            self._soup = _Soup([*soup.members, expert], float(values[0]), (batch.index, 0))

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED after the last expert."""
        return StopReason.EXHAUSTED if self._turns.index and not self._order else None

    def parts(self, budget: int) -> list[Part]:
        """Return one part: every expert alone, then all but the best one beside others."""
        return [Part(False, min(2 * len(self._free) - 1, budget), self._elite.size + 1)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen, and the selection."""
        soup = self._soup
        chosen = {} if soup is None else {"soup": Incumbent(self._point(soup.members), soup.trial)}
        return self._elite.incumbents() | chosen

    def _point(self, members: list[int]) -> np.ndarray:
        return np.where((self._owners < 0) | np.isin(self._owners, members), self._start, 0.0)


def _owners(space: CoefficientSpace) -> np.ndarray:
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
                f"searcher=greedy takes experts one by one, and {space.names[column]} is a coefficient of several: "
                f"leave out space.sharing=shared and space.tied."
            )
        owners[column] = row
    return owners


def _check(space: CoefficientSpace, start: np.ndarray, owners: np.ndarray, free: list[int]) -> None:
    if not free:
        raise ConfigError("searcher=greedy takes experts one by one, and no weight is free: leave out space.frozen.")
    moved = owners >= 0
    if bad := np.flatnonzero(moved & ((space.low > 0) | (space.high < 0))).tolist():
        raise ConfigError(
            f"searcher=greedy leaves experts out, which is a weight of 0, outside of the bounds of "
            f"{space.names[bad[0]]}: write space.bounds={{weight: [0, 1.5]}}."
        )
    for row in free:
        if not start[owners == row].any():
            raise ConfigError(f"searcher=greedy would take {space.rows[row]} with a weight of 0: write start=0.4.")
