"""What stands on a node of a cluster between a pool and a worker: it starts the worker there and passes messages on.

In: what the worker needs, and messages in pieces. Out: what the worker says, in pieces, and how it has ended. The
worker is a process of its own (`processes.py`): it computes in its main thread, as everywhere, while this one listens,
so that a pool learns at once that either is gone.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import Mapping
from pathlib import Path

from evomerge.search.evaluators.processes import Processes
from evomerge.search.evaluators.wire import Message, packed, unpacked

PIECE = 2**16
"""Bytes of a message that travel in one go; Ray puts what has more than 100 kB into its object store."""


class Relay:
    """An actor: it starts a worker on its node and passes messages on.

    Args:
        worker: its number.
        environment: what is otherwise in the environment of the worker.
        directory: where what it prints is written to, if this node has it, else a temporary one.
        place: the directory in which it works, if this node has it.
        module: its program.
        build: the message from which it builds the problem, in pieces.
    """

    def __init__(
        self, worker: int, environment: Mapping[str, str], directory: Path, place: Path, module: str, *build: bytes
    ) -> None:
        if not directory.parent.is_dir():
            directory = Path(tempfile.mkdtemp(prefix="evomerge-workers-"))
        there = place if place.is_dir() else None
        self._worker = worker
        self._processes = Processes(unpacked(b"".join(build)), {worker: environment}, directory, module, there)
        self._processes.start(worker)
        self._due = [("on", socket.gethostname().encode())]

    def send(self, *parts: bytes) -> None:
        """Send a message on to the worker."""
        self._processes.send(self._worker, unpacked(b"".join(parts)))

    def receive(self) -> tuple[str, bytes]:
        """Return what is to be said next: `on` which node this is, a `part` of what the worker says or its `end`, or
        how it is `gone`.
        """
        if not self._due:
            ((_, message),) = self._processes.receive(None)
            if message is None:
                return "gone", self._processes.last_words(self._worker).encode()
            *parts, end = pieces(message)
            self._due = [*(("part", part) for part in parts), ("end", end)]
        return self._due.pop(0)

    def kill(self) -> None:
        """End the worker at once."""
        self._processes.kill(self._worker)


def pieces(message: Message) -> list[bytes]:
    """Return a message in pieces of `PIECE` bytes at most."""
    data = packed(message)
    return [data[start : start + PIECE] for start in range(0, len(data), PIECE)]
