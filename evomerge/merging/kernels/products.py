"""Inner products of a parameter's gradient with its deltas, of which the gradient of a merge is made.

In: the gradient of one parameter, whole or in a span, and its K deltas there. Out: ⟨gradient, delta_k⟩ for each, chunk
by chunk, to be summed in float64.

All K deltas are read in one pass, as a matrix-vector product: one core reads several places of memory at once about
twice as fast as one after the other, and the gradient once instead of K times. They must lie below each other for that;
whoever takes products again and again keeps them so (`stack`), others are copied or computed chunk by chunk.

BLAS takes them in float32 or better: of eleven million elements the relative error is a few 1e-6, by the kind of CPU.
What it makes of a chunk may depend on where in 64 bytes the operands begin, so all always begin at a multiple of that;
and, on some CPUs, on the place of a row among the rows. So does what `stack` and
torch allocate; a span of a parameter may begin anywhere, and is copied then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import ALIGNMENT
from evomerge.task_vectors.spans import CHUNK


def stack(deltas: Sequence[Delta], device: torch.device) -> Tensor:
    """Copy K deltas of n elements, or compute them, into float32 (K, n) whose rows begin at multiples of 64 bytes."""
    return _fill(_room(len(deltas), len(deltas[0]), device), deltas)


def inner_products(gradient: Tensor, deltas: Tensor | Sequence[Delta]) -> Iterator[Tensor]:
    """Yield the inner products of a gradient with K deltas, by chunk.

    Args:
        gradient: of any float dtype, (n,).
        deltas: (K, n) as `stack` makes them; or K deltas of n elements, on the gradient's device.

    Yields:
        float32 or better, (K,); what is looked for is their sum. The same bits for either form of the deltas.
    """
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    for some, rows in zip(gradient.split(CHUNK), _chunks(deltas, gradient), strict=True):
        yield torch.mv(rows.to(some.dtype), some.clone() if some.data_ptr() % ALIGNMENT else some)


def _chunks(deltas: Tensor | Sequence[Delta], gradient: Tensor) -> Iterator[Tensor]:
    """Yield (K, up to CHUNK), one after the other; each may overwrite the one before."""
    if isinstance(deltas, Tensor):
        yield from deltas.split(CHUNK, dim=1)
        return
    size = len(gradient)
    room = _room(len(deltas), min(CHUNK, size), gradient.device)
    for start in range(0, size, CHUNK):
        yield _fill(room[:, : size - start], [each[start : start + CHUNK] for each in deltas])


def _room(rows: int, size: int, device: torch.device) -> Tensor:
    """Return float32 (rows, size) whose rows begin at multiples of 64 bytes."""
    step = ALIGNMENT // torch.float32.itemsize
    return torch.empty(rows, -(-size // step) * step, dtype=torch.float32, device=device)[:, :size]


def _fill(rows: Tensor, deltas: Sequence[Delta]) -> Tensor:
    """Write deltas into rows, and return these."""
    for row, delta in zip(rows, deltas, strict=True):
        delta.write(row)
    return rows
