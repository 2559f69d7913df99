"""An append-only file of JSON lines that survives kills, power cuts, full disks and flipped bytes.

In: records, as dictionaries. Out: one line for each, on the disk (fsync) before `append` returns. Each line ends in the
checksum (CRC-32) of itself and of all lines before it, so a line that was changed, taken out, put in or moved is found
when the file is read again. A last line without its end, which a kill may leave, does not count: nothing had acted on
it.
"""

from __future__ import annotations

import json
import logging
import os
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import filelock

from evomerge.common.errors import LogError
from evomerge.common.files import sync

logger = logging.getLogger(__name__)


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a log, verified; a last line without its end is left out.

    Raises:
        LogError: a line was changed after it was written. It names the line and how to keep all before it.
    """
    for record, _ in _verified(path, path.read_bytes()):
        yield record


class Journal:
    """The open file, which no other process may open.

    Args:
        path: where it is; made, with its directory, when missing.
        setting: by which a person names another directory.
    """

    def __init__(self, path: Path, setting: str = "hydra.run.dir=runs/another") -> None:
        self._path, self._setting = path, setting
        self._lock = filelock.FileLock(path.with_suffix(".lock"))
        self._file = -1
        self._end = 0  # bytes that are safe
        self._checksum = 0

    def open(self) -> list[dict[str, Any]]:
        """Take the lock and return the records that the file holds. Nothing is changed before the first `append`.

        Raises:
            LogError: another process has it open, or it is damaged.
        """
        self._path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LogError(
                f"Another process is working on the run {self._path.parent}. Two processes must not write one log: "
                f"wait for it, or stop it, or choose another run directory ({self._setting})."
            ) from None
        try:
            data = self._path.read_bytes() if self._path.exists() else b""
            lines = list(_verified(self._path, data))
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        except BaseException:
            self._lock.release()
            raise
        sync(self._path.parent)
        self._checksum = lines[-1][1] if lines else 0
        self._end = data.rfind(b"\n") + 1
        if self._end < len(data):
            logger.warning(
                "The last line of %s was cut off while it was being written (%d bytes); nothing had acted on it, and "
                "it is computed again.",
                self._path.name,
                len(data) - self._end,
            )
        return [record for record, _ in lines]

    def append(self, record: Mapping[str, Any]) -> None:
        """Write a record; when this returns, it is on the disk.

        Raises:
            LogError: it could not be written; the file is then as it was before.
        """
        body = json.dumps(record, separators=(",", ":"), allow_nan=False)[:-1].encode()
        checksum = zlib.crc32(body, self._checksum)
        line = body + b',"crc":"%08x"}\n' % checksum
        try:
            os.ftruncate(self._file, self._end)  # what a kill left of a last line
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)  # take back what was written of this one
            raise LogError(
                f"Could not write to {self._path}: {error.strerror}. What was written before is safe. "
                f"Make room and run the same command again: it goes on from there."
            ) from error
        self._end += len(line)
        self._checksum = checksum

    def close(self) -> None:
        """Close the file and let others have it."""
        os.close(self._file)
        self._lock.release()


def _verified(path: Path, data: bytes) -> Iterator[tuple[dict[str, Any], int]]:
    """Yield each record of a file's content with the checksum so far."""
    checksum = 0
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):
        body, mark, written = line.rpartition(b',"crc":"')
        checksum = zlib.crc32(body, checksum)
        if not mark or written != b'%08x"}' % checksum:
            raise LogError(
                f"Line {number} of {path} does not match its checksum: the file was damaged or edited after it was "
                f"written. Nothing was changed. Put a backup back, or keep what stands before that line with "
                f"`head -n {number - 1} {path.name} > good.jsonl`, put that in its place and run the same command "
                f"again: the trials after it will be computed anew."
            )
        yield json.loads(body + b"}"), checksum
