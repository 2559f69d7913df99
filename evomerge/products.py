"""Inner products of a parameter's gradient with its deltas, of which the gradient of a merge is made.

In: the gradient of one parameter, whole or in a span, and its K deltas there. Out: ⟨gradient, delta_k⟩ for each, block
by block, to be summed in float64.

Deltas that lie below each other in memory (`stack`) are all read in one pass, as a matrix-vector product: one core
reads several places of memory at once about twice as fast as one after the other, and the gradient once instead of K
times.

BLAS takes them in float32 or better: of eleven million elements the relative error is 1e-6. What it makes of a block
may depend on where in 64 bytes the operands begin, so all always begin at a multiple of that. Deltas do, as their files
and `stack` have them, and so does what torch allocates; a span of a parameter may begin anywhere, and is copied then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.delta_files import ALIGNMENT
from evomerge.expert_deltas import ExpertDelta

BLOCK = 1 << 18  # elements at a time: of four times as many, a matrix-vector product errs by 2e-6 instead of 1e-7


def stack(deltas: Sequence[Tensor]) -> Tensor:
    """Copy K float32 deltas (n,) into a tensor (K, n) whose rows begin at multiples of 64 bytes."""
    step = ALIGNMENT // deltas[0].element_size()
    size = len(deltas[0])
    rows = deltas[0].new_empty(len(deltas), -(-size // step) * step)[:, :size]
    for row, delta in zip(rows, deltas, strict=True):
        row.copy_(delta)
    return rows


def inner_products(gradient: Tensor, deltas: Tensor | Sequence[Tensor | ExpertDelta]) -> Iterator[Tensor]:
    """Yield the inner products of a gradient with K deltas, by block.

    Args:
        gradient: of any float dtype, (n,).
        deltas: float32, (n,) each, or not computed yet; or (K, n) as `stack` makes them.

    Yields:
        float32 or better, (K,); what is looked for is their sum.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if gradient.numel() <= BLOCK:  # most are small, and then slices take longer than sums
        yield _products(gradient, deltas)
        return
    for start in range(0, len(gradient), BLOCK):
        block = slice(start, start + BLOCK)
        yield _products(
            gradient[block], deltas[:, block] if isinstance(deltas, Tensor) else [each[block] for each in deltas]
        )


def _products(part: Tensor, others: Tensor | Sequence[Tensor | ExpertDelta]) -> Tensor:
    part = _aligned(part, part.dtype)
    if isinstance(others, Tensor):
        return torch.mv(others.to(part.dtype), part)
    return torch.stack([torch.dot(part, _aligned(other, part.dtype)) for other in others])


def _aligned(delta: Tensor | ExpertDelta, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a dtype, or a copy of it, that begins at a multiple of 64 bytes."""
    tensor = delta.dense() if isinstance(delta, ExpertDelta) else delta
    if tensor.dtype != dtype:
        return tensor.to(dtype)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
