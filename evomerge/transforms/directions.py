"""Directions that the changes of one parameter share, and changes written in them.

In: what each expert does to a matrix, as factors or as a delta. Out: a `Space`, orthonormal directions of its outputs
and of its inputs, with the way into it and back. All of it is computed in float64, so that rounding hardly reaches the
coordinates, which are float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.models.factors import Factors
from evomerge.transforms.svd import NOISE, svd

Change = Factors | Tensor
"""What an expert does to one parameter: factors, or the float32 delta of its shape."""


class Space(NamedTuple):
    """The directions in which the changes of one parameter are written.

    Attributes:
        left: float64 (m, p), with orthonormal columns; None where elements stay as they are.
        right: the same for the inputs, (n, q); None where these stay as they are.
    """

    left: Tensor | None = None
    right: Tensor | None = None

    def into(self, change: Change) -> Tensor:
        """Return the coordinates of a change, float32: (p, q), (p, n), or flat."""
        if self.left is None:
            return (change.whole() if isinstance(change, Factors) else change).reshape(-1)
        if isinstance(change, Factors):
            left, right = self.left.T @ change.left.double(), change.scale * change.right.double()
        else:
            left, right = self.left.T, change.flatten(1).double()
        return (left @ (right if self.right is None else right @ self.right)).float()

    def back(self, coordinates: Tensor, shape: Sequence[int]) -> Tensor:
        """Return the change that has these coordinates, float32 of the parameter's shape."""
        if self.left is None:
            return coordinates.reshape(shape)
        rows = self.left @ coordinates.double()
        return (rows if self.right is None else rows @ self.right.T).float().reshape(shape)


def directions(matrices: Sequence[Tensor]) -> Tensor:
    """Return the left singular vectors of matrices side by side, float64 (m, p), the strongest first, without those
    that carry nothing.

    They are eigenvectors of Σ_k X_k·X_kᵀ, whose eigenvalues are squares: in float64 the smallest ones that are kept are
    still far above its rounding.

    Args:
        matrices: (m, n) each, with an n of its own.
    """
    if sum(one.shape[1] for one in matrices) < len(matrices[0]):
        q, r = torch.linalg.qr(torch.cat([one.double() for one in matrices], dim=1))
        return q @ directions([r])
    squares, vectors = torch.linalg.eigh(reduce(torch.add, (_squared(one.double()) for one in matrices)))
    return vectors[:, squares > NOISE**2 * squares[-1]].flip(1)


def directions_of_products(factors: Sequence[Factors]) -> Tensor:
    """Return the same of the products s·B·A, which are not multiplied out: with [B_1 … B_K] = Q·R, these are Q times
    those of the small matrices s·R_k·A_k.
    """
    q, r = torch.linalg.qr(torch.cat([one.left.double() for one in factors], dim=1))
    parts = r.split([one.rank for one in factors], dim=1)
    return q @ directions([one.scale * part @ one.right.double() for one, part in zip(factors, parts, strict=True)])


def nearest(change: Change, rank: int) -> Change:
    """Return the nearest factors to a matrix, of some rank at most, √s on either side; what has factors already, or is
    no matrix, as it is.
    """
    if isinstance(change, Factors) or change.dim() < 2:
        return change
    u, s, v = svd(change.flatten(1).double()).first(rank)
    return Factors((u * s.sqrt()).float(), (v * s.sqrt()).T.float(), 1.0)


def matrix(change: Change) -> Tensor:
    """Return a change as a matrix, (m, n)."""
    return change.whole().view(change.shape) if isinstance(change, Factors) else change.flatten(1)


def _squared(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T
