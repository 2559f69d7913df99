"""The tokens of a base and all its experts in one vocabulary, each with a row of its own (`model.vocabulary=union`).

In: the live model, and the directories of base and experts. Out: a `Union`, which has the base's tokenizer with the
tokens that it lacks, and the live model with rows for them. The base's ids stay; new tokens come after them, expert by
expert. A row of an expert goes where its token is. θ₀ of a new token is its row in the expert that has it, or the mean
of several, as in mergekit's `tokenizer: {source: union}`; an expert that lacks a token has a task vector of zero there.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.names import listed
from evomerge.models.adapted import Computed, Make
from evomerge.models.adapter_files import is_adapter
from evomerge.models.adapters import open_adapter
from evomerge.models.checkpoint import Checkpoint, from_tensors, open_checkpoint
from evomerge.models.pretrained import load_tokenizer, read_config, silence
from evomerge.models.vocabulary import UNION
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors

if TYPE_CHECKING:
    from evomerge.models.live import LiveModel

WORDS = "WordLevel"
"""The kind of vocabulary that has no pieces of words."""


@dataclass(frozen=True, eq=False)
class Union:
    """One vocabulary for a base and its experts.

    Attributes:
        tokenizer: of it.
        kept: the ids of the base's own tokens.
        before: how many rows the base has.
        size: how many there are now.
        rows: the parameters that have a row for each token.
        experts: the directories of the experts, in their order.
    """

    tokenizer: Any = field(repr=False)
    kept: frozenset[int] = field(repr=False)
    before: int
    size: int
    rows: tuple[str, ...]
    experts: tuple[Path, ...]

    @cached_property
    def digest(self) -> str:
        """A hash of the tokens, their ids, and where each expert has them."""
        found = hashlib.sha256(json.dumps(sorted(self.tokenizer.get_vocab().items())).encode())
        for path in self.experts:
            found.update(self.places(path).numpy().tobytes())
        return found.hexdigest()[:16]

    def places(self, path: Path) -> Tensor:
        """Return the row that a model has for each row of the union, (size,); -1 where it lacks the token."""
        own, rows = _tokenizer(path).get_vocab(), token_rows(path)
        found = torch.full((self.size,), -1)
        for token, at in self.tokenizer.get_vocab().items():
            if own.get(token, rows) < rows:
                found[at] = own[token]
        return found

    def base(self, live: LiveModel, path: Path, **options: Any) -> Checkpoint:
        """Open the base, with rows for all tokens."""
        found = open_checkpoint(path, self._shapes(live, self.before), live.layout(path), **options)
        spare = [key for key in found.spare if key not in found.buffers and len(found.tensors[key]) == self.before]
        if spare:
            raise ConfigError(
                f"model.vocabulary=union: the base holds {listed(spare)}, a row for each token, and {live.auto_class} "
                f"has no such parameter, so it would get no rows for new tokens. Load the base with its head: "
                f"model.auto_class=AutoModelForCausalLM, say."
            )
        given = [self._given(live, expert) for expert in self.experts]
        fitted = {}
        for name in (name for name in self.rows if name in found.keys):
            ours = found.tensor(name)
            rows = torch.zeros(self.size, *ours.shape[1:], dtype=torch.float32)
            known = torch.zeros(self.size)
            for held, places in given:
                has = (places >= 0).nonzero()[:, 0]
                rows[has] += held.tensor(name)[places[has]].float()
                known[has] += 1
            rows /= known.clamp(min=1).view(-1, *(1,) * (ours.dim() - 1))
            own = sorted(at for at in self.kept if at < self.before)
            free = [at for at in range(self.before) if at not in self.kept and not known[at]]  # padding
            rows[[*own, *free]] = ours[[*own, *free]].float()
            fitted[name] = rows.to(ours.dtype)
        return replace(found, fitted=fitted, union=self.digest)

    def expert(self, live: LiveModel, path: Path, base: Checkpoint, **options: Any) -> Checkpoint:
        """Open another model, each of its rows where its token is; rows of tokens that it lacks are the base's."""
        found = open_checkpoint(path, self._shapes(live, token_rows(path)), live.layout(path), base=base, **options)
        places, fitted = self.places(path), {}
        has = (places >= 0).nonzero()[:, 0]
        for name in (name for name in self.rows if name in found.keys and name in base.keys):
            fitted[name] = _placed(partial(base.tensor, name), partial(found.tensor, name), has, places[has])
        tokens = self.tokenizer.get_vocab()
        new = sum(1 for at in tokens.values() if at not in self.kept and places[at] >= 0)
        lacking = sum(1 for at in tokens.values() if places[at] < 0)
        note = f"brings {new} tokens that the base lacks, and lacks {lacking} of all {len(tokens)}"
        notes = (*found.notes, f"{note} (model.vocabulary=union)") if new or lacking else found.notes
        return replace(found, fitted=fitted, notes=notes, union=self.digest)

    def adapter(self, live: LiveModel, path: Path, **options: Any) -> Checkpoint:
        """Open an adapter on top of the base, whose tokens it has; rows of all other tokens are the base's."""
        base = options.pop("base", None)
        own = base and replace(base, fitted={}, union=None)  # as it was when the adapter was trained on it
        shapes, layout = self._shapes(live, self.before), replace(live.layout(), tokens=self.before)
        found = open_adapter(path, shapes, layout, base=own, vocabulary=UNION, **options)
        kept = torch.tensor(sorted(at for at in self.kept if at < self.before))
        factors = dict(found.factors)
        made = {name: partial(found.fitted.__getitem__, name) for name in found.fitted}
        for name in (name for name in self.rows if name in found.keys):
            made[name] = partial(_placed, partial(base.tensor, name), partial(found.tensor, name), kept, kept)
            if one := factors.get(name):
                left = torch.zeros(self.size, one.rank)
                left[kept] = one.left[kept]
                factors[name] = replace(one, left=left)
        adapted = found.adapted and replace(found.adapted, factors=factors)
        return replace(found, fitted=Computed(made), adapted=adapted, union=self.digest)

    def _given(self, live: LiveModel, path: Path) -> tuple[Checkpoint, Tensor]:
        """Return an expert as it is, unhashed, and where it has the tokens."""
        tensors, shapes = read_tensors(weight_files(path)), self._shapes(live, token_rows(path))
        return from_tensors(tensors, shapes, live.layout(path), path=path, sha256=""), self.places(path)

    def _shapes(self, live: LiveModel, rows: int) -> dict[str, tuple[int, ...]]:
        """Return the shapes that parameters have in files with so many rows."""
        return {name: (rows, *shape[1:]) if name in self.rows else shape for name, shape in live.parameters.items()}


