"""Transforms with the settings of their files, and task vectors on which they are held against published numbers."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.recipes.catalog import TRANSFORMS
from evomerge.runs.choices import load_choice
from evomerge.transforms.base import Transform
from tests.kit.vectors import vectors_of

T3 = torch.tensor([[3.0, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1], [2, 1, 0, -1, -3, 1]])
W1 = torch.diag(torch.tensor([4.0, 2, 1, 0.5]))
W2 = torch.tensor([[1.2, 0.6, 0.4, 0.8], [0.6, 1.2, 0.8, 0.4], [0.8, 0.4, 0.6, 1.2], [0.4, 0.8, 1.2, 0.6]])


def usual(name: str, **other: int) -> Transform:
    """The transform of that name with the settings of its file, but for others."""
    (settings,) = load_choice("transform", name).values()
    given = {key: value for key, value in settings.items() if key not in ("_target_", "only", "rest")}
    return TRANSFORMS[name](**{**given, **other})


def quick(name: str) -> Transform:
    """The same, with few steps where it takes any, and a rank where it wants factors."""
    own = usual(name).settings
    return usual(name, **{key: value for key, value in {"steps": 3, "rank": 5}.items() if key in own})


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
