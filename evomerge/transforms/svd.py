"""Singular value decompositions of task vectors: all of it, or the largest singular values alone.

In: a matrix, float32. Out: U, s and V. All of it is exact to rounding. The largest alone are cut from that, or found by
a randomised range finder with subspace iteration (Halko, Martinsson and Tropp 2011, algorithms 4.4 and 5.1), which
takes a part of the time where few are asked for. A large matrix is decomposed on the accelerator, where there is one.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown

EXACT, RANDOMISED = WAYS = ("exact", "randomised")
PASSES = 4
"""How often a randomised decomposition goes over its matrix and back. On the matrices of a language model the product
then has .9996 of the squares that the exact one keeps, and is up to 5 % off it: near the cut, directions that are
about as strong stand in for each other."""
LARGE = 512 * 512
"""From so many elements on a matrix is worth the way to an accelerator."""
NOISE = 1e-6
"""Singular values below this share of the largest are taken for zero where vectors are made orthogonal."""


class Svd(NamedTuple):
    """U (m, r), s (r,) and V (n, r) of a matrix, the largest singular values first."""

    u: Tensor
    s: Tensor
    v: Tensor

    def product(self) -> Tensor:
        """Return the matrix, (m, n)."""
        return self.u * self.s @ self.v.T

    def first(self, rank: int) -> Svd:
        """Return the part of the largest singular values."""
        return Svd(self.u[:, :rank], self.s[:rank], self.v[:, :rank])


def svd(matrix: Tensor) -> Svd:
    """Decompose a matrix, (m, n)."""
    u, s, vh = torch.linalg.svd(_placed(matrix), full_matrices=False)
    return Svd(u.to(matrix.device), s.to(matrix.device), vh.T.to(matrix.device))


def leading(matrix: Tensor, rank: int, how: str = EXACT) -> Svd:
    """Return the largest singular values of a matrix with their vectors.

    Args:
        matrix: (m, n), float32.
        rank: how many.
        how: one of `WAYS`; a randomised one is the same each time, and exact where it would take as long.
    """
    size = min(matrix.shape)
    drawn = rank + rank // 2 + 8
    if how == EXACT or 3 * drawn > size:
        return svd(matrix).first(rank)
    if matrix.shape[0] < matrix.shape[1]:
        u, s, v = leading(matrix.T, rank, how)
        return Svd(v, s, u)
    placed = _placed(matrix)
    generator = torch.Generator().manual_seed(0)  # of its own: nothing else depends on it, nor it on others
    found = placed @ torch.randn(size, drawn, generator=generator).to(placed)
    found = torch.linalg.qr(found).Q
    for _ in range(PASSES):
        found = torch.linalg.qr(placed.T @ found).Q
        found = torch.linalg.qr(placed @ found).Q
    u, s, vh = torch.linalg.svd(found.T @ placed, full_matrices=False)
    return Svd((found @ u).to(matrix.device), s.to(matrix.device), vh.T.to(matrix.device)).first(rank)


def orthogonal(vectors: Tensor) -> Tensor:
    """Return the nearest matrix whose columns are orthogonal and of length one: the polar factor.

    Where columns depend on each other there is no such matrix; then directions that they do not span are left out.

    Args:
        vectors: (m, r).
    """
    x, d, y = svd(vectors)
    return x * (d > NOISE * d.max()) @ y.T if len(d) else vectors


def checked_way(transform: str, how: Any) -> str:
    """Return how a transform decomposes.

    Raises:
        ConfigError: there is no such way.
    """
    if how not in WAYS:
        raise ConfigError(f"The transform {transform} has svd={how}: {unknown('choice', how, WAYS)}")
    return how


def _placed(matrix: Tensor) -> Tensor:
    """Return a matrix where it is decomposed: on the accelerator if it is large, and there is one."""
    there = matrix.device.type != "cpu" or matrix.numel() < LARGE or matrix.dtype == torch.float64
    return matrix if there or not torch.cuda.is_available() else matrix.to("cuda")