def _placed(base: Make, other: Make, at: Tensor, places: Tensor) -> Tensor:
    """Return the rows of the base with some rows of another model in their places, in a dtype that holds both."""
    ours, theirs = base(), other()
    whole = ours.to(torch.promote_types(ours.dtype, theirs.dtype), copy=True)
    whole[at] = theirs[places].to(whole.dtype)
    return whole


def unite(live: LiveModel, base: Path, experts: Sequence[Path]) -> LiveModel:
    """Return a live model with rows for the tokens of all experts, and the tokenizer that knows them.

    Args:
        live: the base, or its skeleton; it is changed in place.
        base: its directory.
        experts: those of the experts.

    Raises:
        ConfigError: experts are a part of the base.
        CheckpointError: tokenizers cannot be compared.
    """
    if live.part is not None:
        raise ConfigError("model.vocabulary=union is for whole models: write model.part=null, or vocabulary=shared.")
    experts = [path for path in experts if not is_adapter(path)]  # these have the base's tokens
    tokenizer, before = _tokenizer(base), token_rows(base)
    kind = _kind(tokenizer, base)
    kept = frozenset(tokenizer.get_vocab().values())
    for path in experts:
        other, rows = _tokenizer(path), token_rows(path)
        if (theirs := _kind(other, path)) != kind:
            raise CheckpointError(
                f"{path} has a tokenizer of another kind ({theirs}) than the base ({kind}): a token of the one is none "
                f"of the other, whatever its name, so model.vocabulary=union cannot be honoured. Write "
                f"model.vocabulary=base, which keeps the base's rows."
            )
        known, added = tokenizer.get_vocab(), other.added_tokens_decoder
        new = sorted((at, token) for token, at in other.get_vocab().items() if token not in known and at < rows)
        if kind != WORDS and (pieces := [token for at, token in new if at not in added]):
            raise CheckpointError(
                f"{path} has {len(pieces)} tokens that the base lacks ({listed(pieces)}) and that nobody added: they "
                f"are pieces of its {kind}, which come of rules that the base's tokenizer lacks, and added to that one "
                f"they would cut other words. Write model.vocabulary=base, which keeps the base's rows."
            )
        tokenizer.add_tokens([added.get(at, token) for at, token in new])
    size = max(before, 1 + max(tokenizer.get_vocab().values()))
    model = live.model
    held = {
        id(parameter)
        for module in (model.get_input_embeddings(), model.get_output_embeddings())
        if module is not None
        for parameter in module.parameters()
    }
    rows = tuple(name for name, one in model.named_parameters() if id(one) in held and len(one) == before)
    if size > before:
        with silence(), torch.random.fork_rng(devices=[]):
            model.resize_token_embeddings(size, mean_resizing=False)
        model.eval().requires_grad_(False)
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if other := [name for name, shape in shapes.items() if shape != live.parameters.get(name) and name not in rows]:
        raise CheckpointError(
            f"model.vocabulary=union: {listed(other)} of the base would change with the number of tokens, and is "
            f"no row for each of them. Write model.vocabulary=shared."
        )
    union = Union(tokenizer, kept, before, size, rows, tuple(experts))
    return replace(live, parameters=shapes, union=union, processor=live.processor and tokenizer)


def _tokenizer(path: Path) -> Any:
    try:
        return load_tokenizer(path)
    except CheckpointError as error:
        raise CheckpointError(f"model.vocabulary=union compares tokenizers: {error}") from error


def _kind(tokenizer: Any, path: Path) -> str:
    """Return what kind of vocabulary a tokenizer has."""
    if not tokenizer.is_fast:
        raise CheckpointError(
            f"{path} has a {type(tokenizer).__name__}, whose tokens cannot be compared with those of another model: "
            f"model.vocabulary=union needs a tokenizer.json. Write model.vocabulary=shared or base."
        )
    return str(json.loads(tokenizer.backend_tokenizer.to_str())["model"]["type"])


def token_rows(path: Path) -> int:
    """Return how many rows a model has for tokens."""
    return int(read_config(path).get_text_config().vocab_size)
