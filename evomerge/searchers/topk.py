"""Top-k greedy merging over a pool of models (Hu et al. 2024, arXiv 2410.12613, section 5: model kinship).

In: what each expert weighs alone. Out: first each expert alone; then, generation by generation, the averages of the k
best models two by two, which join the pool, and one that explores: the average of the best model and of the one that is
least akin to it. The end is where a generation leaves the k best as they were, or where all of these are near kin.

A model is a point, and the average of two points is the average of their models under method=linear. Kinship is the
cosine between what two models have beside the base, as weighted sums of task vectors; or that of their weights, as if
task vectors were equally long and at right angles. Values of different batches are compared, so leave fitness.rotate
off.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.searchers.base import Elite, Incumbent, Needs, Turns
from evomerge.searchers.experts import Experts
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

TASK_VECTORS, WEIGHTS = "task_vectors", "weights"
DIGITS = 9
"""To so many digits kinship is the same for any number of threads."""
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
        akin: of what kinship is the cosine: `task_vectors`, or their `weights`, as in runs of earlier versions.
        gram: the inner products of all rows in each group, float64 (G, K, K), for the former.

    Raises:
        ConfigError: a setting is out of its range; there are no inner products, and kinship needs them; or experts
            share a coordinate, cannot be left out within the bounds, or would weigh nothing.
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
        akin: str = WEIGHTS,
        gram: np.ndarray | None = None,
    ) -> None:
        if k < 2:
            raise ConfigError(f"searcher.k={k}: models are merged two by two, so write 2 or more.")
        if not 0 < kin <= 1:
            raise ConfigError(f"searcher.kin={kin} is a cosine above 0, up to 1: write 0.9.")
        if akin not in (TASK_VECTORS, WEIGHTS):
            raise ConfigError(f"searcher.akin: {unknown('choice', str(akin), (TASK_VECTORS, WEIGHTS))}")
        if akin == TASK_VECTORS and gram is None:
            raise ConfigError(
                "searcher.akin=task_vectors needs the inner products of the task vectors, and a part of another "
                "searcher is given none: write akin=weights there."
            )
        self._space, self._gram = space, None if akin == WEIGHTS else gram
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
        if self._gram is None:
            a, b = (self._experts.weights(model.x) for model in (one, other))
            return float(a @ b / math.sqrt((a @ a) * (b @ b)))
        both = np.stack([self._space.decode(model.x)["weight"] for model in (one, other)])
        products = np.einsum("agj,gjk,bgk->ab", both, self._gram, both)
        lengths = math.sqrt(products[0, 0] * products[1, 1])
        return round(float(products[0, 1]) / lengths, DIGITS) if lengths > 0 else 0.0  # the base is akin to none
