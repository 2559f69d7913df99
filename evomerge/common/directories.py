"""Directories that are there as a whole or not at all, and temporary ones.

In: a path that is free, or an empty directory. Out: a hidden directory beside it to write into, which takes that place
in one step when everything in it has reached the disk. What a kill leaves behind is hidden, and the next one who writes
to the same path removes it. Temporary ones may be in a place that is asked for, and then hold a lock as long as their
process lives: what a killed one leaves there, the next one removes.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from evomerge.common.errors import ConfigError
from evomerge.common.files import sync

ALIVE = "alive"
"""The lock in a temporary directory that its process holds."""


def make_cache(path: Path) -> None:
    """Make a directory that remembers what can be computed again, if it is not there.

    Raises:
        ConfigError: nothing can be written there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        reason = "" if os.access(path, os.W_OK | os.X_OK) else "it may not be written to"
    except OSError as error:
        reason = str(error)
    if reason:
        raise ConfigError(
            f"The cache {path} cannot be used: {reason}. Name another directory: model.cache=DIR, in Python "
            f"Family(..., cache=DIR)."
        )


@contextmanager
def whole_directory(out: Path) -> Iterator[Path]:
    """Give a directory to write into, which becomes `out` when the context ends well; if not, nothing is left.

    Raises:
        ConfigError: another process is writing to the same path.
        OSError: it cannot be written; or something has been put into `out` meanwhile.
    """
    out = out.resolve()
    out.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out.parent / f".{out.name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise ConfigError(
            f"Another process is writing to {out}: wait until it has ended, or name another directory."
        ) from None
    try:
        for left in out.parent.iterdir():
            if left.name.startswith(f".{out.name}.partial-"):
                shutil.rmtree(left)
        partial = out.parent / f".{out.name}.partial-{secrets.token_hex(4)}"
        partial.mkdir()
        try:
            yield partial
            for path in [*partial.rglob("*"), partial]:
                sync(path)
            if out.is_dir():
                out.rmdir()  # only an empty one
            os.rename(partial, out)
            sync(out.parent)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)  # before it is released: who waits for it sees that it is gone
        lock.release()


class TemporaryDirectory:
    """A directory that is removed, silently, when nobody refers to this object any more, or at the end of the program.

    Attributes:
        path: the directory.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="evomerge-"))
        weakref.finalize(self, shutil.rmtree, self.path, ignore_errors=True)


class ScratchDirectory:
    """A temporary directory in a place of its own, removed with this object or at the end of the program.

    What killed processes have left there under the same name is removed when one is made.

    Args:
        place: the directory to make it in.
        name: the beginning of its name.

    Attributes:
        path: the directory; only its owner can look into it.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, place: Path, name: str) -> None:
        for left in place.glob(f"{name}-*/{ALIVE}"):
            with suppress(Timeout, OSError), FileLock(left, timeout=0):  # else somebody's who lives, or another user's
                shutil.rmtree(left.parent)
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=place))
            lock = FileLock(self.path / ALIVE)
            with suppress(Timeout, OSError):  # somebody has taken it for a dead one's in this moment
                lock.acquire(timeout=0)
                break
        weakref.finalize(self, _remove, self.path, lock)


def _remove(path: Path, lock: FileLock) -> None:
    shutil.rmtree(path, ignore_errors=True)
    lock.release()
