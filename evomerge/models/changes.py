"""What an adapter makes of a tensor of its base, each in float32: one function for each way to change it.

In: θ₀ of one parameter, in the dtype of its file, and what the adapter holds for it. Out: θ_k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.models.factors import Factors


def summed(base: Tensor, factors: Factors) -> Tensor:
    """Return θ₀ + s·B·A (Hu et al. 2022)."""
    return base.float() + factors.whole().view(base.shape)


def dora(base: Tensor, factors: Factors, lengths: Tensor, columns: bool) -> Tensor:
    """Return m · (θ₀ + s·B·A) / ‖θ₀ + s·B·A‖ (Liu et al. 2024, arXiv 2402.09353), in float64 and rounded once.

    Args:
        base: θ₀.
        factors: of it.
        lengths: m, of any shape.
        columns: whether each column has a length, and not each row.
    """
    whole = base.double().reshape(factors.shape) + (factors.left.double() @ factors.right.double()) * factors.scale
    along = 0 if columns else 1
    whole *= (lengths.double().reshape(-1) / torch.linalg.vector_norm(whole, dim=along)).unsqueeze(along)
    return whole.float().view(base.shape)


def biased(base: Tensor, added: Tensor, scale: float) -> Tensor:
    """Return a bias with that of the factors added, times s."""
    return base.float() + added.float() * scale


def with_rows(base: Tensor, rows: Tensor, places: Sequence[int]) -> Tensor:
    """Return the base with some rows replaced."""
    whole = base.to(torch.float32, copy=True)
    whole[list(places)] = rows.float()
    return whole
