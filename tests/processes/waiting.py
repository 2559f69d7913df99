"""Waiting for processes without ever hanging: polls with a bound, and children that cannot outlive their test."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

PATIENCE = 120.0
"""Seconds after which a test gives up waiting, on the busiest machine."""
PRELOADED = ("tests.processes.preloaded", "tests.processes.command", "tests.processes.small_search")
"""What the server imports, whichever test starts it: modules of what the tests run in children."""


def wait_until(condition: Callable[[], bool], what: str, patience: float = PATIENCE) -> None:
    """Poll until the condition holds; an AssertionError when it does not in time."""
    end = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {patience:.0f} s"
        time.sleep(0.001)


def size(path: Path) -> int:
    """The size of a file, 0 while there is none."""
    return path.stat().st_size if path.exists() else 0


def server() -> ForkServerContext:
    """A context whose processes are forked from a server that has imported everything, within milliseconds."""
    context = get_context("forkserver")
    context.set_forkserver_preload(list(PRELOADED))
    with chdir(Path(__file__).parents[2]):  # where the server finds them; it says nothing if it does not
        forkserver.ensure_running()
    return context


@contextmanager
def forked(target: Callable[..., None], *arguments: Any) -> Iterator[ForkServerProcess]:
    """A child process of the server, killed where its test ends."""
    process = server().Process(target=target, args=arguments, daemon=True)
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
