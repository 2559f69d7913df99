"""Cuts: which elements of a delta are among the largest, and how they are found without sorting.

In: deltas, and how many of their elements are kept. Out: a `Cut` for each. The bits of a magnitude in float32, read as
an integer, grow with it, so a cut is a number of bits and, of the elements that have these bits, a place. Whoever looks
for many cuts of the same deltas sorts these once (`orders.py`); for a single one, three passes over them are enough.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.spans import CHUNK, chunks

HALF = 1 << 16

_Key = TypeVar("_Key")


class Cut(NamedTuple):
    """Which elements of a delta are among the largest.

    Attributes:
        bits: those whose magnitude in float32 has larger bits, read as an unsigned integer,
        stop: and of those that have these bits, the ones whose place in the delta is smaller.
    """

    bits: int
    stop: int

    def keeps(self, values: Tensor, start: int = 0) -> Tensor:
        """Return whether elements are kept, bool (m,).

        Args:
            values: some elements of the delta that follow each other, float32 (m,).
            start: the place of the first of them.
        """
        bits = _bits(values)
        keep = bits > self.bits
        before = max(0, self.stop - start)
        keep[:before] |= bits[:before] == self.bits
        return keep


NOTHING = Cut(0x7FFFFFFF, 0)


def count(density: float, size: int) -> int:
    """Return how many elements a share of them is: 29 of 100 at .29, which times 100 is 28.999999999999996."""
    return math.floor(density * size + 1e-9)


def find_cuts(deltas: Mapping[_Key, Delta], rank: int, order: Iterable[_Key]) -> dict[_Key, Cut]:
    """Find the cuts that keep exactly `rank` elements of all deltas together, of equal ones those that come first.

    A first pass counts the upper halves of the bits and so finds the one in which the last kept element lies, a second
    counts the lower halves within it, and a third finds where the last of the equal ones stands.

    Args:
        deltas: finite; each is asked for when it is looked at, and computed chunk by chunk.
        rank: how many elements are kept; if there are fewer, all of them are.
        order: of the deltas, in which equal elements are kept; keys without a delta may be among them.
    """
    keys = [key for key in order if key in deltas]
    if rank <= 0:
        return dict.fromkeys(keys, NOTHING)
    upper, lower = torch.zeros(HALF // 2, dtype=torch.int64), torch.zeros(HALF, dtype=torch.int64)
    for _, bits in _chunks(deltas, keys):
        upper += torch.bincount(bits >> 16, minlength=len(upper))
    if rank >= int(upper.sum()):
        return {key: Cut(0, len(deltas[key])) for key in keys}
    high, left = _bin(upper, rank)
    for _, bits in _chunks(deltas, keys):
        lower += torch.bincount(bits[bits >> 16 == high] & (HALF - 1), minlength=len(lower))
    low, left = _bin(lower, left)
    cutoff, stops = high << 16 | low, dict.fromkeys(keys, 0)
    for key, bits in _chunks(deltas, keys):
        equal = bits == cutoff
        if (found := int(equal.sum())) > left:
            stops[key] += int(equal.nonzero()[left])
            break
        stops[key] += len(bits)
        left -= found
    return {key: Cut(cutoff, stop) for key, stop in stops.items()}


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin in which the element of this rank lies, from 1 for the largest, and its rank within the bin."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    return len(counts) - 1 - place, rank - (int(above[place - 1]) if place else 0)


def _chunks(deltas: Mapping[_Key, Delta], keys: Iterable[_Key]) -> Iterator[tuple[_Key, Tensor]]:
    """Yield the bits of all magnitudes in order, a chunk at a time."""
    for key in keys:
        delta = deltas[key]
        for chunk in chunks(len(delta), CHUNK):
            yield key, _bits(delta[chunk].dense())


def _bits(values: Tensor) -> Tensor:
    """The bits of each magnitude as an integer, int32 from 0: as integers they are ordered like the magnitudes."""
    return values.abs().view(torch.int32)
