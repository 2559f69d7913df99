"""Waiting for processes without ever hanging: polls with a bound, and children that cannot outlive their test."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import get_context
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds after which a test gives up waiting, on the busiest machine."""


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until the condition holds; an AssertionError when it does not in time."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {patience:.0f} s"
        time.sleep(0.001)


def size(path: Path) -> int:
    """The size of a file, 0 while there is none."""
    return path.stat().st_size if path.exists() else 0


@contextmanager
def forked(target: Callable[..., None], *arguments: Any) -> Iterator[ForkServerProcess]:
    """A child process forked from a server that has imported everything, so that it starts within milliseconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload([target.__module__])
    process = context.Process(target=target, args=arguments, daemon=True)
    process.start()
    try:
        yield process
    finally:
        process.kill()
        process.join(PATIENCE)


def exit_code(process: ForkServerProcess) -> int:
    """Wait for the end of a child and return its exit code, -9 if it was killed."""
    process.join(PATIENCE)
    assert process.exitcode is not None, f"the process did not end within {PATIENCE:.0f} s"
    return process.exitcode


@contextmanager
def started(command: Sequence[str], said: Path, environment: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a process of its own, whose output goes to a file."""
    with said.open("ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        yield process
    finally:
        process.kill()
        process.wait(PATIENCE)
