"""The kind `dense`: the task vector itself in float32, and its file: one a row, written once, read memory-mapped.

In: what the deltas of a row depend on, and how to compute them. Out: `DenseDelta`s of float32 tensors that are mapped
from `cache/<hash>.safetensors`.
They are always read from the file, also right after it was written, so that a first run sees what later ones see.

Every tensor begins at a multiple of 64 bytes of its file, and so of the address space, in every process: what BLAS
makes of a tensor may depend on where in 64 bytes it begins. safetensors itself aligns to 8 bytes and allows no holes,
so the header is filled up with spaces, and between tensors lie fillers.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.common.progress import Steps
from evomerge.models.weights import content_hash, file_stamps, load_file, remembered_hash
from evomerge.task_vectors.delta import add_product

ALIGNMENT = 64  # bytes: a line of the processor's cache, and the widest register
FILLER = "__filler__"  # what the name of a tensor begins with that only fills a hole

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DenseDelta:
    """A task vector as it is.

    Attributes:
        values: float32 (n,).
    """

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, span: slice) -> DenseDelta:
        return DenseDelta(self.values[span])

    def over(self, base: Tensor) -> DenseDelta:
        """Return it on the device of the base, of which it needs nothing else."""
        return self if self.values.device == base.device else DenseDelta(self.values.to(base.device))

    def dense(self) -> Tensor:
        """Return the values themselves."""
        return self.values

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ."""
        torch.mul(self.values, weight, out=out)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ."""
        add_product(out, self.values, weight)


def flattened(tensors: Mapping[str, Tensor]) -> dict[str, DenseDelta]:
    """Return the deltas of float32 tensors, by parameter."""
    return {name: DenseDelta(tensor.reshape(-1)) for name, tensor in tensors.items()}


def cached(
    contents: list[Any],
    compute: Callable[[], dict[str, Tensor]],
    name: str,
    cache: Path,
    progress: Steps | None = None,
) -> dict[str, DenseDelta]:
    """The deltas of one row from their file, which is written first where there is none or a damaged one.

    Args:
        contents: all that the deltas depend on, as plain data: it names the file.
        compute: returns parameter -> delta, float32, without those that are zero.
        name: of the row, for messages.
        cache: directory of the file.
        progress: told what is done, in bytes.

    Raises:
        CheckpointError: the file cannot be written, or does not read back.
    """
    file = cache / f"{hashlib.sha256(json.dumps(contents).encode()).hexdigest()}.safetensors"
    cache.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # a second process waits, and reads what the first has written
        deltas = _read(file, cache, progress)
        if deltas is None:
            _write(file, compute(), name)
            deltas = _read(file, cache, progress)
    if deltas is None:
        raise CheckpointError(
            f"the task vector of expert {name} does not read back from {file} as written; the disk is failing or full."
        )
    return flattened(deltas)


def save_aligned(tensors: Mapping[str, Tensor], file: Path, metadata: Mapping[str, str]) -> None:
    """Write float32 tensors as safetensors in one step; each begins at a multiple of `ALIGNMENT` bytes.

    Raises:
        OSError: it cannot be written; nothing is left behind.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    end, gaps = 0, []
    for name, tensor in tensors.items():
        gaps.append(-end % ALIGNMENT)
        if gaps[-1]:
            header[f"{FILLER}{end}"] = {"dtype": "U8", "shape": gaps[-1:], "data_offsets": [end, end + gaps[-1]]}
        start = end + gaps[-1]
        end = start + tensor.nbytes
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    text += b" " * (-(8 + len(text)) % ALIGNMENT)
    partial = file.with_name(f".partial-{secrets.token_hex(8)}")  # in the same directory: a rename crosses no disks
    try:
        with partial.open("xb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for gap, tensor in zip(gaps, tensors.values(), strict=True):
                stream.write(bytes(gap))
                stream.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
            stream.flush()
            os.fsync(stream.fileno())  # before the rename, or a power cut may leave the new name with no content
        os.replace(partial, file)
    finally:
        partial.unlink(missing_ok=True)


def _write(file: Path, deltas: dict[str, Tensor], name: str) -> None:
    try:
        save_aligned(deltas, file, {"sha256": content_hash(deltas)})
    except OSError as error:
        size = sum(delta.nbytes for delta in deltas.values()) / 2**30
        raise CheckpointError(
            f"the task vector of expert {name} ({size:.1f} GiB) cannot be written to {file.parent}: {error}."
            " Make room there, or name another directory for the cache."
        ) from error


def _read(file: Path, cache: Path, progress: Steps | None) -> dict[str, Tensor] | None:
    """The deltas of a file, memory-mapped; None where there is no file, or not the content that was written."""
    if not file.exists():
        return None
    stamps = file_stamps([file])
    deltas, written = {}, None
    try:
        deltas = {name: tensor for name, tensor in load_file(file).items() if not name.startswith(FILLER)}
        with safe_open(file, framework="pt") as handle:
            written = (handle.metadata() or {}).get("sha256")
    except (CheckpointError, SafetensorError):
        pass  # said below
    if written is None or remembered_hash(file, stamps, deltas, cache, progress) != written:
        logger.warning("the cached task vector %s is damaged: it is computed again", file)
        return None
    return deltas
