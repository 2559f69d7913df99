"""A PEFT adapter as an expert: a checkpoint that holds θ₀ plus what the adapter changes.

In: a directory with adapter_config.json and adapter_model.safetensors (or .bin), and the base. Out: a `Checkpoint`
whose parameters are those that the adapter changes: products of factors (`factors.py`), which stay factors; tensors
that were trained as a whole (`modules_to_save`, biases), which are those of the file; and tensors that are made of base
and adapter when they are asked for (`changes.py`). PEFT itself is not needed. Every tensor of the adapter is taken, or
the adapter is refused.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.common.names import listed
from evomerge.common.progress import Steps
from evomerge.models.adapted import Adapted, Computed, Make
from evomerge.models.adapter_files import adapter_file
from evomerge.models.adapter_settings import AdapterSettings, read_settings
from evomerge.models.changes import biased, dora, summed, with_rows
from evomerge.models.checkpoint import Checkpoint, from_tensors
from evomerge.models.factors import Factors
from evomerge.models.fitting import UNTIE
from evomerge.models.matching import Layout, match
from evomerge.models.vocabulary import REFUSE
from evomerge.models.weights import file_stamps, load_file, remembered_hash, same

FRONT = "base_model.model."
"""What PEFT puts before the name of every tensor."""
PARTS = {
    "lora_A.weight": "right",
    "lora_B.weight": "left",
    "lora_embedding_A": "right",
    "lora_embedding_B": "left",
    "lora_B.bias": "bias",
    "lora_magnitude_vector": "lengths",
    "lora_magnitude_vector.weight": "lengths",
    "token_adapter.trainable_tokens_delta": "tokens",
}
"""What ends the name of a tensor behind that of its module, and what it is of this module."""
WHOLE = re.compile(r"\.(base_layer|modules_to_save)(?=\.)")
"""What PEFT puts into the names of tensors that are the model's own."""
EMBEDDINGS = ("embed_tokens", "wte", "word_embeddings")
"""The modules that rows are meant of where the adapter names none, as the input embedding of a model."""


def open_adapter(
    path: Path,
    parameters: Mapping[str, tuple[int, ...]],
    layout: Layout,
    *,
    base: Checkpoint | None = None,
    cache: Path | None = None,
    progress: Steps | None = None,
    vocabulary: str = REFUSE,
) -> Checkpoint:
    """Open an adapter by the parameters of the live model.

    Args:
        path: its directory.
        parameters: name -> shape of the live model's `named_parameters()`.
        layout: what the names of the live model mean.
        base: θ₀.
        cache: directory that remembers content hashes; None: hash anew.
        progress: told of the hashing, in bytes.
        vocabulary: what becomes of trained embeddings with another number of tokens than the base.

    Raises:
        CheckpointError: it is no sum on weights (`read_settings`), a file is damaged, a tensor is not known or does not
            fit, or it is given as the base.
    """
    if base is None:
        raise CheckpointError(
            f"{path} holds a PEFT adapter, not a model: give it as an expert, and the model that it was trained on as "
            "the base."
        )
    settings = read_settings(path)
    file = adapter_file(path)
    stamps, tensors = file_stamps([file]), load_file(file)
    content = remembered_hash(path, stamps, tensors, cache, progress)
    digest = hashlib.sha256(json.dumps([content, settings.meaning], sort_keys=True).encode()).hexdigest()
    reader = _Reader(path, tensors, settings, parameters, layout, base)
    return reader.checkpoint(digest, vocabulary)


