"""How much memory a piece of work takes that nobody can take away again: anonymous pages, counted as Linux does.

Files that are mapped do not count: the system may drop their pages and read them again as it likes.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")
EVERY = 0.002
"""Seconds between two looks."""


class Peak:
    """The largest growth of anonymous memory while something ran.

    Attributes:
        growth: in bytes; None where the system does not say.
    """

    growth: int | None = None


@contextmanager
def watched() -> Iterator[Peak]:
    """Look at the anonymous memory of this process, from another thread, until the block ends."""
    peak, done = Peak(), threading.Event()
    if not STATUS.exists():
        yield peak
        return
    ctypes.CDLL(None).malloc_trim(0)  # or freed memory that the allocator still holds would be used unseen
    before = anonymous()
    found = [before]

    def look() -> None:
        while not done.wait(EVERY):
            found.append(anonymous())

    watcher = threading.Thread(target=look, daemon=True)
    watcher.start()
    try:
        yield peak
    finally:
        done.set()
        watcher.join()
        peak.growth = max(*found, anonymous()) - before


def anonymous() -> int:
    """Return the bytes of this process's anonymous memory."""
    lines = STATUS.read_text(encoding="ascii", errors="replace").splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("RssAnon")).split()[1])
