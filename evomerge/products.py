"""Inner products of a parameter's gradient with its deltas, of which the gradient of a merge is made.

In: the gradient of one parameter, whole or in a span, and its K deltas there. Out: ⟨gradient, delta_k⟩ for each, block
by block, to be summed in float64.

BLAS takes them in float32 or better: of eleven million elements the relative error is 1e-6. What it makes of a block
may depend on where in 64 bytes the operands begin, so both always begin at a multiple of that. Deltas do, as their
files have them, and so does what torch allocates; a span of a parameter may begin anywhere, and is copied then.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor

from evomerge.delta_files import ALIGNMENT
from evomerge.expert_deltas import ExpertDelta

BLOCK = 1 << 20  # elements at a time


def inner_products(gradient: Tensor, deltas: Sequence[Tensor | ExpertDelta]) -> Iterator[Tensor]:
    """Yield the inner products of a gradient with K deltas, by block.

    Args:
        gradient: of any float dtype, (n,).
        deltas: float32, (n,) each; or not computed yet.

    Yields:
        float32 or better, (K,); what is looked for is their sum.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    if gradient.numel() <= BLOCK:  # most are small, and then slices take longer than sums
        yield _dots(gradient, deltas)
        return
    for start in range(0, len(gradient), BLOCK):
        yield _dots(gradient[start : start + BLOCK], (delta[start : start + BLOCK] for delta in deltas))


def _dots(part: Tensor, others: Iterable[Tensor | ExpertDelta]) -> Tensor:
    part = _aligned(part, part.dtype)
    return torch.stack([torch.dot(part, _aligned(other, part.dtype)) for other in others])


def _aligned(delta: Tensor | ExpertDelta, dtype: torch.dtype) -> Tensor:
    """Return the tensor in a dtype, or a copy of it, that begins at a multiple of 64 bytes."""
    tensor = delta.dense() if isinstance(delta, ExpertDelta) else delta
    if tensor.dtype != dtype:
        return tensor.to(dtype)
    return tensor.clone() if tensor.data_ptr() % ALIGNMENT else tensor
