"""Weight files: which ones a model directory has, their tensors (lazy, memory-mapped), and a hash of what they hold.

In: a directory with `model.safetensors` or `pytorch_model.bin`, single or sharded with an index. Out: tensors by file
key, and a sha256. Files are chosen and read as transformers does it, since that is the model that people load: an index
only names its shards, and every tensor in a shard counts. What a directory holds beside that is named (`leftovers`).
Nothing is executed (`weights_only=True`), and no tensor is read before it is used, except for one pass over all bytes
that hashes them. The hash is of the tensors, not of the files: the same weights hash alike under any path, in any
number of shards, as safetensors or as `.bin`.
"""

import hashlib
import json
import re
import time
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from torch import Tensor

from evomerge.common.digests import digest
from evomerge.common.directories import make_cache
from evomerge.common.errors import CheckpointError
from evomerge.common.files import write_atomically
from evomerge.common.names import dtype_name, listed
from evomerge.common.progress import Steps
from evomerge.models.weight_files import WEIGHTS, read_json, weight_files, weight_map_of

Stamp = tuple[str, int, int, int]  # name, size, time of the last write, time of the last change; in ns

HASH_CHUNK = 1 << 26  # bytes between two reports of progress
CLOCK_TICK = 10**8  # ns; a file written again within one tick of the file system's clock may keep its stamps
HASHES = "hashes.json"  # in a cache: path -> stamps and hash


def read_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of `weight_files`, by file key; see `read_weights`."""
    return read_weights(files)[0]


def read_weights(files: Sequence[Path]) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of `weight_files` by file key, and notes on what else the directory holds.

    Shards are read in the order of their names, and of a key that two of them hold the last one counts: that is how
    transformers reads them.

    Returns:
        The tensors, and sentences that lack whom they are about.

    Raises:
        CheckpointError: a file is damaged, or holds other things than tensors.
    """
    first, notes = files[0], []
    indexed = first.name.endswith(".index.json")
    others = (file for file in first.parent.iterdir() if WEIGHTS.fullmatch(file.name) and file not in files)
    if spare := sorted(file.name for file in others):
        read = f"the shards of {first.name} are" if indexed else f"{first.name} is"
        notes.append(f"also holds {listed(spare)}: {read} read, as transformers does")
    tensors: dict[str, Tensor] = {}
    holder: dict[str, str] = {}
    for file in files[indexed:]:
        for key, tensor in load_file(file).items():
            if key in tensors and not same(tensors[key], tensor):
                notes.append(
                    f"holds {key} in {holder[key]} and with other values in {file.name}, which counts, as it does in "
                    f"transformers"
                )
            tensors[key], holder[key] = tensor, file.name
    names = weight_map_of(first) if indexed else tensors
    if lost := sorted(names.keys() - tensors.keys()):
        notes.append(f"lacks {listed(lost)}, which {first.name} lists")
    if found := sorted(tensors.keys() - names.keys()):
        notes.append(f"holds {listed(found)}, which {first.name} does not list: read, as transformers does")
    return tensors, notes


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have the same shape and the same values, whatever their dtypes."""
    if one.shape != other.shape:
        return False
    both = torch.promote_types(one.dtype, other.dtype)
    return torch.equal(one.to(both), other.to(both))


def first_dtype(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The dtype of the first floating tensor; float32 if there is none."""
    return next((tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()), torch.float32)


def loaded_dtype(path: Path, tensors: Mapping[str, Tensor], stated: object) -> str:
    """The name of the dtype in which transformers loads a model with `auto`: that of its config, else that of its
    index, else that of its first floating tensor.

    Args:
        path: of the model directory.
        tensors: of its files, in their order.
        stated: the dtype in its config, or None.
    """
    first, *shards = weight_files(path)
    indexed = (read_json(first).get("metadata") or {}).get("dtype") if shards else None
    return dtype_name(stated or indexed or first_dtype(tensors))


