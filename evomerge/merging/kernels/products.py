"""Inner products of a parameter's gradient with its deltas, of which the gradient of a merge is made.

In: the gradient of one parameter, whole or in a span, and its K deltas there. Out: ⟨gradient, delta_k⟩ for each, block
by block, to be summed in float64.

All K deltas are read in one pass, as a matrix-vector product: one core reads several places of memory at once about
twice as fast as one after the other, and the gradient once instead of K times. They must lie below each other for that;
whoever takes products again and again keeps them so (`stack`), others are copied or computed block by block.

BLAS takes them in float32 or better: of eleven million elements the relative error is a few 1e-6, by the kind of CPU.
What it makes of a block may depend on where in 64 bytes the operands begin, so all always begin at a multiple of that;
and, on some CPUs, on the place of a row among the rows. So does what `stack` and
torch allocate; a span of a parameter may begin anywhere, and is copied then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.task_vectors.dense import ALIGNMENT
from evomerge.task_vectors.expert import ExpertDelta

BLOCK = 1 << 18  # elements at a time: of four times as many, a matrix-vector product errs by 2e-6 instead of 1e-7


def stack(deltas: Sequence[Tensor | ExpertDelta]) -> Tensor:
    """Copy K deltas (n,), or compute them, into float32 (K, n) whose rows begin at multiples of 64 bytes."""
    return _fill(_room(deltas, len(deltas[0])), deltas)


def inner_products(gradient: Tensor, deltas: Tensor | Sequence[Tensor | ExpertDelta]) -> Iterator[Tensor]:
    """Yield the inner products of a gradient with K deltas, by block.

    Args:
        gradient: of any float dtype, (n,).
        deltas: (K, n) as `stack` makes them; or float32, (n,) each, or not computed yet.

    Yields:
        float32 or better, (K,); what is looked for is their sum. The same bits for either form of the deltas.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    for part, rows in zip(gradient.split(BLOCK), _blocks(deltas, len(gradient)), strict=True):
        yield torch.mv(rows.to(part.dtype), part.clone() if part.data_ptr() % ALIGNMENT else part)


def _blocks(deltas: Tensor | Sequence[Tensor | ExpertDelta], size: int) -> Iterator[Tensor]:
    """Yield (K, up to BLOCK), one after the other; each may overwrite the one before."""
    if isinstance(deltas, Tensor):
        yield from deltas.split(BLOCK, dim=1)
        return
    room = _room(deltas, min(BLOCK, size))
    for start in range(0, size, BLOCK):
        yield _fill(room[:, : size - start], [each[start : start + BLOCK] for each in deltas])


def _room(deltas: Sequence[Tensor | ExpertDelta], size: int) -> Tensor:
    """Return float32 (K, size) on the device of the deltas, whose rows begin at multiples of 64 bytes."""
    first = deltas[0].expert if isinstance(deltas[0], ExpertDelta) else deltas[0]
    step = ALIGNMENT // torch.float32.itemsize
    return torch.empty(len(deltas), -(-size // step) * step, dtype=torch.float32, device=first.device)[:, :size]


def _fill(rows: Tensor, deltas: Sequence[Tensor | ExpertDelta]) -> Tensor:
    """Write deltas into rows, and return these."""
    for row, delta in zip(rows, deltas, strict=True):
        if isinstance(delta, ExpertDelta):
            row.copy_(delta.expert).sub_(delta.base)
        else:
            row.copy_(delta)
    return rows
