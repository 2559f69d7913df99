"""Elements of a delta sorted by magnitude, the largest first and equal ones by their place; and ranks within rows.

In: a delta, and where to write. Out: the places of its elements in that order, uint32 (n,); or the rank of each element
within its row, uint16 (n,). The delta is read in pieces. What is sorted at once are the elements of a range of
magnitudes, at most `TOGETHER` of them if they differ, in two buffers of eight bytes an element: a delta of any length
takes the memory of one range. Where numba is not supported, torch sorts whole deltas.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from threading import local
from types import ModuleType

import numpy as np
import torch

from evomerge.task_vectors.delta import Delta

PIECE = 1 << 15
"""Elements that are read together, in the processor's cache; torch does not divide so few among threads of its own."""
TOGETHER = 1 << 23
"""Elements that are sorted together: 128 MiB of buffers for each thread."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Range:
    """Magnitudes whose bits are from `low` to `high`, and how many elements have them."""

    low: int
    high: int
    size: int


class Sorter:
    """Sorts deltas; it keeps its buffers, so each thread needs one of its own."""

    def __init__(self) -> None:
        self._buffers = np.empty((2, 0), np.uint64)

    def order(self, delta: Delta, out: np.ndarray) -> None:
        """Write the places of the elements, the largest magnitude first; equal ones in the order of their places.

        Args:
            delta: finite, of at most 2³² elements.
            out: uint32 (n,).
        """
        if (radix := _radix()) is None:
            out[:] = torch.argsort(_magnitudes(delta), descending=True, stable=True).numpy()
            return
        done = 0
        for part in _ranges(delta, radix):
            target = out[done : done + part.size]
            done += part.size
            if part.low == part.high:
                _equal(delta, part.low, target)
            else:
                self._sort(delta, part, target, radix)

    def _sort(self, delta: Delta, part: _Range, out: np.ndarray, radix: ModuleType) -> None:
        if self._buffers.shape[1] <= part.size:
            self._buffers = np.empty((2, 0), np.uint64)  # the old ones are freed first
            self._buffers = np.empty((2, part.size + 1), np.uint64)
        source, target = self._buffers
        counts, found = np.zeros((radix.DIGITS, radix.BINS), np.int64), 0
        for start, bits in _pieces(delta):
            found = radix.collect(bits, np.uint64(start), part.low, part.high, source, found)
        source, target = source[:found], target[:found]
        radix.digits(source, counts)
        for digit in range(radix.DIGITS):
            if counts[digit].max() < found:  # else all have the same
                radix.scatter(source, target, digit, counts[digit])
                source, target = target, source
        np.copyto(out, source, casting="unsafe")  # the lower half of each pair


def rank_rows(delta: Delta, width: int, out: np.ndarray) -> None:
    """Write the rank of each element by magnitude within its row, from 0 for the smallest; equal ones by their place.

    Args:
        delta: whole rows, flat (n,).
        width: of a row, up to 2¹⁶.
        out: uint16 (n,).
    """
    radix = _radix()
    for start in range(0, len(delta), size := width * max(1, PIECE // width)):
        piece = delta[start : start + size]
        if radix is not None:
            radix.rank_rows(_bits(piece), width, out[start : start + size])
        else:
            order = torch.argsort(_magnitudes(piece).view(-1, width), dim=1, stable=True)
            out[start : start + size] = torch.argsort(order, dim=1).view(-1).numpy()


class _Own(local):
    """What each thread has for itself."""

    def __init__(self) -> None:
        self.sorter = Sorter()


def in_threads(
    work: Callable[[Sorter, int], None], sizes: Sequence[int], progress: Callable[[int, int], None] | None = None
) -> None:
    """Do pieces of work on as many threads as torch uses, the largest first.

    Args:
        work: does one, by its index, with the sorter of its thread.
        sizes: of the pieces.
        progress: told how much is done and how much there is, by this thread.
    """
    own, done = _Own(), 0

    def do(index: int) -> int:
        work(own.sorter, index)
        return sizes[index]

    pool = ThreadPoolExecutor(torch.get_num_threads())
    try:
        largest_first = sorted(range(len(sizes)), key=lambda index: -sizes[index])
        for future in as_completed([pool.submit(do, index) for index in largest_first]):
            done += future.result()
            if progress:
                progress(done, sum(sizes))
    finally:
        pool.shutdown(cancel_futures=True)


@functools.cache
def _radix() -> ModuleType | None:
    """Return the compiled loops; None where they cannot be had, which is said once."""
    try:
        from evomerge.task_vectors import radix
    except Exception as error:  # numba raises whatever its parts do on platforms that it does not support
        logger.warning("numba cannot be used here (%s): magnitudes are sorted by torch, which is slower", error)
        return None
    return radix


def _ranges(delta: Delta, radix: ModuleType) -> Iterator[_Range]:
    """Yield ranges of magnitudes, the largest first, that are sorted one by one; none is empty."""
    if len(delta) <= TOGETHER:
        yield from [_Range(0, 0x7FFFFFFF, len(delta))] if len(delta) else []
        return
    counts = np.zeros(radix.BINS + 1, np.int64)
    for _, bits in _pieces(delta):
        radix.count(bits, counts)
    found = [(b, int(counts[b])) for b in np.flatnonzero(counts)[::-1]]
    while found:
        top, size = found.pop(0)
        last = top
        while found and top and found[0][0] and size + found[0][1] <= TOGETHER:  # zeros stay by themselves
            last, more = found.pop(0)
            size += more
        yield _Range(((last - 1) << 20) + 1, top << 20, size) if top else _Range(0, 0, size)


def _equal(delta: Delta, magnitude: int, out: np.ndarray) -> None:
    """Write the places of the elements of one magnitude."""
    done = 0
    for start, bits in _pieces(delta):
        places = np.flatnonzero((bits & np.uint32(0x7FFFFFFF)) == magnitude)
        out[done : done + len(places)] = places + start
        done += len(places)


def _pieces(delta: Delta) -> Iterator[tuple[int, np.ndarray]]:
    """Yield the bits of a delta in pieces, uint32, each with the place of its first element."""
    for start in range(0, len(delta), PIECE):
        yield start, _bits(delta[start : start + PIECE])


def _bits(delta: Delta) -> np.ndarray:
    return delta.dense().cpu().view(torch.int32).numpy().view(np.uint32)


def _magnitudes(delta: Delta) -> torch.Tensor:
    return delta.dense().abs().cpu()
