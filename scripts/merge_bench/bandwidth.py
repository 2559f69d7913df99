"""The bandwidth of memory: the fastest of a copy, a sum that only reads, and a sum of several inputs into one output.

Each is done by a compiled kernel, written as those of merges are, and by torch, with the threads of torch, over buffers
of a model's size. Inputs lie in the pages of a file and the output in those of the process, as weights and model do: a
file's pages mostly lie side by side in memory, others do not, and are read at two thirds of the speed. What only reads
goes through many inputs: a single one does not keep the memory busy, and starting threads would be a good part of its
time.
"""

from __future__ import annotations

import functools
import operator
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from evomerge.merging.kernels.compiled import function, lanes
from evomerge.merging.kernels.cpu import share
from evomerge.merging.kernels.lanes import FLOAT, Code, Value, Variable, counted

PIECE = 1 << 18
"""Elements that a thread of a kernel takes at a time."""


def probes(directory: Path, nbytes: int, inputs: set[int]) -> dict[str, tuple[int, Callable[[int], float]]]:
    """Return what measures bandwidth: by name the bytes that are moved, and what moves them
    (in a round) and returns its seconds; those of torch come last.

    Args:
        directory: where a file is written.
        nbytes: of a buffer.
        inputs: the numbers of inputs to sum up.
    """
    count = nbytes // 256 * 64  # whole steps of all kernels
    file, shape = directory / "inputs", (max(inputs), count)
    np.memmap(file, np.float32, "w+", shape=shape)[:] = np.linspace(0, 1, count, dtype=np.float32)
    rows = torch.from_numpy(np.memmap(file, np.float32, "c", shape=shape))
    out = torch.empty(count).uniform_()
    found: dict[str, tuple[int, Callable[[], object]]] = {"kernel copy": (2 * nbytes, _shared(_adding(1), rows, out))}
    for number in sorted(inputs):
        found[f"kernel read of {number}"] = (number * nbytes, _shared(_reading(number), rows, out))
        found[f"kernel sum of {number}"] = ((number + 1) * nbytes, _shared(_adding(number), rows, out))
    found["torch copy"] = (2 * nbytes, lambda: out.copy_(rows[0]))
    found["torch read"] = (nbytes * len(rows), rows.sum)
    for number in sorted(inputs):
        work = functools.partial(torch.sum, rows[:number], 0, out=out)
        found[f"torch sum of {number}"] = ((number + 1) * nbytes, work)
    return {name: (moved, _timed(work)) for name, (moved, work) in found.items()}


def _timed(work: Callable[[], object]) -> Callable[[int], float]:
    def run(number: int) -> float:
        started = time.perf_counter()
        work()
        return time.perf_counter() - started

    return run


def _shared(text: str, rows: torch.Tensor, out: torch.Tensor) -> Callable[[], object]:
    """Return what does something with all elements, in all threads."""
    work, count = function(text, "probe", 4, "a probe of the bandwidth"), rows.shape[1]
    stride, at, to = rows.stride(0) * 4, rows.data_ptr(), out.data_ptr()
    pieces = -(-count // PIECE)

    def some(first: int, last: int) -> int:
        start, stop = first * PIECE, min(last * PIECE, count)
        return work(at + 4 * start, stride, to + 4 * start, stop - start)

    return lambda: share(some, pieces, count)


def _reading(number: int) -> str:
    """Return the text of what reads rows, and adds up all their elements in some lanes."""
    code, wide = Code("probe", 4), lanes()
    source, stride, _, count = code.arguments
    element, total = Variable(code.number(0)), Variable(code.number(0, FLOAT).spread(wide))
    with code.loop(element, count) as i:
        total.set(total.get() + _sum(code, number, source + i * 4, stride, wide))
        element.set(i + wide)
    return code.returned(counted(total.get().same(0)))


def _adding(number: int) -> str:
    """Return the text of what adds up rows, so that each element of each row is read once; of a copy for one row."""
    code, wide = Code("probe", 4), lanes()
    source, stride, target, count = code.arguments
    element = Variable(code.number(0))
    with code.loop(element, count) as i:
        code.store(_sum(code, number, source + i * 4, stride, wide), target + i * 4)
        element.set(i + wide)
    return code.returned(count)


def _sum(code: Code, number: int, address: Value, stride: Value, wide: int) -> Value:
    rows = (code.load(FLOAT, address + stride * k, wide) for k in range(number))
    return functools.reduce(operator.add, rows)
