"""Transforms that merge adapters in directions which their changes share.

In: task vectors, best those of adapters. Out: T_k = U·M(C_k)·Vᵀ of each matrix, where C_k = Uᵀ·τ_k·V are the
coordinates of expert k in the shared directions, and M is what is done to them (`inner`). Each T_k is frozen, and a
search weighs each by itself, where the authors' code of KnOTS takes the first weight for all. What is no matrix has no
directions: M is done to its elements.
"""

from __future__ import annotations

import tempfile
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.common.directories import make_cache
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.names import listed
from evomerge.models.factors import Factors
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.low_rank import factors_of
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.chance import Dare
from evomerge.transforms.directions import Change, Space, directions, directions_of_products, matrix, nearest
from evomerge.transforms.magnitude import Trim
from evomerge.transforms.parts import one_of, share, whole
from evomerge.transforms.signs import Elect

Products = Mapping[str, Mapping[str, Factors]]
"""Parameter -> row -> its factors, where it has some."""


@dataclass(frozen=True)
class _Known:
    """What is known of the whole model.

    Attributes:
        factors: of all rows.
        steps: what each step of `inner` needs.
    """

    factors: Products
    steps: Sequence[Any]


class _Subspace(Transform):
    """A transform that merges in shared directions; abstract.

    Args:
        inner: what is done there: `ties` (trim, elect and keep what agrees), `dare_ties` (drop at random in place of
            the trim), or `linear` (nothing, so that T_k = τ_k).
        density: which share of its coordinates each expert keeps.
        scope: of which a trim keeps that share: of those of the whole `model`, or of each `tensor`.
        join: whether what agrees is averaged (`mean`) or added up (`sum`).
        seed: of the draws of `dare_ties`.
        rank: of the factors that a matrix without factors is given; None for none.

    Raises:
        ConfigError: a setting means nothing.
    """

    def __init__(self, inner: str, density: float, scope: str, join: str, seed: int, rank: int | None = None) -> None:
        self.inner = one_of(self.name, "inner", inner, ("ties", "dare_ties", "linear"))
        self.density = share(self.name, "density", density)
        self.scope = one_of(self.name, "scope", scope, ("model", "tensor"))
        self.join = one_of(self.name, "join", join, ("mean", "sum"))
        self.seed = whole(self.name, "seed", seed, 0)
        self.rank = rank if rank is None else whole(self.name, "rank", rank)
        trim, drop, elect = Trim(self.density, scope), Dare(self.density, seed=seed), Elect(join=join)
        self._steps: Sequence[Transform] = {"ties": (trim, elect), "dare_ties": (drop, elect), "linear": ()}[inner]

    def prepare(self, store: TaskVectors, statistics: Any) -> _Known:
        """Return the factors, and what a trim of the whole model keeps of the coordinates."""
        factors = _factors(store)
        at_once = self.inner == "ties" and self.scope == "model"
        seen = self._coordinates(store, factors) if at_once else store
        return _Known(factors, [step.prepare(seen, None) for step in self._steps])

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: _Known) -> dict[str, Tensor]:
        """Return the rows: what is left of the coordinates, as changes of the parameter."""
        if not deltas:
            return {}
        factors, shape = state.factors.get(name, {}), next(iter(deltas.values())).shape
        space, rows = self._seen({row: factors.get(row, delta) for row, delta in deltas.items()})
        for step, known in zip(self._steps, state.steps, strict=True):
            rows = step.apply(name, rows, known)
        return {row: space.back(values, shape) for row, values in rows.items()}

    @abstractmethod
    def _space(self, changes: Sequence[Change]) -> Space:
        """Return the directions that the changes of one parameter share."""

    def _seen(self, changes: Mapping[str, Change]) -> tuple[Space, Mapping[str, Tensor]]:
        """Return the directions of one parameter, and the coordinates of each row."""
        if self.rank is not None:
            changes = {row: nearest(change, self.rank) for row, change in changes.items()}
        space = self._space([*changes.values()])
        return space, {row: space.into(change) for row, change in changes.items()}

    def _coordinates(self, store: TaskVectors, factors: Products) -> TaskVectors:
        """Return the coordinates of all rows, mapped from a file without a name, which is gone with them."""
        shapes: dict[str, tuple[int, ...]] = {}
        places: dict[str, dict[str, slice]] = {row: {} for row in store.rows}
        if store.cache is not None:
            make_cache(store.cache)
        try:
            with tempfile.TemporaryFile(dir=store.cache) as stream:
                for name in store.parameters:
                    changes = _changes(store, name, factors.get(name, {}))
                    for row, values in self._seen(changes)[1].items() if changes else ():
                        start = stream.tell() // values.itemsize
                        shapes[name], places[row][name] = tuple(values.shape), slice(start, start + values.numel())
                        stream.write(values.contiguous().numpy().data)
                stream.flush()
                kept = np.memmap(stream, np.float32, "c") if shapes else np.empty(0, np.float32)
        except OSError as error:
            raise CheckpointError(
                f"The transform {self.name} cannot write the coordinates of all experts to "
                f"{store.cache or tempfile.gettempdir()}: {error}. Make room there, or write "
                f"transform.{self.name}.scope=tensor, which needs no such file."
            ) from error
        values = torch.from_numpy(kept)
        deltas = {
            row: {name: DenseDelta(values[place]) for name, place in held.items()} for row, held in places.items()
        }
        return replace(store, parameters=shapes, deltas=deltas)


