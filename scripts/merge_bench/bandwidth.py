"""The bandwidth of memory: the fastest of a copy, a sum that only reads, and a sum of several inputs into one output.

Each is done in numba and in torch, with the threads of torch, over buffers of a model's size that were really written
to: pages that never were are all the same page, which lies in the processor's cache.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import numba
import numpy as np
import torch

from evomerge.merging.kernels.cpu import share

PIECE = 1 << 18
"""Elements that a thread of a numba loop takes at a time."""


def probes(nbytes: int, inputs: set[int]) -> dict[str, tuple[int, Callable[[int], float]]]:
    """Return what measures bandwidth: by name the bytes that are moved, and what moves them
    (in a round) and returns its seconds.

    Args:
        nbytes: of a buffer.
        inputs: the numbers of inputs to sum up.
    """
    count = nbytes // 4
    rows = torch.empty(max(inputs), count).uniform_()
    out = torch.empty(count).uniform_()
    numbers, written = rows.numpy(), out.numpy()
    words = numbers.view(np.int64)
    found: dict[str, tuple[int, Callable[[], object]]] = {
        "torch copy": (2 * nbytes, lambda: out.copy_(rows[0])),
        "torch read": (nbytes, lambda: rows[0].sum()),
        "numba copy": (2 * nbytes, lambda: _shared(count, lambda a, b: _copy(numbers[0], written, a, b))),
        "numba read": (nbytes, lambda: _shared(count // 2, lambda a, b: _read(words[0], a, b))),
    }
    for number in sorted(inputs):
        add, some = _adder(number), rows[:number]
        found[f"torch sum of {number}"] = ((number + 1) * nbytes, lambda some=some: torch.sum(some, 0, out=out))
        found[f"numba sum of {number}"] = (
            (number + 1) * nbytes,
            lambda add=add: _shared(count, lambda a, b: add(numbers, written, a, b)),
        )
    return {name: (moved, _timed(work)) for name, (moved, work) in found.items()}


def _timed(work: Callable[[], object]) -> Callable[[int], float]:
    def run(number: int) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def _shared(count: int, work: Callable[[int, int], object]) -> None:
    """Do something with some elements in all threads."""
    pieces = -(-count // PIECE)
    share(lambda first, last: int(bool(work(first * PIECE, min(last * PIECE, count)))), pieces, count)


@numba.njit("void(float32[::1], float32[::1], int64, int64)", nogil=True)
def _copy(source, target, first, last):
    source, target = source[first:last], target[first:last]
    for i in range(len(target)):
        target[i] = source[i]


@numba.njit("int64(int64[::1], int64, int64)", nogil=True)
def _read(source, first, last):
    source, total = source[first:last], 0
    for i in range(len(source)):
        total += source[i]
    return total


def _adder(number: int) -> Callable[..., None]:
    """Return what adds up rows: written out, so that each element of each row is read once."""
    lines = [
        "def add(rows, out, first, last):",
        "    out = out[first:last]",
        *(f"    row{k} = rows[{k}, first:last]" for k in range(number)),
        "    for i in range(len(out)):",
        f"        out[i] = {' + '.join(f'row{k}[i]' for k in range(number))}",
    ]
    space: dict[str, Callable[..., None]] = {}
    exec("\n".join(lines), space)
    return numba.njit("void(float32[:, ::1], float32[::1], int64, int64)", nogil=True)(space["add"])
