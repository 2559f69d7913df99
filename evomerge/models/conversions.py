"""Tensors that transformers fuses, splits or permutes at load: the experts of a mixture, say, packed into one tensor.

In: a model of transformers, and the keys of a file. Out: `Conversion`s. Each says which keys become which parameters,
and converts both ways, by transformers' own mapping and its reverse. An element of a file stands in one place of one
parameter, so a merge in the live model's form is a merge in the file's. `Converted` keeps what was converted in a file,
so that it is memory-mapped like all other weights.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import transformers
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    apply_converters,
    apply_renamings,
    dot_natural_key,
    rename_source_key,
)

from evomerge.common.errors import CheckpointError
from evomerge.models.weights import content_hash, file_stamps, load_file, remembered_hash

FORMAT, KEPT = "evomerge conversion 1", "tensor"


@dataclass(frozen=True, eq=False)
class Conversion:
    """Some tensors of a file, and the parameters that transformers makes of them.

    Attributes:
        keys: the file keys, in the order in which they are taken, by the pattern that each matches.
        names: the parameters.
        renamed: what each key is called before it is converted.
        target: what transformers calls the first parameter, before the prefix of a class is added or taken away.
        converter: how.
        model: whose; with or without weights.
    """

    keys: Mapping[str, tuple[str, ...]]
    names: tuple[str, ...]
    renamed: Mapping[str, str] = field(repr=False)
    target: str
    converter: WeightConverter
    model: Any = field(repr=False)

    @property
    def sources(self) -> tuple[str, ...]:
        """All file keys."""
        return tuple(key for keys in self.keys.values() for key in keys)

    def read(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the parameters, made of the tensors of a file.

        Args:
            tensors: by file key.
        """
        converter: Any = copy.deepcopy(self.converter)  # it takes tensors as well as futures of them
        for pattern, keys in self.keys.items():
            for key in keys:
                converter.add_tensor(self.names[0], key, pattern, tensors[key])
        return _realised(converter.convert(self.names[0], model=self.model, config=self.model.config))

    def write(self, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the tensors of a file, made of the parameters.

        Args:
            parameters: by name.

        Raises:
            ValueError: transformers has no way back to these keys.
        """
        back: Any = self.converter.reverse_transform()
        placed = self._placed()
        first, pattern = apply_converters(placed[self.names[0]], [back])
        for name in self.names:
            _, pattern = apply_converters(placed[name], [back])
            back.add_tensor(first, placed[name], str(pattern), parameters[name])
        found = _realised(back.convert(first, model=self.model, config=self.model.config))
        own = {renamed: key for key, renamed in self.renamed.items()}
        if found.keys() != own.keys():
            raise ValueError(f"{sorted(found)[:1]} is none of its keys")
        return {own[name]: tensor for name, tensor in found.items()}

    def _placed(self) -> dict[str, str]:
        """Return what transformers calls each parameter, with the prefix that the file has."""
        first = self.names[0]
        if self.target == first:
            return {name: name for name in self.names}
        if self.target.endswith(first):
            return {name: self.target.removesuffix(first) + name for name in self.names}
        return {name: name.removeprefix(first.removesuffix(self.target)) for name in self.names}

    def check(self, tensors: Mapping[str, Tensor], parameters: Mapping[str, tuple[int, ...]], back: bool) -> None:
        """Refuse what does not become parameters of the live model, looking at shapes alone.

        Args:
            tensors: by file key.
            parameters: name -> shape of the live model.
            back: whether the tensors are written as well.

        Raises:
            CheckpointError: it does not, or transformers knows no way back.
        """
        keys, meta = self.sources, {key: tensors[key].to("meta") for key in self.sources}
        what = f"{keys[0]}{f' and {len(keys) - 1} more' if len(keys) > 1 else ''}"
        try:
            made = self.read(meta)
        except Exception as error:  # of whatever kind transformers' operations raise
            raise CheckpointError(f"{what}: transformers cannot convert them to {self.names[0]}: {error}") from error
        for name in self.names:
            if name not in made or tuple(made[name].shape) != tuple(parameters[name]):
                got = tuple(made[name].shape) if name in made else "no such tensor"
                raise CheckpointError(
                    f"{what} become {name} of shape {got}, but the live model's has {tuple(parameters[name])}: some of "
                    f"them are missing, or it is a model of another size than its config.json says."
                )
        if not back:
            return
        try:
            written = self.write(made)
        except Exception as error:  # the same
            raise CheckpointError(
                f"{what} become {self.names[0]} at load, and transformers cannot convert it back ({error}), so a merge "
                f"could not be written. Save the model in the live model's own names: "
                f"model.save_pretrained(DIR, save_original_format=False)."
            ) from error
        if other := [key for key in keys if written[key].shape != meta[key].shape]:
            raise CheckpointError(
                f"{other[0]} has shape {tuple(meta[other[0]].shape)}, and transformers writes it back as "
                f"{tuple(written[other[0]].shape)}, so a merge would not fit its own files."
            )


def find_conversions(model: Any, tensors: Mapping[str, Tensor]) -> list[Conversion]:
    """Find what transformers converts of a file when it loads this model.

    Args:
        model: a transformers model, with or without weights.
        tensors: of the files, by key; their shapes are looked at alone.
    """
    transforms = get_model_conversion_mapping(model)  # new ones for each file: they remember what they have met
    renamings = [one for one in transforms if isinstance(one, WeightRenaming)]
    converters = [one for one in transforms if isinstance(one, WeightConverter)]
    if not converters:
        return []
    known = model.state_dict()
    by_pattern = {pattern: one for one in converters for pattern in one.source_patterns}
    found: dict[str, dict[str, list[str]]] = {}
    for key in sorted(tensors, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, model.base_model_prefix, known)
        if pattern is not None and name in known:
            found.setdefault(name, {}).setdefault(pattern, []).append(key)
    made = []
    for name, held in found.items():
        renamed = {key: apply_renamings(key, renamings) for keys in held.values() for key in keys}
        pattern, first = next((pattern, keys[0]) for pattern, keys in held.items())
        target, _ = apply_converters(renamed[first], converters)
        keys = {pattern: tuple(keys) for pattern, keys in held.items()}
        one = Conversion(keys, (name,), renamed, target, by_pattern[pattern], model)
        try:
            names = tuple(one.read({key: tensors[key].to("meta") for key in one.sources}))
        except Exception:  # of whatever kind: `check` says what is wrong
            names = one.names
        made.append(replace(one, names=(name, *(other for other in names if other != name))))
    return made


class Converted(Mapping[str, Tensor]):
    """Parameters by name that are converted when they are asked for.

    Args:
        conversions: how.
        tensors: of the files, by file key.
        sha256: their content hash.
        cache: directory that keeps what was converted, so that it is mapped from there; it may be deleted at any time.
            None: every access converts anew.
    """

    def __init__(
        self, conversions: Collection[Conversion], tensors: Mapping[str, Tensor], sha256: str, cache: Path | None
    ) -> None:
        self._by_name = {name: (name, one) for one in conversions for name in one.names}
        self._tensors, self._sha256, self._cache = tensors, sha256, cache

    def under(self, names: Mapping[str, str]) -> Converted:
        """Return the same under other names, without those that have none.

        Args:
            names: name -> the other one.
        """
        found = copy.copy(self)
        found._by_name = {names[name]: one for name, one in self._by_name.items() if name in names}
        return found

    def __getitem__(self, name: str) -> Tensor:
        name, conversion = self._by_name[name]
        if self._cache is None:
            return conversion.read(self._tensors)[name]
        contents = [FORMAT, transformers.__version__, self._sha256, name, conversion.sources]
        file = self._cache / f"{hashlib.sha256(json.dumps(contents).encode()).hexdigest()}.safetensors"
        self._cache.mkdir(parents=True, exist_ok=True)
        with FileLock(file.with_suffix(".lock")):  # a second process waits, and reads what is there
            found = _kept(file, self._cache)
            if found is None:
                _keep(file, conversion.read(self._tensors)[name])
                found = load_file(file)[KEPT]
        return found

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_name)

    def __len__(self) -> int:
        return len(self._by_name)


def _realised(found: Mapping[str, Any]) -> dict[str, Tensor]:
    return {name: value[0] if isinstance(value, list) else value for name, value in found.items()}


def _keep(file: Path, tensor: Tensor) -> None:
    part = file.with_name(f".partial-{file.name}")
    save_file({KEPT: tensor.contiguous()}, part, {"sha256": content_hash({KEPT: tensor})})
    os.replace(part, file)


def _kept(file: Path, cache: Path) -> Tensor | None:
    """Return the tensor of a file; None where there is none, or it is not what was written."""
    try:
        stamps = file_stamps([file])
        with safe_open(file, "pt") as handle:
            written = (handle.metadata() or {}).get("sha256")
        tensors = load_file(file)
    except (OSError, SafetensorError, CheckpointError):
        return None
    return tensors.get(KEPT) if remembered_hash(file, stamps, tensors, cache) == written else None
