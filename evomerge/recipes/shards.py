"""The weight files of a model that is written tensor by tensor: which tensor goes where, and the writing.

In: the base's `Checkpoint`, and what fills a tensor. Out: `model.safetensors`, or shards with an index, under the keys
of the base's files. One shard is in memory at a time. Tensors that the live model ties are written once, under the name
that the base's files have for the parameter.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import split_state_dict_into_shards_factory
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.progress import Steps
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.conversions import Conversion
from evomerge.models.weight_files import read_json, weight_files
from evomerge.models.weights import load_file

SINGLE = "model.safetensors"
INDEX = f"{SINGLE}.index.json"
ALIGNMENT = 64


@dataclass(frozen=True)
class Entry:
    """A tensor of the output under the key that it has in the base, whose module's folder its own file leaves out (see
    `Checkpoint.modules`); `parameter` is its name in the live model, None where it has none (heads, buffers). Of
    those that a conversion makes of parameters, it is the first.
    """

    key: str
    parameter: str | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    conversion: Conversion | None = None

    @property
    def nbytes(self) -> int:
        """The bytes of its values."""
        return math.prod(self.shape) * self.dtype.itemsize


Shards = dict[str, list[Entry]]
"""File name -> its tensors, in their order."""


def plan_shards(
    base: Checkpoint,
    dtypes: Mapping[str, torch.dtype],
    others: torch.dtype | None = None,
    max_shard_size: str | None = None,
    copies: Collection[str] = (),
) -> Shards:
    """Decide which tensors are written, as what, and into which files.

    Args:
        base: whose keys, shapes and files are taken over; of tied tensors, only the parameter's own.
        dtypes: of the parameters.
        others: the dtype of floating tensors that are no parameter; None for those of the base's files.
        max_shard_size: such as 5GB or 500MB; None for the files that the base has.
        copies: keys that are left out.

    Raises:
        ConfigError: the size cannot be read.
    """
    names = {key: name for name, key in base.keys.items()}
    conversions = {key: one for one in base.conversions for key in one.sources}
    entries: dict[str, Entry] = {}
    places = {key: i for i, key in enumerate(base.tensors)}
    beside = {key: min(places[each] for each in one.sources) for key, one in conversions.items()}
    for key in sorted(places, key=lambda key: beside.get(key, places[key])):  # what comes of one parameter, in a row
        tensor = base.tensors[key]
        if one := conversions.get(key):
            entries[key] = Entry(key, one.names[0], tuple(tensor.shape), dtypes[one.names[0]], one)
        elif key in names:
            shape = base.fitted.get(names[key], tensor).shape
            entries[key] = Entry(key, names[key], tuple(shape), dtypes[names[key]])
        elif key in base.extra and key not in copies:
            own = others if others and tensor.dtype.is_floating_point else tensor.dtype
            entries[key] = Entry(key, None, tuple(tensor.shape), own)
    modules = {
        f"{folder}/{SINGLE}": [entries.pop(key) for key in list(entries) if key.startswith(f"{folder}.")]
        for folder in base.modules
    }
    if max_shard_size is None:
        return _as_the_base(base.path, entries) | modules
    check_size(max_shard_size)
    split = split_state_dict_into_shards_factory(
        entries,
        get_storage_size=lambda entry: entry.nbytes,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=max_shard_size,
    )
    return {file: [entries[key] for key in keys] for file, keys in split.filename_to_tensors.items()} | modules


def check_size(size: str) -> None:
    """Refuse a shard size that cannot be read.

    Raises:
        ConfigError: it is no number with a unit.
    """
    if not re.fullmatch(r"\d+(\.\d+)?\s*[KMGT]B", size, re.IGNORECASE):
        raise ConfigError(f"The shard size {size!r} cannot be read: write 5GB or 500MB, say.")


def bytes_of(shards: Shards) -> int:
    """Return the bytes of all values."""
    return sum(entry.nbytes for entries in shards.values() for entry in entries)


def write_shards(
    shards: Shards,
    fill: Callable[[Entry, Tensor], None],
    directory: Path,
    progress: Steps | None = None,
) -> None:
    """Write the weight files, and the index if there are several.

    Args:
        shards: what `plan_shards` says.
        fill: writes the values of a tensor into memory of its dtype, flat.
        directory: where to.
        progress: told what is done, in bytes.

    Raises:
        CheckpointError: a file cannot be written, or does not read back.
    """
    rooms = {file: [-(-entry.nbytes // ALIGNMENT) * ALIGNMENT for entry in entries] for file, entries in shards.items()}
    # one block for all shards: a tensor for each entry would leave holes in the heap that are not used again
    block = torch.empty(max(map(sum, rooms.values()), default=0), dtype=torch.uint8)
    done, total = 0, bytes_of(shards)
    for file, entries in shards.items():
        tensors = {}
        for entry, part in zip(entries, block[: sum(rooms[file])].split(rooms[file]), strict=True):
            flat = part[: entry.nbytes].view(entry.dtype)
            fill(entry, flat)
            tensors[_key(file, entry)] = flat.view(entry.shape)
            done += entry.nbytes
            if progress:
                progress("writing the merged model", done, total)
        target = directory / file
        target.parent.mkdir(exist_ok=True)
        target.touch()
        mode = target.stat().st_mode  # of a new file here; save_file makes one that only its owner can read
        try:
            save_file(tensors, target, {"format": "pt"})
        except (SafetensorError, OSError) as error:
            raise CheckpointError(
                f"{file} ({sum(rooms[file]) / 2**30:.2f} GiB) cannot be written to {directory.parent}: {error} Make "
                f"room there, or write elsewhere; nothing is left of this attempt."
            ) from error
        target.chmod(mode)
        _check(target, {_key(file, entry): entry for entry in entries})
    files = {entry.key: file for file, entries in shards.items() for entry in entries if "/" not in file}
    if set(files.values()) != {SINGLE}:
        total = sum(entry.nbytes for file, entries in shards.items() for entry in entries if "/" not in file)
        index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(files.items()))}
        write_atomically(directory / INDEX, json.dumps(index, indent=2) + "\n")


def _as_the_base(path: Path, entries: Mapping[str, Entry]) -> Shards:
    """The files of the base, as safetensors; one that would be empty is left out."""
    files = weight_files(path)
    if len(files) == 1:
        return {SINGLE: list(entries.values())}
    shards: Shards = {}
    where = read_json(files[0])["weight_map"]
    for key in (key for key in entries if key in where):
        name = re.sub(r"^pytorch_model(.*)\.bin$", r"model\1.safetensors", where[key])
        shards.setdefault(name, []).append(entries[key])
    return dict(sorted(shards.items()))


def _key(file: str, entry: Entry) -> str:
    """The key of a tensor in its own file."""
    return entry.key.removeprefix(file.removesuffix(SINGLE).replace("/", "."))


def _check(file: Path, entries: Mapping[str, Entry]) -> None:
    """Refuse a file that does not hold what was written: keys, dtypes and shapes; nothing is read beside its header."""
    held = {key: (tuple(tensor.shape), tensor.dtype) for key, tensor in load_file(file).items()}
    if held != {key: (entry.shape, entry.dtype) for key, entry in entries.items()}:
        raise CheckpointError(f"{file} does not read back as it was written: the disk is failing or full.")
