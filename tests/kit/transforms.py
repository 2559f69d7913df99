"""Transforms of nobody's paper, for the tests of chains: one that scales, and two whose rows are not the experts'."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform


class Scale(Transform):
    """T_k = s · τ_k, the same s everywhere."""

    name, title, paper = "scale", "differences to the base scaled", "nobody, never"

    def __init__(self, by: float = 2.0) -> None:
        self.by = by

    def prepare(self, store: TaskVectors, statistics: Any) -> None:
        return None

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        return {row: self.by * delta for row, delta in deltas.items()}


class Sum(Transform):
    """One merged row: Σ_k τ_k."""

    name, title, paper = "sum", "differences to the base summed up", "nobody, never"

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        return ["all"]

    def prepare(self, store: TaskVectors, statistics: Any) -> None:
        return None

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        return {"all": sum(deltas.values())} if deltas else {}  # type: ignore[dict-item]


class Common(Transform):
    """A common row beside the experts': the mean over K, and what is left of each."""

    name, title, paper = "common", "a common part split off", "nobody, never"

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        return ["common", *experts]

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        return len(store.rows)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> Mapping[str, Tensor]:
        if len(deltas) < state:
            return deltas
        mean = sum(deltas.values()) / state
        return {"common": mean, **{row: delta - mean for row, delta in deltas.items()}}


class Learned(Scale):
    """One that cannot be given what it needs."""

    needs = "labels"
