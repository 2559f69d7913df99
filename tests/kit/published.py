"""Task vectors on which transforms are held against numbers of papers and of their authors' code."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.transforms.base import Transform
from tests.kit.vectors import vectors_of

T3 = torch.tensor([[3.0, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1], [2, 1, 0, -1, -3, 1]])
W1 = torch.diag(torch.tensor([4.0, 2, 1, 0.5]))
W2 = torch.tensor([[1.2, 0.6, 0.4, 0.8], [0.6, 1.2, 0.8, 0.4], [0.8, 0.4, 0.6, 1.2], [0.4, 0.8, 1.2, 0.6]])


def made(transform: Transform, rows: Sequence[Tensor] | Tensor, **more: Sequence[Tensor]) -> dict[str, Tensor]:
    """The rows of the parameter `w`, of which `rows` are the task vectors; `more` are those of other parameters."""
    vectors = vectors_of(
        {f"e{k}": {"w": row, **{name: each[k] for name, each in more.items()}} for k, row in enumerate(rows)}
    )
    found = {row: delta for row in vectors.rows if (delta := vectors.dense(row, "w")) is not None}
    return dict(transform.apply("w", found, transform.prepare(vectors, None)))


def total(transform: Transform, rows: Sequence[Tensor] | Tensor) -> Tensor:
    """The sum of these rows: what a merge with weights of 1 adds to the base."""
    return torch.stack(list(made(transform, rows).values())).sum(0)


def close(found: Tensor, expected: Sequence[object]) -> None:
    """Compare with numbers of six digits."""
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), rtol=1e-5, atol=1e-5)
