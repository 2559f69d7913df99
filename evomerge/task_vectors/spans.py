"""Spans: runs of elements of one parameter, the smallest thing that a group, a delta or a kernel speaks of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Span:
    """Elements `start` to `stop` (exclusive) of one parameter, counted in its flattened form."""

    parameter: str
    start: int
    stop: int