class Knots(_Subspace):
    """Merge in the left singular vectors of all changes side by side (Stoica et al. 2025, section 4: KnOTS).

    U Σ [V_1ᵀ … V_Kᵀ] = [τ_1 … τ_K], and what is merged is C_k = Σ V_kᵀ = Uᵀ τ_k. Any task vectors will do.
    Directions are of the outputs, or of the inputs where a matrix has these first, as in GPT-2. A convolution is a
    matrix of its outputs and all else.

    Args:
        inner: what is done to the coordinates: `ties`, `dare_ties`, or `linear`, which is task arithmetic.
        density: which share of its coordinates each expert keeps.
        scope: of which a trim keeps that share: of those of the whole `model`, as in the authors' code, or of each
            `tensor`.
        join: whether what agrees is averaged (`mean`), as in the paper, or added up (`sum`).
        seed: of the draws of `dare_ties`.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "knots"
    title = "KnOTS: differences to the base merged in directions that the experts share"
    paper = "Stoica et al. 2025, arXiv 2410.19735"

    def __init__(
        self, inner: str = "ties", density: float = 0.2, scope: str = "model", join: str = "mean", seed: int = 0
    ) -> None:
        super().__init__(inner, density, scope, join, seed)

    def _space(self, changes: Sequence[Change]) -> Space:
        factors = [change for change in changes if isinstance(change, Factors)]
        if len(factors) == len(changes):
            return Space(directions_of_products(factors))
        if any(not isinstance(change, Factors) and change.dim() < 2 for change in changes):
            return Space()
        return Space(directions([matrix(change) for change in changes]))


class CoreSpace(_Subspace):
    """Merge in the left singular vectors of all B and the right ones of all A (Panariello et al. 2025, section 4).

    τ_k = s·B_k·A_k, U holds the directions of [B_1 … B_K] and V those of [A_1; …; A_K], so what is merged is a small
    matrix Uᵀ τ_k V, in which nothing of τ_k is lost. B and A are taken as the adapters hold them. Where an expert has
    no factors of a parameter, as of a bias or of what an adapter saved as a whole, M is done to its elements.

    Args:
        inner: what is done to the coordinates: `ties`, `dare_ties`, or `linear`, which is task arithmetic.
        density: which share of its coordinates each expert keeps.
        scope: of which a trim keeps that share: of those of each `tensor`, as in the authors' code, or of the whole
            `model`.
        join: whether what agrees is averaged (`mean`), as in the paper, or added up (`sum`).
        seed: of the draws of `dare_ties`.
        rank: how many singular values of a matrix without factors make its factors; None refuses experts that have
            none at all.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "core_space"
    title = "Core Space: adapters merged in the directions of all their factors"
    paper = "Panariello et al. 2025, arXiv 2509.17786"

    def __init__(
        self,
        inner: str = "ties",
        density: float = 0.2,
        scope: str = "tensor",
        join: str = "mean",
        seed: int = 0,
        rank: int | None = None,
    ) -> None:
        super().__init__(inner, density, scope, join, seed, rank)

    def prepare(self, store: TaskVectors, statistics: Any) -> _Known:
        """Return what is known of the whole model.

        Raises:
            ConfigError: an expert changed matrices, and has factors of none.
        """
        if self.rank is None:
            _check_factors(store)
        return super().prepare(store, statistics)

    def _space(self, changes: Sequence[Change]) -> Space:
        factors = [change for change in changes if isinstance(change, Factors)]
        if len(factors) < len(changes):
            return Space()
        return Space(directions([one.left for one in factors]), directions([one.right.T for one in factors]))


def _factors(store: TaskVectors) -> dict[str, dict[str, Factors]]:
    found: dict[str, dict[str, Factors]] = {}
    for row, deltas in store.deltas.items():
        for name in deltas:
            if (factors := factors_of(deltas[name])) is not None:
                found.setdefault(name, {})[row] = factors
    return found


def _changes(store: TaskVectors, name: str, factors: Mapping[str, Factors]) -> dict[str, Change]:
    """Return what each row does to a parameter, without those that change nothing."""
    found = {row: factors[row] if row in factors else store.dense(row, name) for row in store.rows}
    return {row: change for row, change in found.items() if change is not None}


def _check_factors(store: TaskVectors) -> None:
    """Refuse experts that changed matrices, and have factors of none.

    Raises:
        ConfigError: there is one.
    """
    factored = {row for rows in _factors(store).values() for row in rows}
    changed = {row for row in store.rows if any(len(store.parameters[name]) > 1 for name in store.deltas[row])}
    if dense := [row for row in store.rows if row in changed - factored]:
        has = "has" if len(dense) == 1 else "have"
        raise ConfigError(
            f"The transform core_space merges the factors of adapters, and {listed(dense)} {has} none: whole models "
            f"have none, and neither has what another transform made. Write transform=knots, which takes any expert; "
            f"or transform.core_space.rank=16, which takes 16 singular values of each matrix and loses the rest; "
            f"or name core_space first in the list of transforms."
        )