def load_file(file: Path) -> dict[str, Tensor]:
    """The tensors of one file, memory-mapped (a `.bin` of the old format, before torch 1.6, is read into memory).

    Raises:
        CheckpointError: the file is damaged, or holds other things than tensors.
    """
    if file.suffix == ".safetensors":
        try:
            with safe_open(file, framework="pt", device="cpu") as handle:
                return {key: handle.get_tensor(key) for key in handle.keys()}  # noqa: SIM118  (a handle is not iterable)
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} is damaged, incomplete, or a git-lfs pointer ({error}). Download or copy it again."
            ) from error
    try:
        tensors = torch.load(file, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(file))
    except Exception as error:  # damaged bytes make the unpickler raise almost anything
        if asked := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{file} asks for {asked[1]} to be run at load, which is refused: weights need no code. If you trust"
                " the file, load it yourself and save the model with save_pretrained, which writes safetensors."
            ) from error
        raise CheckpointError(f"{file} is damaged or incomplete. Download or copy it again.") from error
    if not isinstance(tensors, dict):
        raise CheckpointError(
            f"{file} holds a {type(tensors).__name__}, not a dictionary of tensors. Save model.state_dict() instead."
        )
    for key, value in tensors.items():
        if not (isinstance(value, Tensor) and value.layout is torch.strided and not value.is_quantized):
            raise CheckpointError(
                f"{file} holds a {type(value).__name__} under {key!r}, where a dense tensor must be."
                " Save model.state_dict() alone, not a training state, and not quantised or sparse."
            )
    return {str(key): value.detach() for key, value in tensors.items()}


def content_hash(tensors: Mapping[str, Tensor], what: str = "", progress: Steps | None = None) -> str:
    """Sha256 (hex) over key, dtype, shape and bytes of all tensors, in the order of their keys."""
    digest, done, total = hashlib.sha256(), 0, sum(tensor.nbytes for tensor in tensors.values())
    for key in sorted(tensors):
        tensor = tensors[key]
        digest.update(json.dumps([key, str(tensor.dtype), list(tensor.shape)]).encode())
        raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data
        for start in range(0, len(raw), HASH_CHUNK):
            chunk = raw[start : start + HASH_CHUNK]
            digest.update(chunk)
            done += len(chunk)
            if progress:
                progress(what, done, total)
    return digest.hexdigest()


def remembered_hash(
    path: Path, stamps: list[Stamp], tensors: Mapping[str, Tensor], cache: Path | None, progress: Steps | None = None
) -> str:
    """The content hash of the tensors under a path; from `cache/hashes.json` if the stamps are the remembered ones.

    A second process that wants the same waits, and reads what is there.
    """
    where, what = str(path.resolve()), f"hashing {path.name}"
    if cache is None:
        return content_hash(tensors, what, progress)
    if known := _known_hash(cache, where, stamps):
        return known
    make_cache(cache)
    with FileLock(cache / f"{digest(where)}.hashing.lock"):
        if known := _known_hash(cache, where, stamps):
            return known
        sha256 = content_hash(tensors, what, progress)
        if time.time_ns() - max(changed for *_, changed in stamps) >= CLOCK_TICK:
            _remember_hash(cache, where, stamps, sha256)
    return sha256


def _known_hash(cache: Path, where: str, stamps: list[Stamp]) -> str | None:
    known = _read_hashes(cache / HASHES).get(where)
    return known["sha256"] if known and known["files"] == [list(stamp) for stamp in stamps] else None


def _remember_hash(cache: Path, where: str, stamps: list[Stamp], sha256: str) -> None:
    with FileLock(cache / "hashes.lock"):
        hashes = _read_hashes(cache / HASHES) | {where: {"files": stamps, "sha256": sha256}}
        write_atomically(cache / HASHES, json.dumps(hashes, indent=1))


def file_stamps(files: Sequence[Path]) -> list[Stamp]:
    """What shows that files are those that were hashed; a copy keeps the time of writing, never that of the change."""
    stats = [(file.name, file.stat()) for file in files]
    return [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]


def _read_hashes(store: Path) -> dict[str, dict]:
    """The remembered hashes; none if the file is gone or damaged, which may happen to a cache at any time."""
    try:
        hashes = json.loads(store.read_text(encoding="utf-8"))
        return {where: known for where, known in hashes.items() if {"files", "sha256"} <= known.keys()}
    except (OSError, ValueError, AttributeError):
        return {}
