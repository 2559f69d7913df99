"""Rows on disk: a file for each, computed once, named by all that its numbers depend on, read memory-mapped.

In: what the deltas of rows depend on, and a generator of them, parameter by parameter. Out: the same deltas, mapped
from `cache/<hash>.safetensors`. Rows are written side by side in one pass. They are always read from their files, also
right after these were written, so that a first run sees what later ones see. A file is there as a whole or not at all.
The values of a delta stand under the name of the parameter, and parts of other kinds under names with a prefix. Of a
masked delta, the mask alone is written: what it lies over is kept elsewhere.

Every tensor begins at a multiple of 64 bytes of its file, and so of the address space, as whatever torch allocates
does: kernels read whole lines of the processor's cache. safetensors itself aligns to 8 bytes and allows no holes, so
the header is filled up with spaces, and between tensors lie fillers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, BinaryIO, Self

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.common.directories import make_cache
from evomerge.common.errors import CheckpointError
from evomerge.common.progress import Steps
from evomerge.models.weights import content_hash, file_stamps, load_file, remembered_hash
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import ALIGNMENT, DenseDelta
from evomerge.task_vectors.masked import MaskedDelta
from evomerge.task_vectors.quantised import GROUP, QuantisedDelta

FILLER = "__filler__"  # what the name of a tensor begins with that only fills a hole
HASH = "sha256"  # what the header calls the hash of the tensors
CODES = ("__codes__", "__steps__", "__zeros__")
"""What the names of the parts of a quantised delta begin with."""
MASK = "__mask__"
DTYPES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.uint8: "U8", torch.uint32: "U32"}

Rows = Mapping[str, Mapping[str, Delta]]
"""Row -> parameter -> delta."""
Computed = Iterable[tuple[str, Mapping[str, Delta]]]
"""Each parameter once, with its deltas by row; those that are zero are left out."""

logger = logging.getLogger(__name__)


def cached_rows(
    contents: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    compute: Callable[[], Computed],
    cache: Path,
    progress: Steps | None = None,
    below: Callable[[], Rows] = dict,
) -> dict[str, dict[str, Delta]]:
    """Return the deltas of rows from their files; those that are missing or damaged are written first, in one pass.

    Args:
        contents: row -> all that its deltas depend on, as plain data: it names the file.
        shapes: parameter -> shape, of all that may have a delta.
        compute: begins to compute the deltas; called only if a file is missing.
        cache: directory of the files.
        progress: told what is hashed, in bytes.
        below: returns what masks lie over; called only if there are any.

    Raises:
        CheckpointError: a file cannot be written, or does not read back.
    """
    names = {row: hashlib.sha256(json.dumps(about).encode()).hexdigest() for row, about in contents.items()}
    files = {row: cache / f"{name}.safetensors" for row, name in names.items()}
    make_cache(cache)
    with FileLock(next(iter(files.values())).with_suffix(".lock")):  # a second process waits, and reads what is there
        found = {row: _read(file, cache, progress) for row, file in files.items()}
        if missing := {row: files[row] for row, deltas in found.items() if deltas is None}:
            _write(missing, shapes, compute)
            found |= {row: _read(file, cache, progress) for row, file in missing.items()}
    held: dict[str, dict[str, Delta]] = {}
    for row, deltas in found.items():
        if deltas is None:
            raise CheckpointError(
                f"the task vector of {row} does not read back from {files[row]} as written; the disk is failing or "
                f"full."
            )
        held[row] = _deltas(row, deltas, shapes, below)
    return held


def _parts(name: str, delta: Delta) -> dict[str, Tensor]:
    """Return what is written of a delta, by the names under which it stands in the file."""
    layout = delta.layout()
    if layout.kind.startswith("masked "):
        return {MASK + name: layout.tensors[-1]}
    if len(layout.tensors) == 1:
        return {name: layout.tensors[0]}
    return {part + name: tensor for part, tensor in zip(CODES, layout.tensors, strict=True)}


def _deltas(
    row: str, parts: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]], below: Callable[[], Rows]
) -> dict[str, Delta]:
    """Return the deltas of a row, of what its file holds."""
    found: dict[str, Delta] = {}
    for name, shape in shapes.items():
        if name in parts:
            found[name] = DenseDelta(parts[name].reshape(-1))
        elif MASK + name in parts:
            found[name] = MaskedDelta(below()[row][name], parts[MASK + name])
        elif CODES[0] + name in parts:
            codes, steps, zeros = (parts[part + name] for part in CODES)
            bits = 8 * len(codes) // (GROUP * len(steps))
            found[name] = QuantisedDelta(bits, codes, steps, zeros, 0, math.prod(shape))
    return found


class AlignedFile:
    """A safetensors file of tensors that come one after the other, and whose number is known at the end.

    A context manager: the file is there under its name after `finish`, and without it nothing is.

    Args:
        file: where to write.
        shapes: parameter -> shape, of which deltas may come; the header is kept room for.
    """

    def __init__(self, file: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._file, self._part = file, file.with_name(f".partial-{file.name}")  # a rename crosses no disks
        self._header: dict[str, Any] = {}
        self._end = 0
        most = sum(4 * math.prod(shape) + 3 * ALIGNMENT for shape in shapes.values())
        every = {part + name: _entry("BF16", (most,), most, most) for name in shapes for part in CODES}
        every |= {f"{FILLER}{most + place}": _entry("U8", (ALIGNMENT,), most, most) for place in range(len(every))}
        self._room = len(_text(every | {"__metadata__": {HASH: "0" * 64}}))

    def __enter__(self) -> Self:
        self._stream: BinaryIO = self._part.open("wb+")
        self._stream.write(bytes(self._room))
        return self

    def __exit__(self, *exc: object) -> None:
        self._stream.close()
        self._part.unlink(missing_ok=True)

    def add(self, name: str, tensor: Tensor) -> None:
        """Write the next tensor."""
        if gap := -self._end % ALIGNMENT:
            self._header[f"{FILLER}{self._end}"] = _entry("U8", (gap,), self._end, self._end + gap)
            self._stream.write(bytes(gap))
        start = self._end + gap
        self._end = start + tensor.nbytes
        self._header[name] = _entry(DTYPES[tensor.dtype], tensor.shape, start, self._end)
        self._stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def finish(self) -> None:
        """Write the header, with the hash of what was written, and give the file its name."""
        self._write_header({})
        deltas = _tensors(self._part)
        self._write_header({"__metadata__": {HASH: content_hash(deltas)}})
        os.fsync(self._stream.fileno())  # before the rename, or a power cut may leave the new name with no content
        os.replace(self._part, self._file)

    def _write_header(self, more: Mapping[str, Any]) -> None:
        self._stream.seek(0)
        self._stream.write(_text({**more, **self._header}, self._room))
        self._stream.flush()


def _entry(dtype: str, shape: Iterable[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}


def _text(header: Mapping[str, Any], room: int = 0) -> bytes:
    """Return length and text of a header, filled up with spaces to a whole line, or to the room that it has."""
    text = json.dumps(header).encode()
    text += b" " * ((room or -(-(8 + len(text)) // ALIGNMENT) * ALIGNMENT) - 8 - len(text))
    return len(text).to_bytes(8, "little") + text


def _write(files: Mapping[str, Path], shapes: Mapping[str, tuple[int, ...]], compute: Callable[[], Computed]) -> None:
    """Write the files of rows side by side."""
    try:
        with ExitStack() as stack:
            open_files = {row: stack.enter_context(AlignedFile(file, shapes)) for row, file in files.items()}
            for name, deltas in compute():
                for row, file in open_files.items():
                    for part, tensor in _parts(name, deltas[row]).items() if row in deltas else ():
                        file.add(part, tensor)
            for file in open_files.values():
                file.finish()
    except OSError as error:
        size, place = sum(4 * math.prod(shape) for shape in shapes.values()) / 2**30, next(iter(files.values())).parent
        raise CheckpointError(
            f"the task vectors of {' and '.join(files)} (up to {size:.1f} GiB each) cannot be written to {place}: "
            f"{error}. Make room there, or name another directory for the cache."
        ) from error


def _tensors(file: Path) -> dict[str, Tensor]:
    """Return the tensors of a file, memory-mapped, without what only fills holes."""
    return {name: tensor for name, tensor in load_file(file).items() if not name.startswith(FILLER)}


def _read(file: Path, cache: Path, progress: Steps | None) -> dict[str, Tensor] | None:
    """Return the deltas of a file, memory-mapped; None where there is no file, or not the content that was written."""
    if not file.exists():
        return None
    stamps = file_stamps([file])
    deltas, written = {}, None
    try:
        deltas = _tensors(file)
        with safe_open(file, framework="pt") as handle:
            written = (handle.metadata() or {}).get(HASH)
    except (CheckpointError, SafetensorError):
        pass  # said below
    if written is None or remembered_hash(file, stamps, deltas, cache, progress) != written:
        logger.warning("the cached task vector %s is damaged: it is computed again", file)
        return None
    return deltas
