"""Single elements of a delta, read without a tensor on the way: for cuts, one for each span and row of a candidate.

In: a delta. Out: a function of a place that returns its element, some ten times faster than a slice of one element.
A difference is taken in float64 and rounded to float32 by whoever needs that: the same number as in float32, since
float64 has more than twice the digits (Figueroa 1995, "When is double rounding innocuous?").
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta

Read = Callable[[int], float]
"""Returns the element at a place."""

NATIVE = (torch.float32, torch.float16)
_BITS, _FLOAT = struct.Struct("<I"), struct.Struct("<f")


def reader(delta: Delta) -> Read:
    """Return what reads single elements of a delta."""
    if isinstance(delta, DenseDelta) and (values := _reader(delta.values)):
        return values
    if isinstance(delta, ExpertDelta) and (expert := _reader(delta.expert)) and (base := _reader(delta.base)):
        return lambda place: expert(place) - base(place)
    return lambda place: delta[place : place + 1].dense().item()


def bits_of(magnitude: float) -> int:
    """Return the bits of a number's float32, as an unsigned integer."""
    return _BITS.unpack(_FLOAT.pack(magnitude))[0]


def _reader(tensor: Tensor) -> Read | None:
    """Return what reads single elements of a tensor; None for devices and dtypes that have no other way."""
    if tensor.device.type != "cpu":
        return None
    if tensor.dtype in NATIVE:
        return tensor.numpy().item
    if tensor.dtype != torch.bfloat16:
        return None
    words = tensor.view(torch.int16).numpy().view("uint16").item
    return lambda place: _FLOAT.unpack(_BITS.pack(words(place) << 16))[0]
