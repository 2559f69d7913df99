"""The warnings of a search, kept for its summary: what the log file has beside failed candidates.

In: what this thread logs from a warning upwards while a search runs. Out: each text, and how often it came; texts that
differ in numbers alone are one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from evomerge.common.names import commonest
from evomerge.search.evaluators.serial import failures


class Warned(logging.Handler):
    """Keeps warnings; failed candidates are not among them, since the trial log has those.

    Other threads may run searches of their own, so only what the one that made it logs is kept.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._thread = threading.get_ident()
        self._texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the first line of a warning."""
        if record.thread == self._thread and record.name != failures.name:
            self._texts += record.getMessage().splitlines()[:1]

    def texts(self) -> dict[str, int]:
        """Return what was logged and how often, the most frequent first."""
        return dict(commonest(self._texts))


@contextmanager
def warned() -> Iterator[Warned]:
    """Keep what is logged within the block."""
    handler, root = Warned(), logging.getLogger()
    root.addHandler(handler)
    try:
        yield handler
    finally:
        root.removeHandler(handler)
