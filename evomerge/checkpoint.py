"""Opens a model directory: parameter name of the live model <-> file key, and lazy, memory-mapped tensors behind them.

In: a Hugging Face directory, and the names and shapes of the live model's parameters. Out: a `Checkpoint`, in which
every parameter has the live model's shape and a floating dtype; what does not fit is refused here, once. An expert with
another number of tokens is made to fit, if the user has chosen how (`vocabulary.py`).

A file may use other names than the live model: the class's prefix (`bert.`) stands on either side or on neither, a tied
parameter appears under its alias, and transformers saves many models under the names of earlier years (`gamma` and
`beta` of bert-base-uncased, `attention.attention.query` of ViT and DINOv2), which it renames at load.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.errors import CheckpointError
from evomerge.vocabulary import BASE, REFUSE, SHARED, Rows
from evomerge.weights import Progress, file_stamps, listed, read_json, read_tensors, remembered_hash, weight_files

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
Rename = Callable[[Iterable[str]], Mapping[str, str | None]]
"""File keys -> the names that transformers gives them at load, None where it makes other tensors of them."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one model directory, by the parameters of a live model. Its tensors are for reading only.

    Attributes:
        path: the directory.
        config: its config.json.
        sha256: hash of all tensors in the files: key, dtype, shape and bytes, in the order of the keys.
        keys: parameter name of the live model -> file key, in the order of the live model.
        extra: file keys that are no parameter of the live model: heads, buffers, position_ids.
        missing: parameters of the live model that no file holds.
        tensors: every tensor in the files by file key, memory-mapped.
        rows: the parameters in which it has another number of rows than the base. Those of which no row is merged are
            in the files, but not in `keys`.
        fitted: those of them that are in `keys`, in the live model's shape: rows that the files lack are the base's.
    """

    path: Path
    config: dict[str, Any]
    sha256: str
    keys: dict[str, str]
    extra: tuple[str, ...]
    missing: tuple[str, ...]
    tensors: Mapping[str, Tensor] = field(repr=False)
    rows: Mapping[str, Rows] = field(default_factory=dict)
    fitted: Mapping[str, Tensor] = field(default_factory=dict, repr=False)

    def tensor(self, name: str) -> Tensor:
        """The tensor of a parameter, memory-mapped, in the dtype of the file. One that got rows of the base is in
        memory, in a dtype that holds those of both exactly.
        """
        return self.fitted[name] if name in self.fitted else self.tensors[self.keys[name]]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the file holds a parameter."""
        return self.tensors[self.keys[name]].dtype


def open_checkpoint(
    path: str | Path,
    parameters: Mapping[str, tuple[int, ...]],
    prefix: str = "",
    tied: Mapping[str, str] | None = None,
    cache: Path | None = None,
    progress: Progress | None = None,
    rename: Rename | None = None,
    vocabulary: str = REFUSE,
    base: Checkpoint | None = None,
) -> Checkpoint:
    """Opens a model directory and finds the file key of every parameter.

    Args:
        path: a Hugging Face directory.
        parameters: name -> shape of the live model's `named_parameters()`.
        prefix: the class's `base_model_prefix`; it may stand on the file keys, on the names, or on neither.
        tied: alias -> source, the model's `all_tied_weights_keys`; a file may hold either or both.
        cache: directory that remembers content hashes; None: hash anew.
        progress: told of the hashing, in bytes.
        rename: `LiveModel.rename`; None: files have the names of the live model.
        vocabulary: what becomes of an expert with another number of tokens than the base: one of `vocabulary.CHOICES`.
        base: θ_0, where an expert is opened; its own rows stay whatever the expert has.

    Raises:
        CheckpointError: there is no such directory or no weights in it, a file is damaged or unsafe, a shape or dtype
            does not fit the live model, tied parameters differ in the file, or transformers fuses, splits or permutes
            its tensors at load.
    """
    path = Path(path).expanduser()
    files = weight_files(path)
    config = read_json(path / "config.json")
    stamps = file_stamps(files)  # before the first byte is read: a file that changes from here on will not match them
    tensors = read_tensors(files)
    names = rename(tensors) if rename else {key: key for key in tensors}
    holders = _match_keys(names, parameters, prefix, tied or {})
    if (converted := [key for key in tensors if names[key] is None]) and len(holders) < len(parameters):
        raise CheckpointError(
            f"{path}: transformers fuses, splits or permutes {listed(converted)} at load (as for mixtures of experts),"
            " so that no parameter of the live model is what the file holds. This is not supported yet."
        )
    rows: dict[str, Rows] = {}
    for name, keys in holders.items():
        chosen = vocabulary if base is not None and name in base.keys else REFUSE
        if found := _check_tensors(path, config, tensors, keys, name, tuple(parameters[name]), chosen):
            rows[name] = found
    taken = {key for keys in holders.values() for key in keys}
    kept = {name: keys[0] for name, keys in holders.items() if name not in rows or rows[name].merged}
    fitted = {name: _fit(tensors[kept[name]], rows[name], base, name) for name in rows if base and name in kept}
    return Checkpoint(
        path=path,
        config=config,
        sha256=remembered_hash(path, stamps, tensors, cache, progress),
        keys=kept,
        extra=tuple(key for key in tensors if key not in taken),
        missing=tuple(name for name in parameters if name not in holders),
        tensors=tensors,
        rows=rows,
        fitted=fitted,
    )


