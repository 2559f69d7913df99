"""Transforms that keep elements by their magnitude, and change none of those that they keep.

In: task vectors. Out: the same, with zeros where elements are left out. A trim is the first step of TIES; by itself, or
before other transforms, it shows what that step is worth. Equal elements are kept in the order of their places.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.cuts import Cut, count, find_cuts
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import Parts, as_rows, by_chunks, one_of, share


class Trim(Transform):
    """Keep the largest elements: the first step of TIES (Yadav et al. 2023, section 3).

    Args:
        density: which share of its elements each task vector keeps.
        scope: of which elements that is a share: of the `model`, of each `tensor`, or of each `row` of a tensor, its
            last dimension.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "trim"
    title = "differences to the base trimmed by magnitude"
    paper = "Yadav et al. 2023, arXiv 2306.01708"

    def __init__(self, density: float = 0.2, scope: str = "model") -> None:
        self.density = share(self.name, "density", density)
        self.scope = one_of(self.name, "scope", scope, ("model", "tensor", "row"))

    def prepare(self, store: TaskVectors, statistics: Any) -> dict[str, dict[str, Cut]]:
        """Return what each row keeps of each parameter; nothing where that depends on the parameter alone."""
        if self.scope != "model":
            return {}
        total = sum(math.prod(shape) for shape in store.parameters.values())
        return {row: find_cuts(store.deltas[row], count(self.density, total), store.parameters) for row in store.rows}

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Cut]]
    ) -> dict[str, Tensor]:
        """Return the trimmed rows."""
        if self.scope == "row":
            return {row: _window(delta, self.density, 0.0) for row, delta in deltas.items()}
        if self.scope == "model":
            cuts = {row: state[row][name] for row in deltas}
        else:
            cuts = {row: _cut(delta, count(self.density, delta.numel())) for row, delta in deltas.items()}
        return by_chunks(deltas, list(deltas), lambda start, parts: trimmed(cuts, start, parts))


class Breadcrumbs(Transform):
    """Leave out the largest elements of each row, and all small ones (Davari and Belilovsky 2024, section 3).

    As in the authors' code, and unlike mergekit and the method of that name, shares are of each row of a tensor, its
    last dimension.

    Args:
        density: which share of a row is kept: the largest but for those that are left out.
        gamma: which share is left out since it is the largest.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "breadcrumbs"
    title = "Breadcrumbs: differences to the base without the largest and the smallest elements of each row"
    paper = "Davari and Belilovsky 2024, arXiv 2312.06795"
    mergekit = "breadcrumbs"

    def __init__(self, density: float = 0.2, gamma: float = 0.1) -> None:
        self.density = share(self.name, "density", density)
        self.gamma = share(self.name, "gamma", gamma, zero=True, example=0.1)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows with what is kept of them."""
        return {row: _window(delta, self.density, self.gamma) for row, delta in deltas.items()}


def trimmed(cuts: Mapping[str, Cut], start: int, parts: Parts) -> Parts:
    """Return some elements of rows with zeros where their cuts keep none.

    Args:
        cuts: of the rows of one parameter.
        start: the place of the first of the elements.
        parts: these elements.
    """
    return {row: torch.where(cuts[row].keeps(part, start), part, 0) for row, part in parts.items()}


def _cut(delta: Tensor, kept: int) -> Cut:
    """Return the cut that keeps some elements of one delta."""
    return find_cuts({0: DenseDelta(delta.reshape(-1))}, kept, [0])[0]


def _window(delta: Tensor, density: float, gamma: float) -> Tensor:
    """Keep a share of each row: the largest elements after a share that is left out."""
    rows = as_rows(delta)
    result, length = torch.zeros_like(rows), rows.shape[1]
    first, kept = count(gamma, length), count(density, length)
    order = torch.argsort(rows.abs(), dim=1, descending=True, stable=True)[:, first : first + kept]
    return result.scatter_(1, order, rows.gather(1, order)).reshape(delta.shape)
