"""Task vectors in memory, and frozen TIES of them in a few lines, for the tests of transforms."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from evomerge.models.checkpoint import Checkpoint, from_tensors
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors


def vectors_of(deltas: Mapping[str, Mapping[str, Tensor]]) -> TaskVectors:
    """Task vectors in memory: expert -> parameter -> delta; those that are zero are left out, as in files."""
    shapes = {name: tuple(delta.shape) for name, delta in next(iter(deltas.values())).items()}
    held = {e: {name: d for name, d in row.items() if torch.count_nonzero(d)} for e, row in deltas.items()}
    tensors = {name: torch.zeros(shape) for name, shape in shapes.items()}

    def checkpoint(sha256: str) -> Checkpoint:
        return from_tensors(tensors, sha256=sha256)

    experts = {name: checkpoint(name) for name in deltas}
    rows = {name: flattened(row) for name, row in held.items()}
    return TaskVectors(checkpoint("base"), experts, shapes, rows)


def whole(vectors: TaskVectors) -> Tensor:
    """All task vectors, flat (K, n), zeros written out."""
    rows = []
    for expert in vectors.rows:
        deltas = [(vectors.dense(expert, name), shape) for name, shape in vectors.parameters.items()]
        rows.append(torch.cat([torch.zeros(shape).flatten() if d is None else d.flatten() for d, shape in deltas]))
    return torch.stack(rows)


def dense(rows: Tensor, density: float) -> Tensor:
    """Frozen TIES of whole task vectors (K, n) at once: sort, keep k, elect by the sum, drop what disagrees."""
    trimmed = torch.zeros_like(rows)
    for row, out in zip(rows, trimmed, strict=True):
        kept = torch.argsort(row.abs(), descending=True, stable=True)[: math.floor(density * len(row) + 1e-9)]
        out[kept] = row[kept]
    sign = torch.where(trimmed.sum(0) >= 0, 1.0, -1.0)
    return torch.where(trimmed * sign > 0, trimmed, 0.0)


def anonymous_memory() -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon"))
    return 1024 * int(line.split()[1])