def check_base(base: Checkpoint) -> None:
    """Refuses a base whose files lack parameters of the live model; only a pooler may be missing.

    A parameter that no file holds was made up at load: transformers initialises heads that a checkpoint lacks, and θ_0
    would not be what the files say. A `pooler` at the top of the model (behind the prefix, if any) is let pass: many
    encoders come without, and only a pooled output depends on it.

    Raises:
        CheckpointError: parameters other than a pooler's are missing.
    """
    lost = [name for name in base.missing if "pooler" not in name.split(".")[:2]]
    if lost:
        spare = [key for key in base.extra if base.tensors[key].is_floating_point()]
        raise CheckpointError(
            f"{base.path}: no file holds {listed(lost)} of the live model"
            + (f", and no parameter of the live model takes {listed(spare)} of the files" if spare else "")
            + ". The live model has a head that the base lacks: load the base as its own class, or headless with"
            " AutoModel."
        )


def _match_keys(
    keys: Mapping[str, str | None], parameters: Iterable[str], prefix: str, tied: Mapping[str, str]
) -> dict[str, list[str]]:
    """Parameter -> the file keys that hold it: under its own name, then under its aliases.

    Args:
        keys: file key -> renamed; a key whose new name is no parameter is tried as it is.
        parameters: the names of the live model.
        prefix: of its class.
        tied: alias -> source.
    """
    aliases = {name: [name] for name in parameters}
    for source in dict.fromkeys(tied.values()):
        names = [source, *(alias for alias, target in tied.items() if target == source)]
        if owner := next((name for name in names if name in aliases), None):
            aliases[owner] += [name for name in names if name not in aliases]
    known = {name for names in aliases.values() for name in names}

    def shifted(key: str, cut: str, front: str) -> str | None:
        renamed = keys[key]
        for name in () if renamed is None else (renamed, key):
            if name.startswith(cut) and (moved := front + name.removeprefix(cut)) in known:
                return moved
        return None

    shifts = [("", ""), (f"{prefix}.", ""), ("", f"{prefix}.")] if prefix else [("", "")]
    best = max(shifts, key=lambda shift: sum(shifted(key, *shift) is not None for key in keys))  # of equals, the first
    found: dict[str, str] = {}  # name -> file key
    for shift in (best, shifts[0]):  # heads stand outside the prefix: what the best shift leaves is tried as it is
        taken = set(found.values())
        for key in keys:
            name = shifted(key, *shift)
            if name is not None and key not in taken:
                found.setdefault(name, key)
    held = {name: [found[alias] for alias in names if alias in found] for name, names in aliases.items()}
    return {name: holders for name, holders in held.items() if holders}


def _check_tensors(
    path: Path,
    config: dict,
    tensors: Mapping[str, Tensor],
    keys: Sequence[str],
    name: str,
    shape: tuple[int, ...],
    vocabulary: str,
) -> Rows | None:
    """What becomes of the rows of a parameter whose tensors have another number of them; None where they do not.

    Args:
        path: of the model directory, for messages.
        config: its config.json.
        tensors: by file key.
        keys: of the tensors that hold the parameter: one, or several where it is tied.
        name: of the parameter.
        shape: the live model's.
        vocabulary: one of `vocabulary.CHOICES`.

    Raises:
        CheckpointError: a tensor does not fit, or tied ones differ.
    """
    rows = None
    for key in keys:
        if tensors[key].dtype not in FLOATS:
            raise CheckpointError(
                f"{path}: {key} is {tensors[key].dtype}; the weights are quantised, and a difference of codes is no"
                " task vector. Give the checkpoint in float32, bfloat16 or float16 (load it, call dequantize(), and"
                " save it anew)."
            )
        if tuple(tensors[key].shape) != shape:
            rows = _other_rows(path, config, key, tensors[key], name, shape, vocabulary)
    if not all(torch.equal(tensors[keys[0]], tensors[key]) for key in keys[1:]):
        raise CheckpointError(
            f"{path}: {' and '.join(keys)} differ, but the live model ties them into one parameter ({name}), so"
            " one of them would be lost. Set tie_word_embeddings to false in the base's config, or tie them in this"
            " checkpoint and save it anew."
        )
    return rows


def _other_rows(
    path: Path, config: dict, key: str, tensor: Tensor, name: str, shape: tuple[int, ...], vocabulary: str
) -> Rows:
    """What becomes of a tensor of another shape than the live model's, whose rows stand for tokens.

    Raises:
        CheckpointError: they do not, or nobody has said what to do with it.
    """
    held = tuple(tensor.shape)
    where = f"{path}: {key} has shape {held}, but the live model's {name} has {shape}"
    tokens = {**(config.get("text_config") or {}), **config}.get("vocab_size")
    if not held or held[1:] != shape[1:] or tokens != held[0]:
        raise CheckpointError(
            f"{where}. Base and experts must be of one architecture and size; where only a head differs, load the base"
            " headless with AutoModel."
        )
    if vocabulary not in (BASE, SHARED):
        raise CheckpointError(
            f"{where}: the vocabularies differ ({held[0]} tokens and {shape[0]}), so rows do not stand for the same"
            " tokens. If tokens or padding were only added at the end, write model.vocabulary=shared, which merges the"
            f" first {min(held[0], shape[0])} rows; model.vocabulary=base keeps all rows of the base; otherwise take a"
            " model with the base's tokenizer."
        )
    return Rows(held[0], shape[0], min(held[0], shape[0]) if vocabulary == SHARED else 0)


def _fit(tensor: Tensor, rows: Rows, base: Checkpoint, name: str) -> Tensor:
    """The rows that are merged, and behind them the base's own: their difference to the base is exactly zero."""
    if rows.merged == rows.base:
        return tensor[: rows.merged]
    ours = base.tensor(name)
    both = torch.promote_types(tensor.dtype, ours.dtype)
    return torch.cat([tensor[: rows.merged].to(both), ours[rows.merged :].to(both)])
