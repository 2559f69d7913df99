"""The weighted sum of factors as factors again: exact, of all their ranks together, or of a lower rank.

In: for one parameter, the factors of the experts, and their weights row by row. Out: the two factors of
Σ_k diag(λ_k) s_k B_k A_k: of rank Σ r_k by writing them side by side; or of rank r, the nearest ones in the Frobenius
norm (Eckart and Young 1936), with what is lost. The same of any matrix. Never the sums of B and of A, whose product is
another matrix.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.models.factors import Factors


@dataclass(frozen=True, eq=False)
class Combined:
    """The factors of one parameter.

    Attributes:
        left: float32 (m, r).
        right: float32 (r, n).
        size: the square of the Frobenius norm of what they stand for.
        lost: the square of that of what they leave out.
    """

    left: Tensor
    right: Tensor
    size: float
    lost: float = 0.0

    @property
    def rank(self) -> int:
        """The number r of their columns and rows."""
        return len(self.right)


def combined(factors: Sequence[Factors], weights: Sequence[Tensor], rank: int | None = None) -> Combined:
    """Return the weighted sum of factors.

    Args:
        factors: of K experts, of one shape (m, n).
        weights: of each, float64 (m,): λ of the group that the row belongs to.
        rank: at most; None for that of all together.
    """
    left = torch.cat(
        [one.left.double() * (one.scale * weight[:, None]) for one, weight in zip(factors, weights, strict=True)], dim=1
    )
    right = torch.cat([one.right.double() for one in factors])
    outer, upper = torch.linalg.qr(left)
    inner, lower = torch.linalg.qr(right.T)
    first, values, second = torch.linalg.svd(upper @ lower.T)
    if rank is None or rank >= len(right):
        return Combined(left.float(), right.float(), float(values.square().sum()))
    return _nearest(outer @ first, values, second @ inner.T, rank)


def truncated(matrix: Tensor, rank: int) -> Combined:
    """Return the nearest factors of a matrix.

    Args:
        matrix: of any rank (m, n).
        rank: at most.
    """
    first, values, second = torch.linalg.svd(matrix.double(), full_matrices=False)
    return _nearest(first, values, second, rank)


def _nearest(first: Tensor, values: Tensor, second: Tensor, rank: int) -> Combined:
    """Return factors of the largest singular values.

    Args:
        first: float64 (m, q).
        values: in descending order, (q,).
        second: (q, n).
        rank: how many.
    """
    root, squares = values[:rank].sqrt(), values.square()
    left, right = first[:, :rank] * root, second[:rank] * root[:, None]
    return Combined(left.float(), right.float(), float(squares.sum()), float(squares[rank:].sum()))
