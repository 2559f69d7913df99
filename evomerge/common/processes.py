"""A program of somebody else's, run to its end or not at all: nothing of it goes on when this process has gone on.

In: its words, and a file for what it says on stderr. Out: its exit status. It runs in a group of its own, with all that
it starts. The whole group is ended when the program has ended, when it is interrupted, by Ctrl-C or a time limit, and
when this process has been killed: then by the launcher, which leads the group (`launcher.py`).
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from evomerge.common.limits import Shielded

LAUNCHER = Path(__file__).with_name("launcher.py")
GRACE = 5.0
"""Seconds that a program has to put its things away after SIGTERM."""


class ProcessGroup(Shielded):
    """A program that runs, as a context: when it is left, the program and all that it has started have ended.

    Args:
        words: the program and its arguments.
        said: the file that gets its stderr, and why it cannot be started, if so. Its stdout goes nowhere.
    """

    def __init__(self, words: Sequence[str], said: Path) -> None:
        launched = [sys.executable, "-I", "-S", str(LAUNCHER), str(os.getpid()), *words]
        with said.open("wb") as errors:
            self._process = subprocess.Popen(
                launched, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=errors, start_new_session=True
            )

    def wait(self) -> int:
        """Return the exit status when the program has ended; minus a signal that ended it."""
        return self._process.wait()

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._process.poll() is None:
            self._signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(GRACE)
        self._signal(signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        with suppress(ProcessLookupError, PermissionError):  # nothing is left of the group, or nothing but zombies
            os.killpg(self._process.pid, number)
