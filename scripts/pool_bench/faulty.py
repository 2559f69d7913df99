"""A worker that says everything twice: the program of a worker, with a pipe that repeats what it is given to send."""

from __future__ import annotations

import sys
from multiprocessing.connection import Connection
from typing import Any

from evomerge.runs.worker import serve


class Twice(Connection):
    """A pipe that sends every message twice."""

    def send_bytes(self, buf: Any, offset: int = 0, size: int | None = None) -> None:
        """Send a message, and again."""
        super().send_bytes(buf, offset, size)
        super().send_bytes(buf, offset, size)


if __name__ == "__main__":
    serve(Twice(int(sys.argv[1])))
