"""A worker that can be made to run out of memory: the program of a worker, in which SIGUSR2 leaves it none.

Its address space is limited to what it has, and all of that which is free is taken, so that whatever it allocates next
fails: in the fitness, in a merge, or while it answers.
"""

from __future__ import annotations

import resource
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from evomerge.runs.worker import serve

LEAST = 2**9
"""Bytes of the smallest pieces that are taken."""
held: list[bytearray] = []


def starve(*_: object) -> None:
    """Take all memory that there is, and let there be no more."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used, resource.getrlimit(resource.RLIMIT_AS)[1]))
    size = 2**26
    while size >= LEAST:
        try:
            held.append(bytearray(size))
        except MemoryError:
            size //= 2


if __name__ == "__main__":
    signal.signal(signal.SIGUSR2, starve)
    serve(Connection(int(sys.argv[1])))
