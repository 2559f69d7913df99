"""Spans: named runs of elements of one parameter, which groups and deltas speak of; and the chunks they are read in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

CHUNK = 1 << 18
"""Elements that are worked on together, 1 MiB of float32 for each row: few enough for a processor's cache.

Merges do not depend on it, since it is a multiple of all that a sum over vectors depends on (`kernels/exact.py`).
"""


@dataclass(frozen=True)
class Span:
    """Elements `start` to `stop` (exclusive) of one parameter, counted in its flattened form."""

    parameter: str
    start: int
    stop: int


def chunks(length: int, size: int) -> Iterator[slice]:
    """Yield 0 to `length` in chunks of at most `size`. The last one may have `size + 1`: torch adds up a single element
    in another order.
    """
    start = 0
    while start < length:
        stop = start + size if start + size + 1 < length else length
        yield slice(start, stop)
        start = stop
