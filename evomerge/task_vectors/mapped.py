"""Arrays that are derived from task vectors: computed once, kept on disk, and read memory-mapped.

In: what an array depends on, and how it is filled. Out: the array, mapped from `cache/<hash>.array`; the last 64 bytes
of the file are the hash of its content. A file is there as a whole or not at all, and a damaged one is made again.
Small arrays stay in memory. Where there is no cache, or nobody knows what the numbers depend on, a file without a name
holds the array and is gone with it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch
from filelock import FileLock

from evomerge.common.directories import make_cache
from evomerge.common.errors import CheckpointError
from evomerge.common.progress import Steps
from evomerge.models.weights import content_hash, file_stamps, remembered_hash

SMALL = 1 << 22
"""Bytes of an array up to which it stays in memory."""
TRAILER = 64

Fill = Callable[[np.ndarray], None]
"""Fills an array."""

logger = logging.getLogger(__name__)


def mapped(
    contents: Any | None, dtype: type, size: int, fill: Fill, cache: Path | None, progress: Steps | None = None
) -> np.ndarray:
    """Return an array from its file; one that is missing or damaged is filled first.

    Args:
        contents: all that it depends on, as plain data: it names the file. None where that is not known.
        dtype: of its elements.
        size: how many there are.
        fill: called only if there is no file.
        cache: directory of the files, which may be deleted at any time; None where there is none.
        progress: told what is hashed, in bytes.

    Raises:
        CheckpointError: the file cannot be written.
    """
    if size * np.dtype(dtype).itemsize <= SMALL:
        fill(array := np.empty(size, dtype))
        return array
    try:
        if cache is not None:
            make_cache(cache)
        if cache is None or contents is None:
            with tempfile.TemporaryFile(dir=cache) as stream:
                fill(array := _reserve(stream, dtype, size))
            return array
        file = cache / f"{hashlib.sha256(json.dumps(contents).encode()).hexdigest()}.array"
        with FileLock(file.with_suffix(".lock")):  # a second process waits, and reads what is there
            found = _read(file, dtype, size, cache, progress)
            return _write(file, dtype, size, fill) if found is None else found
    except OSError as error:
        raise CheckpointError(
            f"The order of a task vector's elements ({size * np.dtype(dtype).itemsize / 2**30:.1f} GiB) cannot be "
            f"written to {cache or tempfile.gettempdir()}: {error}. Make room there, or name another directory for "
            f"the cache (model.cache)."
        ) from error


def _reserve(stream: IO[bytes], dtype: type, size: int) -> np.ndarray:
    """Return an array that is mapped from a new file. Its room on the disk is taken first: a process that writes to a
    mapping when the disk is full is killed.
    """
    nbytes = size * np.dtype(dtype).itemsize
    try:
        os.posix_fallocate(stream.fileno(), 0, nbytes)
    except (AttributeError, OSError) as error:  # not every system has it, nor every file system
        if isinstance(error, OSError) and error.errno != errno.EOPNOTSUPP:
            raise
        stream.truncate(nbytes)
    return np.memmap(stream, dtype, "r+", shape=(size,))


def _write(file: Path, dtype: type, size: int, fill: Fill) -> np.ndarray:
    part = file.with_name(f".partial-{file.name}")
    try:
        with part.open("wb+") as stream:
            fill(array := _reserve(stream, dtype, size))
            stream.seek(0, os.SEEK_END)
            stream.write(_hash(array).encode())
            stream.flush()
            os.fsync(stream.fileno())  # before the rename, or a power cut may leave the new name with no content
        os.replace(part, file)
    finally:
        part.unlink(missing_ok=True)
    return np.memmap(file, dtype, "c", shape=(size,))


def _read(file: Path, dtype: type, size: int, cache: Path, progress: Steps | None) -> np.ndarray | None:
    """Return the array of a file; None where there is no file, or not the content that was written."""
    if not file.exists():
        return None
    stamps = file_stamps([file])
    if file.stat().st_size == size * np.dtype(dtype).itemsize + TRAILER:
        array = np.memmap(file, dtype, "c", shape=(size,))
        with file.open("rb") as stream:
            stream.seek(-TRAILER, os.SEEK_END)
            written = stream.read().decode(errors="replace")
        if remembered_hash(file, stamps, {"": torch.from_numpy(array)}, cache, progress) == written:
            return array
    logger.warning("the cached order %s is damaged: it is computed again", file)
    return None


def _hash(array: np.ndarray) -> str:
    return content_hash({"": torch.from_numpy(array)})
