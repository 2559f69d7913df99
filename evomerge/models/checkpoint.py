"""Opens a model directory: parameter name of the live model <-> file key, and lazy, memory-mapped tensors behind them.

In: a Hugging Face directory, the names and shapes of the live model's parameters, and what names mean (`matching.py`).
Out: a `Checkpoint`, in which every parameter has the live model's shape and a floating dtype. What cannot be read is
refused; what is lacking or left over is found in `completeness.py`. An expert with another number of tokens is made to
fit, if the user has chosen how (`vocabulary.py`). Tensors in memory, of a module or a state dict, become a `Checkpoint`
in the same way.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.common.progress import Steps
from evomerge.models.adapted import Adapted
from evomerge.models.conversions import Conversion, Converted
from evomerge.models.factors import Factors
from evomerge.models.fitting import check_dtype, check_tensors, other_rows
from evomerge.models.matching import Layout, match
from evomerge.models.sentences import module_files, module_tensors
from evomerge.models.vocabulary import REFUSE, Rows
from evomerge.models.weight_files import check_readable, read_json, weight_files
from evomerge.models.weights import content_hash, file_stamps, read_weights, remembered_hash

MEMORY = Path("memory")
"""What messages call a model that comes from no directory, where nobody has named it."""


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights of one model directory, by the parameters of a live model. Its tensors are for reading only.

    Attributes:
        path: the directory; of tensors in memory, what messages call them.
        config: its config.json.
        sha256: hash of all tensors in the files: key, dtype, shape and bytes, in the order of the keys.
        keys: parameter name of the live model -> file key, in the order of the live model; the first one where several
            are converted to the parameter.
        extra: file keys that are no parameter of the live model: heads, buffers, position_ids.
        missing: parameters of the live model that no file holds.
        tensors: every tensor in the files by file key, memory-mapped.
        rows: the parameters in which it has another number of rows than the base. Those of which no row is merged are
            in the files, but not in `keys`.
        fitted: those of them that are in `keys`, in the live model's shape: rows that the files lack are the base's.
        computed: those of `missing` that transformers computes, so that no file need hold them.
        stray: those of `extra` that belong to the live model's own modules and are unknown to it.
        untied: names that the live model ties, and the directory's own model neither ties nor holds.
        names: file key -> its name in the live model, as transformers gives it.
        buffers: those of `extra` that are buffers of the live model.
        notes: what else is to be known of the files, as sentences that lack whom they are about.
        conversions: of the tensors that transformers fuses, splits or permutes.
        converted: the parameters that come of it, in the live model's shape.
        modules: folders of the directory whose weight files are read as well (`sentences.py`); keys begin with them.
        adapted: what an adapter makes of the base (`adapters.py`): then `keys` are of what it changes, and nothing is
            missing; None for a whole model.
        union: a hash of the vocabulary into which its rows were put (`union.py`); None for its own.
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
    computed: tuple[str, ...] = ()
    stray: tuple[str, ...] = ()
    untied: tuple[str, ...] = ()
    names: Mapping[str, str] = field(default_factory=dict, repr=False)
    buffers: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    conversions: tuple[Conversion, ...] = ()
    converted: Converted = field(default_factory=lambda: Converted((), {}, "", None), repr=False)
    modules: tuple[str, ...] = ()
    union: str | None = None
    adapted: Adapted | None = None

    @property
    def factors(self) -> Mapping[str, Factors]:
        """The parameters that an adapter changes by a product of two factors, and these; none of a whole model."""
        return self.adapted.factors if self.adapted else {}

    @property
    def spare(self) -> list[str]:
        """The floating ones of `extra`."""
        return [key for key in self.extra if self.tensors[key].is_floating_point()]

    def tensor(self, name: str) -> Tensor:
        """The tensor of a parameter, memory-mapped, in the dtype of the file. One that got rows of the base is in
        memory, in a dtype that holds those of both exactly; so is one that was converted, where there is no cache.
        """
        if name in self.converted:
            return self.converted[name]
        return self.fitted[name] if name in self.fitted else self.tensors[self.keys[name]]

    def dtype(self, name: str) -> torch.dtype:
        """The dtype in which the file holds a parameter; float32 of what an adapter makes of the base."""
        if self.adapted and name in self.adapted.computed:
            return torch.float32
        return self.tensors[self.keys[name]].dtype

    def under(self, names: Mapping[str, str]) -> Checkpoint:
        """Return the same under other names of its parameters, without those that have none.

        Args:
            names: name -> the other one.
        """
        kept = {
            key: {names[name]: value for name, value in getattr(self, key).items() if name in names}
            for key in ("keys", "rows", "fitted")
        }
        told = {
            key: tuple(names[name] for name in getattr(self, key) if name in names)
            for key in ("missing", "computed", "untied")
        }
        placed = {key: names.get(name, name) for key, name in self.names.items()}
        return replace(self, **kept, **told, names=placed, converted=self.converted.under(names))


def open_checkpoint(
    path: str | Path,
    parameters: Mapping[str, tuple[int, ...]],
    layout: Layout | None = None,
    *,
    cache: Path | None = None,
    progress: Steps | None = None,
    vocabulary: str = REFUSE,
    base: Checkpoint | None = None,
) -> Checkpoint:
    """Opens a model directory and finds the file key of every parameter; `LiveModel.open` knows the layout.

    Args:
        path: a Hugging Face directory.
        parameters: name -> shape of the live model's `named_parameters()`.
        layout: what names in the directory mean; None: files have the names of the live model.
        cache: directory that remembers content hashes; None: hash anew.
        progress: told of the hashing, in bytes.
        vocabulary: what becomes of an expert with another number of tokens than the base: one of `vocabulary.CHOICES`.
        base: θ₀, where an expert is opened; its own rows stay whatever the expert has.

    Raises:
        CheckpointError: there is no such directory or no weights in it, a file is damaged or unsafe, the weights are
            quantised, a shape or dtype does not fit the live model, two tensors that stand for one parameter differ, or
            transformers cannot convert them to parameters and, of a base, back.
    """
    path = Path(path).expanduser()
    files = weight_files(path)
    check_readable(path)
    config = read_json(path / "config.json")
    modules = module_files(path, parameters)
    stamps = file_stamps(
        [*files, *modules.values()]
    )  # before the first byte is read: a file that changes from here on will not match them
    tensors, notes = read_weights(files)
    tensors |= module_tensors(modules)
    return from_tensors(
        tensors,
        parameters,
        layout,
        path=path,
        config=config,
        sha256=remembered_hash(path, stamps, tensors, cache, progress),
        notes=notes,
        vocabulary=vocabulary,
        base=base,
        cache=cache,
        modules=tuple(modules),
    )


def from_tensors(
    tensors: Mapping[str, Tensor],
    parameters: Mapping[str, tuple[int, ...]] | None = None,
    layout: Layout | None = None,
    *,
    path: Path = MEMORY,
    config: Mapping[str, Any] | None = None,
    sha256: str | None = None,
    notes: Sequence[str] = (),
    vocabulary: str = REFUSE,
    base: Checkpoint | None = None,
    cache: Path | None = None,
    modules: tuple[str, ...] = (),
) -> Checkpoint:
    """Makes a checkpoint of tensors by their keys, such as a state dict; they are not copied.

    Args:
        tensors: by file key, or by name in the live model.
        parameters: name -> shape of the live model's `named_parameters()`; None: the tensors are the parameters.
        layout: what keys mean; None: they are names of the live model.
        path: where they come from, for messages.
        config: of their model.
        sha256: their content hash, where it is known.
        notes: what else is to be known of them.
        vocabulary: what becomes of an expert with another number of tokens than the base: one of `vocabulary.CHOICES`.
        base: θ₀, of an expert; its own rows stay whatever the expert has.
        cache: directory that keeps what is converted; None: in memory, at each access.
        modules: folders of the directory whose tensors are among them, under keys that begin so.

    Raises:
        CheckpointError: as `open_checkpoint`, of tensors that can be read.
    """
    config, layout = dict(config or {}), layout or Layout()
    parameters = {key: tuple(tensor.shape) for key, tensor in tensors.items()} if parameters is None else parameters
    found = match(tensors, parameters, layout)
    for one in found.conversions:
        for key in one.sources:
            check_dtype(path, tensors, key)
        try:
            one.check(tensors, parameters, back=base is None)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}") from error
    converted = {name: one for one in found.conversions for name in one.names}
    tokens = layout.tokens or {**(config.get("text_config") or {}), **config}.get("vocab_size")
    rows: dict[str, Rows] = {}
    for name, keys in found.held.items():
        chosen = vocabulary if base is not None and name in base.keys else REFUSE
        check_tensors(path, tensors, keys, name, found)
        if other := [key for key in keys if tuple(tensors[key].shape) != tuple(parameters[name])]:
            rows[name] = other_rows(path, tokens, other[0], tensors[other[0]], name, parameters[name], chosen)
    first = {name: keys[0] for name, keys in found.held.items() if name not in rows or rows[name].merged}
    first |= {name: one.sources[0] for name, one in converted.items()}
    kept = {name: first[name] for name in parameters if name in first}
    fitted = {name: _fit(tensors[kept[name]], rows[name], base, name) for name in rows if base and name in kept}
    missing = tuple(name for name in parameters if name not in found.held and name not in converted)
    sha256 = content_hash(tensors) if sha256 is None else sha256
    return Checkpoint(
        path=path,
        config=config,
        sha256=sha256,
        keys=kept,
        extra=tuple(found.extra),
        missing=missing,
        tensors=tensors,
        rows=rows,
        fitted=fitted,
        computed=tuple(name for name in missing if name in layout.computed),
        stray=tuple(key for key in found.stray if tensors[key].is_floating_point()),
        untied=tuple(found.untied),
        names=found.names,
        buffers=tuple(key for key in found.extra if found.names[key] in layout.buffers),
        notes=tuple(notes),
        conversions=tuple(found.conversions),
        converted=Converted(found.conversions, tensors, sha256, cache),
        modules=modules,
    )


def _fit(tensor: Tensor, rows: Rows, base: Checkpoint, name: str) -> Tensor:
    """The rows that are merged, and behind them the base's own: their difference to the base is exactly zero."""
    if rows.merged == rows.base:
        return tensor[: rows.merged]
    ours = base.tensor(name)
    both = torch.promote_types(tensor.dtype, ours.dtype)
    return torch.cat([tensor[: rows.merged].to(both), ours[rows.merged :].to(both)])
