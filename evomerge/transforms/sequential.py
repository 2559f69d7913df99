"""Transforms that take experts one after the other, so that their order decides.

In: task vectors. Out: of each one what is new beside those before it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.importance import LOOKED_UP
from evomerge.transforms.parts import one_of, share
from evomerge.transforms.svd import svd

TABLES = ADDED, PROJECTED = ("added", "projected")
_TABLE = re.compile(rf"^(?!.*embed_out)(.*({LOOKED_UP.pattern})|(.*\.)?shared\.|.*relative_attention_bias)")
"""Embeddings, also those of T5 and BART; GPT-NeoX calls its head `embed_out`."""


class Opcm(Transform):
    """Project each task vector away from what was merged before it (Tang et al. 2025, section 4: OPCM).

    In the singular vectors of the merge so far, the strongest directions among each other and the diagonal are taken
    out of the next task vector. All rows are scaled so that their sum is as long as task vectors are on average.

    The authors' code projects the weights of linear layers alone; whatever else there is, it adds. Embeddings are
    matrices that a token looks up, and are known by their names here, so a head that is tied to one is added as well.

    Args:
        alpha: which share of the sum of the singular values the strongest directions have.
        tables: what is done with embeddings: `added` as they are, or `projected`, as before there was this setting.

    Raises:
        ConfigError: alpha is no share, or there is no such way.
    """

    name = "opcm"
    title = "OPCM: each difference to the base projected away from those before it"
    paper = "Tang et al. 2025, arXiv 2501.09522"

    def __init__(self, alpha: float = 0.5, tables: str = ADDED) -> None:
        self.alpha = share(self.name, "alpha", alpha, zero=True, example=0.5)
        self.tables = one_of(self.name, "tables", tables, TABLES)

    def prepare(self, store: TaskVectors, statistics: Any) -> float:
        """Return what all rows are multiplied by."""
        squares, merged = dict.fromkeys(store.rows, 0.0), 0.0
        for name in store.parameters:
            deltas = {row: delta for row in store.rows if (delta := store.dense(row, name)) is not None}
            for row, delta in deltas.items():
                squares[row] += float(delta.double().square().sum())
            merged += float(sum(self._projected(name, deltas).values(), torch.zeros(())).double().square().sum())
        mean = sum(square**0.5 for square in squares.values()) / max(len(squares), 1)
        return mean / merged**0.5 if merged else 0.0

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: float) -> dict[str, Tensor]:
        """Return the scaled rows."""
        return {row: state * delta for row, delta in self._projected(name, deltas).items()}

    def _projected(self, name: str, deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found: dict[str, Tensor] = {}
        added = self.tables == ADDED and _TABLE.search(name) is not None
        for row, delta in deltas.items():
            merged = sum(found.values(), torch.zeros(()))
            found[row] = self._beside(delta, merged) if found and delta.dim() == 2 and not added else delta
        return found

    def _beside(self, delta: Tensor, merged: Tensor) -> Tensor:
        """Return a matrix without what it shares with another one."""
        u, s, v = svd(merged)
        rank = int(torch.searchsorted(s.cumsum(0), self.alpha * s.sum(), right=True))
        seen = u.T @ delta @ v
        shared = torch.diag(seen.diagonal())
        shared[:rank, :rank] = seen[:rank, :rank]
        return delta - u @ shared @ v.T
