"""Top-k greedy merging over a pool of models (Hu et al. 2024, arXiv 2410.12613, section 5: model kinship).

In: what each expert weighs alone. Out: first each expert alone; then, generation by generation, the averages of the k
best models two by two, which join the pool, and one that explores: the average of the best model and of the one that is
least akin to it. The end is where a generation leaves the k best as they were, or where all of these are near kin.

A model is a point, and the average of two points is the average of their models under method=linear. Kinship is the
cosine of the weights, as if the task vectors of experts were equally long and at right angles; those of different tasks
nearly are (`evomerge inspect --kinship`). Values of different batches are compared, so leave fitness.rotate off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Elite, Incumbent, Needs, Turns
from evomerge.searchers.experts import Experts
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

SAME = 1e-9
"""How far apart two points may be, and be one model."""


@dataclass(frozen=True, eq=False)
class _Model:
    """A model of the pool: its point, its value, and its place in the order in which models came."""

    x: np.ndarray
    value: float
    place: int


class TopK:
    """Searcher that merges the best models two by two.

    Args:
        space: the coefficient space, with coordinates of their own for each expert.
        start: the coefficients of an expert that is alone, shape (dim,).
        seed: not used; every searcher takes one.
        k: how many models are merged with each other in a generation.
        explore: whether the best one is merged with the one that is least akin to it, too.
        kin: kinship above which two models are not merged any more.
        keep: how many of the best points seen are incumbents.

    Raises:
        ConfigError: a setting is out of its range; or experts share a coordinate, cannot be left out within the bounds,
            or would weigh nothing.
    """

    needs = Needs()

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        k: int = 3,
        explore: bool = True,
        kin: float = 0.9,
        keep: int = 5,
    ) -> None:
        if k < 2:
            raise ConfigError(f"searcher.k={k}: models are merged two by two, so write 2 or more.")
        if not 0 < kin <= 1:
            raise ConfigError(f"searcher.kin={kin} is a cosine above 0, up to 1: write 0.9.")
        self._experts, self._k, self._explore, self._kin = Experts(space, start, "topk"), k, explore, kin
        self._turns, self._elite = Turns(), Elite(keep)
        self._pool: list[_Model] = []
        self._best: list[int] = []  # the places of the k best
        self._next = [self._experts.point([row]) for row in self._experts.free]
        self._seen = [*self._next]

    def ask(self) -> Batch:
        """Return each expert alone, then the merges of a generation."""
        return self._turns.asked(np.array(self._next))

    def tell(self, batch: Batch) -> None:
        """Put the models into the pool, and find the next merges."""
        self._turns.told(batch)
        self._elite.update(batch)
        for x, value in zip(batch.points, batch.values, strict=True):
            if math.isfinite(value):
                self._pool.append(_Model(x, float(value), len(self._pool)))
        self._pool.sort(key=lambda one: (-one.value, one.place))
        best = [one.place for one in self._pool[: self._k]]
        self._next = [] if best == self._best else self._merges()
        self._best = best
        self._seen += self._next

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED where there is nothing new to merge."""
        return None if self._next else StopReason.EXHAUSTED

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen."""
        return self._elite.incumbents()

    def _merges(self) -> list[np.ndarray]:
        """Return the averages of pairs that are not near kin, and that were not seen yet."""
        pairs = [*combinations(self._pool[: self._k], 2)]
        if self._explore and len(self._pool) > 1:
            first, *others = self._pool
            pairs.append((first, min(others, key=lambda one: self._kinship(first, one))))
        found: list[np.ndarray] = []
        for one, other in pairs:
            middle = (one.x + other.x) / 2
            if self._kinship(one, other) <= self._kin and not any(
                np.abs(middle - x).max() <= SAME for x in (*self._seen, *found)
            ):
                found.append(middle)
        return found

    def _kinship(self, one: _Model, other: _Model) -> float:
        a, b = (self._experts.weights(model.x) for model in (one, other))
        return float(a @ b / math.sqrt((a @ a) * (b @ b)))
