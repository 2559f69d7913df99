"""Greedy selection of experts: the greedy soup of Wortsman et al. (2022, recipe 1).

In: what each expert weighs once it is taken. Out: first each expert alone; then, from the best one on in the order of
these values, the selection so far with the next expert, who stays if the value does not fall. An expert that is left
out has a weight of 0. With method=average that is the published soup; with any other method it chooses which experts
are merged at all. Values of different batches are compared, so leave fitness.rotate off.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from evomerge.searchers.base import Elite, Incumbent, Needs, Part, Turns
from evomerge.searchers.experts import Experts
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
        self._experts = Experts(space, start, "greedy")
        self._turns = Turns()
        self._elite = Elite(keep)
        self._order: list[int] = []
        self._soup: _Soup | None = None

    def ask(self) -> Batch:
        """Return each expert alone, then the selection with the next one, shape (1, dim)."""
        if self._soup is None:
            return self._turns.asked(np.array([self._experts.point([row]) for row in self._experts.free]))
        return self._turns.asked(self._experts.point([*self._soup.members, self._order[0]])[None])

    def tell(self, batch: Batch) -> None:
        """Put the experts in order, or take the next one if the value does not fall."""
        self._turns.told(batch)
        self._elite.update(batch)
        values = batch.values
        if batch.index == 0:
            ranked = sorted((i for i, v in enumerate(values) if np.isfinite(v)), key=lambda i: -values[i])
            if ranked:
                first, *_ = ranked
                self._soup = _Soup([self._experts.free[first]], float(values[first]), (0, first))
                self._order = [self._experts.free[i] for i in ranked[1:]]
            return
        expert, soup = self._order.pop(0), self._soup
        if soup is not None and np.isfinite(values[0]) and values[0] >= soup.value:
            self._soup = _Soup([*soup.members, expert], float(values[0]), (batch.index, 0))

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED after the last expert."""
        return StopReason.EXHAUSTED if self._turns.index and not self._order else None

    def parts(self, budget: int) -> list[Part]:
        """Return one part: every expert alone, then all but the best one beside others."""
        return [Part(False, min(2 * len(self._experts.free) - 1, budget), self._elite.size + 1)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen, and the selection."""
        soup = self._soup
        chosen = {} if soup is None else {"soup": Incumbent(self._experts.point(soup.members), soup.trial)}
        return self._elite.incumbents() | chosen
