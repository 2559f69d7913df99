"""A transform: one row, the mean of the task vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform


class Mean(Transform):
    name = "mean_row"
    title = "the mean of all differences to the base"
    paper = "Wortsman et al. 2022"

    def __init__(self, factor: float = 1.0) -> None:
        self.factor = factor

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        return ["mean"]

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        return len(store.rows)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        return {"mean": self.factor * torch.stack(list(deltas.values())).sum(0) / state} if deltas else {}
