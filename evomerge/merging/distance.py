"""How far a model lies from its base: ‖θ − θ₀‖ / ‖θ₀‖, the length of what a merge changes as a share of the base's.

In: tensors of the two. Out: sums of squares in float64, a chunk at a time; and the quotient of their roots. It is taken
of the merged weights, rounded as they are stored, so it is right for every method, at the price of one pass over the
live model and the base for each candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from evomerge.task_vectors.spans import chunks

CHUNK = 1 << 16
"""Elements that are squared together on a CPU, half a MiB of float64, which stays in the cache."""
CHUNK_FAR = 1 << 24
"""The same of other devices, where starting a kernel takes longer."""
BITS = 30
"""Binary digits of a distance that are kept, nine decimal ones. The last ones depend on the order in which chunks are
added up; and without them the mean of the same distance over a million items is that distance, with no spread."""


def squares(one: Tensor, other: Tensor | None = None) -> float:
    """Return the sum of the squares of the elements of a tensor, or of its difference to another one.

    Args:
        one: of any shape and dtype.
        other: of the same shape; it may lie elsewhere, and is rounded to the dtype of the first.
    """
    device = torch.device("cpu") if one.device.type == "mps" else one.device  # Apple's has no float64
    flat, beside = one.reshape(-1), None if other is None else other.reshape(-1)
    sums = list[Tensor]()
    for part in chunks(len(flat), CHUNK if device.type == "cpu" else CHUNK_FAR):
        wide = flat[part].to(device).to(torch.float64, copy=True)
        if beside is not None:
            wide -= beside[part].to(flat.dtype).to(device).to(torch.float64)
        sums.append(wide.square_().sum())
    return math.fsum(map(float, sums))


def relative(apart: Iterable[float], length: float) -> float:
    """Return a distance as a share of a length, to `BITS`; the distance itself where nothing has a length.

    Args:
        apart: sums of squares.
        length: the length.
    """
    found = math.sqrt(math.fsum(apart)) / (length or 1.0)
    if not math.isfinite(found):
        return found
    mantissa, exponent = math.frexp(found)
    return math.ldexp(round(math.ldexp(mantissa, BITS)), exponent - BITS)