class _Reader:
    """Finds what each tensor of an adapter is.

    Args:
        path: of the adapter.
        tensors: all of it, by key.
        settings: what it says of itself.
        parameters: name -> shape of the live model's.
        layout: what their names mean.
        base: θ₀.
    """

    def __init__(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        settings: AdapterSettings,
        parameters: Mapping[str, tuple[int, ...]],
        layout: Layout,
        base: Checkpoint,
    ) -> None:
        self._path, self._tensors, self._settings = path, tensors, settings
        self._parameters, self._base = parameters, base
        self._layout = replace(layout, convert=None, own=None)  # names are those of a model, not of its files
        self._modules: dict[str, dict[str, str]] = {}  # module -> what it is -> key
        self._whole: dict[str, str] = {}  # name -> key
        for key in tensors:
            self._sort(key)
        wanted = [f"{module}.{leaf}" for module, parts in self._modules.items() for leaf in _leaves(parts)]
        found = match(dict.fromkeys(wanted, torch.empty(0)), parameters, self._layout)
        if found.extra:
            self._refuse([key for key in tensors if any(key.startswith(FRONT + _owner(name)) for name in found.extra)])
        self._names = {one: name for name, those in found.held.items() for one in those}
        self._live = found.names
        if twice := next((those for those in found.held.values() if len(those) > 1), None):
            raise CheckpointError(
                f"{path} has changes of its own for {' and '.join(twice)}, which the base ties into one parameter, so "
                f"one of them would be lost. {UNTIE}"
            )

    def checkpoint(self, digest: str, vocabulary: str) -> Checkpoint:
        """Return the adapter on top of the base.

        Args:
            digest: the hash of what it is.
            vocabulary: see `open_adapter`.
        """
        factors, made, keys = self._changes()
        whole = self._own(keys)
        layout = replace(self._layout, tokens=self._tokens(whole))
        about = {"path": self._path, "sha256": digest, "vocabulary": vocabulary, "base": self._base}
        found = from_tensors(whole, self._parameters, layout, **about)
        if found.stray:
            self._refuse([self._whole[name] for name in found.stray])
        if both := [name for name in found.keys if name in keys]:
            raise CheckpointError(
                f"{self._path} holds {listed(both)} twice, as a whole tensor and as a change of it. {UNTIE}"
            )
        keys |= found.keys
        if not keys:
            raise CheckpointError(
                f"{self._path} changes none of the live model's parameters: it holds {listed(list(self._tensors))}. "
                "Its base is another model than the one given, or model.auto_class leaves out what it changes."
            )
        fitted = {name: partial(found.fitted.__getitem__, name) for name in found.fitted}
        sums = {name: self._made(name, summed, one) for name, one in factors.items()}
        return replace(
            found,
            keys={name: keys[name] for name in self._parameters if name in keys},
            missing=(),
            untied=(),
            tensors={**self._tensors, **whole},
            fitted=Computed({**fitted, **made, **sums}),
            notes=tuple(self._tied(self._live, found.names)),
            adapted=Adapted(factors, frozenset((*factors, *made)), self._settings.named_base),
        )

    def _sort(self, key: str) -> None:
        """Take note of a tensor: a part of what changes a module, or a tensor of the model."""
        name = key.removeprefix(FRONT)
        if name == key:
            self._refuse([key])
        ending = next((ending for ending in PARTS if name.endswith(f".{ending}")), None)
        if ending is None:
            self._whole[WHOLE.sub("", name)] = key
        else:
            self._modules.setdefault(name.removesuffix(f".{ending}"), {})[PARTS[ending]] = key

    def _changes(self) -> tuple[dict[str, Factors], dict[str, Make], dict[str, str]]:
        """Return, by parameter, the factors of those that stay factors, what makes the others, and a key of each."""
        factors: dict[str, Factors] = {}
        made: dict[str, Make] = {}
        keys: dict[str, str] = {}
        for module, parts in self._modules.items():
            if extra := [
                parts[part] for part in ("left", "right", "bias", "lengths") if part in parts and "tokens" in parts
            ]:
                self._refuse(extra)
            for leaf in _leaves(parts):
                name = self._names[f"{module}.{leaf}"]
                keys[name] = parts["bias" if leaf == "bias" else "tokens" if "tokens" in parts else "right"]
                if leaf == "bias":
                    made[name] = self._made(name, biased, self._tensors[parts["bias"]], self._settings.scale(module))
                elif "tokens" in parts:
                    made[name] = self._made(
                        name, with_rows, self._tensors[parts["tokens"]], self._places(module, parts["tokens"])
                    )
                elif "lengths" in parts:
                    lengths, columns = self._tensors[parts["lengths"]], self._transposed(parts, name)
                    made[name] = self._made(name, dora, self._factors(module, parts, name), lengths, columns)
                else:
                    factors[name] = self._factors(module, parts, name)
        return factors, made, keys

    def _made(self, name: str, make: Callable[..., Tensor], *given: Any) -> Make:
        """Return what makes a parameter of the base's and of what the adapter holds."""
        return lambda: make(self._base.tensor(name), *given)

    def _own(self, changed: Mapping[str, str]) -> dict[str, Tensor]:
        """Return the tensors that were trained as a whole, without copies of the base's beside a change of them."""
        whole = {name: self._tensors[key] for name, key in self._whole.items()}
        held = match(whole, self._parameters, self._layout).held
        for parameter, names in held.items():
            if parameter not in changed:
                continue
            ours = self._base.tensor(parameter)
            for name in names:
                if not same(ours, whole[name]) and not same(ours.to(whole[name].dtype), whole[name]):
                    raise CheckpointError(
                        f"{self._path}: {self._whole[name]} is the tensor that the adapter changes, and it is not the "
                        f"base's. The adapter was trained on another base, or tokens were added to this one."
                    )
                del whole[name]
        return whole

    def _factors(self, module: str, parts: Mapping[str, str], name: str) -> Factors:
        """Return the factors of a parameter, laid out as it is.

        Raises:
            CheckpointError: they do not fit, or are not finite.
        """
        if missing := [what for what in ("left", "right") if what not in parts]:
            other = "lora_A" if missing == ["right"] else "lora_B"
            raise CheckpointError(f"{self._path} holds no {other} of {module}: download or copy the adapter again.")
        left, right = (self._tensors[parts[what]].float() for what in ("left", "right"))
        held = f"{tuple(left.shape)} and {tuple(right.shape)}"
        left, right = left.flatten(1), right.flatten(1)
        if self._transposed(parts, name):
            left, right = right.T, left.T
        shape, rank = self._parameters[name], self._settings.rank(module)
        if left.shape[1] != len(right) or (len(left), right.shape[1]) != (shape[0], math.prod(shape[1:])):
            raise CheckpointError(
                f"{self._path}: the factors of {module} have the shapes {held}, which do not make the {tuple(shape)} "
                f"of the base's {name}. The adapter was trained on another base: name that one."
            )
        if len(right) != rank:
            raise CheckpointError(
                f"{self._path} contradicts itself: the factors of {module} have rank {len(right)}, and its "
                f"adapter_config.json says {rank} (r, rank_pattern). Put the file back that belongs to these weights."
            )
        if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
            raise CheckpointError(
                f"{self._path}: the factors of {module} are not finite (inf or NaN), so nothing can be merged from "
                "them. Its training diverged or its file is damaged: take an earlier checkpoint."
            )
        return Factors(left.contiguous(), right.contiguous(), self._settings.scale(module), module)

    def _transposed(self, parts: Mapping[str, str], name: str) -> bool:
        """Whether a parameter has inputs first, as embeddings and the Conv1D of GPT-2 have."""
        if parts["right"].endswith("lora_embedding_A"):
            return True
        known = self._layout.transposed
        return self._settings.transposed if known is None else name in known

    def _places(self, module: str, key: str) -> list[int]:
        """Return which rows of a module were trained.

        Raises:
            CheckpointError: the settings do not say it.
        """
        tokens, rows = self._settings.tokens, len(self._tensors[key])
        named = next((places for name, places in tokens.items() if name and module.endswith(name)), tokens.get("", []))
        if len(named) != rows:
            raise CheckpointError(
                f"{self._path} contradicts itself: it holds {rows} rows of {module}, and its adapter_config.json names "
                f"{len(named)} (trainable_token_indices). Put the file back that belongs to these weights."
            )
        return named

    def _tokens(self, whole: Mapping[str, Tensor]) -> int | None:
        """Return the size of the adapter's vocabulary: the rows of what has as many rows as tokens in the base."""
        ours = self._layout.tokens
        for name, keys in match(whole, self._parameters, self._layout).held.items():
            if self._parameters[name][:1] == (ours,) and whole[keys[0]].shape[1:] == self._parameters[name][1:]:
                return len(whole[keys[0]])
        return ours

    def _tied(self, changed: Mapping[str, str], whole: Mapping[str, str]) -> Iterator[str]:
        """Say that what the adapter changes is more in a merge than it was in training.

        Args:
            changed: key -> name of what it changes.
            whole: the same of what it holds as a whole, which PEFT unties.
        """
        tied = self._layout.tied or {}
        for alias, source in tied.items() if not self._settings.ties else ():
            trained = [name for name in (alias, source) if name in {*changed.values(), *whole.values()}]
            if len(trained) == 1:
                (other,) = {alias, source} - {*trained}
                peft = "as PEFT's merge_and_unload does"
                if trained[0] in whole.values():
                    peft = f"where PEFT leaves {other} as it is. To have that: {UNTIE.rstrip('.')}"
                yield f"changes {trained[0]} alone, and the base ties it to {other}: a merge changes both, {peft}"

    def _refuse(self, keys: Sequence[str]) -> None:
        raise CheckpointError(
            f"{self._path} holds {listed(list(keys))}, which the live model has no place for, so the adapter would be "
            "merged in part only. Name the base that it was trained on; where it changes a head, load the base with it "
            "(model.auto_class=AutoModelForCausalLM); or fold it with PEFT's merge_and_unload() and name the result."
        )


def _leaves(parts: Mapping[str, str]) -> Iterator[str]:
    """Yield which parameters of a module some parts change."""
    if parts.keys() - {"bias"}:
        yield "weight"
    if "bias" in parts:
        yield "bias"


def _owner(name: str) -> str:
    return f"{name.rpartition('.')[0]}."
