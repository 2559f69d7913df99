"""What should be known of a base and its experts before they are merged: one list for all verbs.

In: their directories and `Checkpoint`s. Out: sentences, each beginning with whom it concerns. `search`, `evaluate`,
`merge` and `inspect` say the same of the same models, since `family_notes` is the only place where it is said. What
cannot be merged at all is refused here as well, in the same words for all.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from torch import Tensor

from evomerge.common.names import listed
from evomerge.models.adapter_files import check_expert_files, is_adapter
from evomerge.models.buffers import BASE
from evomerge.models.cards import read_licence
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.configurations import Configuration, configuration_notes, differences, said
from evomerge.models.live import LiveModel
from evomerge.models.parts import is_part
from evomerge.models.processing import Processing, processing_notes
from evomerge.models.weight_files import check_readable, weight_files
from evomerge.models.weights import dtype_name, first_dtype, loaded_dtype
from evomerge.task_vectors.store import check_family, rounding

SAME = 0.98
"""Cosine of two task vectors above which a search can hardly tell them apart."""
SAMPLE = 1 << 15
"""Elements of a tensor that likenesses look at."""


def family_notes(
    places: Mapping[str, Path],
    live: LiveModel,
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    parameters: Mapping[str, tuple[int, ...]],
    allowed: Collection[str] = (),
    pooled: bool = True,
    written: bool = False,
    buffers: str = BASE,
    template: str = BASE,
) -> list[str]:
    """Return all that should be known of a family.

    Args:
        places: the directories of the experts, by name.
        live: the base as it is loaded, or its skeleton.
        base: θ₀.
        experts: θ_k by name.
        parameters: name -> shape of what is merged.
        allowed: names and patterns of tensors that may be missing or left over (`model.allow_missing`).
        pooled: whether what is scored may look at pooled outputs; heads do not.
        buffers: what a merge has of floating buffers (`model.buffers`).
        written: whether the merge becomes a directory, of which is said elsewhere what stays the base's.
        template: whose chat template all are asked with: `base`, or the name of an expert (`model.template`).

    Raises:
        CheckpointError: base or experts cannot be merged; see `check_family`.
    """
    stored = {name: path for name, path in places.items() if path.is_dir() and base.path.is_dir()}  # not in memory
    models = {name: experts[name] for name in stored if not experts[name].adapted}
    named = {f"expert {name}": path for name, path in stored.items()}
    parts = [who for who, path in named.items() if not is_adapter(path) and is_part(live, path)]
    asked = None if template == BASE else f"expert {template}"
    return [
        *check_family(base, experts, parameters, allowed, buffers),
        *(_missing(base) if pooled else ()),
        *(() if written else _outside(live, base, experts)),
        *(directory_notes(base.path, named, parts, live.union is not None, asked) if stored else ()),
        *_dtypes(base, models),
        *_other_bases(base, experts),
        *_labels(live, base, experts),
        *_licences(base.path, list(places.values())),
        *_likenesses(base, experts, parameters),
    ]


def directory_notes(
    base: Path,
    others: Mapping[str, Path],
    parts: Collection[str] = (),
    united: bool = False,
    asked: str | None = None,
) -> list[str]:
    """Return in what directories are configured otherwise than the base, and make other inputs of texts and images.

    Args:
        base: the directory of the base.
        others: the other ones, by what they are called in the sentences.
        parts: those of them that are the base's part for texts.
        united: whether one tokenizer knows the tokens of all.
        asked: the one of them whose chat template is used for all; None for the base's.
    """
    whole, text, processing = Configuration(base), Configuration(base, text=True), Processing(base)
    used = None if asked is None else (asked, Processing(others[asked]))
    return [
        note
        for who, path in others.items()
        for note in (
            *(
                ()
                if is_adapter(path)
                else configuration_notes(text if who in parts else whole, Configuration(path), who)
            ),
            *(
                processing_notes(processing, Processing(path), who, who in parts, united, used)
                if not is_adapter(path) or _has_tokenizer(path)
                else ()
            ),
        )
    ]


def check_files(base: Path | None, experts: Iterable[Path]) -> None:
    """Refuse directories whose weights or settings are not there or cannot be read, before any is loaded.

    Args:
        base: a whole model; None where it is in memory.
        experts: whole models and adapters.

    Raises:
        CheckpointError: one does not.
    """
    if base is not None:
        weight_files(base)
        check_readable(base)
    for path in experts:
        check_expert_files(path)


def loaded_in(checkpoint: Checkpoint) -> str:
    """Return the name of the dtype in which transformers loads a model."""
    text = checkpoint.config.get("text_config") or {}
    stated = [config.get(name) for config in (checkpoint.config, text) for name in ("dtype", "torch_dtype")]
    return loaded_dtype(checkpoint.path, checkpoint.tensors, next(filter(None, stated), None))


def _missing(base: Checkpoint) -> list[str]:
    if not (drawn := [name for name in base.missing if name not in base.computed]):
        return []
    return [
        f"the base holds no {listed(drawn)}: random in the live model, and not merged; nothing that is scored "
        f"may depend on it"
    ]


def _outside(live: LiveModel, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> list[str]:
    """What is in the files of all, and yet takes no part in a merge."""
    buffers = {name.rpartition(".")[2] for name, _ in live.model.named_buffers()}  # those of batch norm, positions
    spare = [
        key
        for key in base.spare
        if key.rpartition(".")[2] not in buffers and any(key in expert.extra for expert in experts.values())
    ]
    if not spare:
        return []
    kind = auto_class_of(next((name for name in base.config.get("architectures") or () if isinstance(name, str)), ""))
    hint = f"; model.auto_class={kind} has it" if kind else ""
    return [f"the base holds {listed(spare)}, no part of {type(live.model).__name__} and not merged{hint}"]


def auto_class_of(architecture: str) -> str | None:
    """Return the AutoModel class that loads a class of transformers; None if there is none."""
    for name in sorted(dir(transformers), key=lambda name: ("PreTraining" in name, name)):
        mapping = (
            getattr(getattr(transformers, name), "_model_mapping", None) if name.startswith("AutoModelFor") else None
        )
        if mapping is not None and architecture in _names(mapping):
            return name
    return None


def _names(mapping: object) -> set[str]:
    """The names of all classes in one of transformers' mappings, none of which is loaded for it."""
    found: set[str] = set()
    for held in getattr(mapping, "_model_mapping", {}).values():
        found |= set(held if isinstance(held, tuple | list) else [held])
    return found


def _dtypes(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> list[str]:
    """Experts that people load in another dtype than the base, whose logits are rounded otherwise."""
    if not experts:
        return []
    ours, notes = loaded_in(base), []
    for name, expert in experts.items():
        theirs, held = loaded_in(expert), first_dtype(expert.tensors)
        coarser = rounding(held) > rounding(first_dtype(base.tensors))
        rounded = coarser and theirs == dtype_name(held)  # `check_family` has told of it
        if theirs != ours and not rounded:
            notes.append(
                f"expert {name} is loaded in {theirs} by itself (its dtype), and is merged and scored in {ours}, as "
                f"the base is: its logits are rounded otherwise"
            )
    return notes


def _has_tokenizer(path: Path) -> bool:
    """Whether an adapter came with the tokenizer that it was trained with; many come without, and use the base's."""
    return any(path.glob("tokenizer*"))


def _other_bases(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> list[str]:
    """Adapters that name another base than the one that is given: perhaps the same one in another place."""
    notes = []
    for name, expert in experts.items():
        named = expert.adapted.named_base if expert.adapted else None
        if named and not _same_model(named, base):
            notes.append(
                f"expert {name} is an adapter that was trained on {named}, and the base is {base.path}: if that is "
                f"another model, and not a copy of it, the adapter means nothing here"
            )
    return notes


def _same_model(named: str, base: Checkpoint) -> bool:
    """Whether the name that an adapter has for its base is that of the base: its directory, its last part, what its
    config.json says, or the hub's directory of it in the cache.
    """
    path = base.path.resolve()
    if Path(named).exists() and Path(named).resolve() == path:
        return True
    known = {
        base.config.get("_name_or_path"),
        *(part.removeprefix("models--").replace("--", "/") for part in path.parts),
    }
    return named in known or Path(named).name == path.name


def _labels(live: LiveModel, base: Checkpoint, experts: Mapping[str, Checkpoint]) -> list[str]:
    """Experts whose rows of a head that is merged stand for other classes than the base's."""
    if not live.auto_class.endswith("Classification"):
        return []
    ours = _class_names(base)
    return [
        f"expert {name} has other classes in its head than the base ({said(found)}), and the heads are merged row by "
        f"row: where the classes only stand in another order, put the rows of its head into the base's and save it anew"
        for name, expert in experts.items()
        if (theirs := _class_names(expert)) and ours and (found := differences(ours, theirs))
    ]


def _class_names(checkpoint: Checkpoint) -> dict[str, Any]:
    """What id2label says, without the names that only count."""
    given = checkpoint.config.get("id2label")
    named = given.items() if isinstance(given, dict) else ()
    return {f"id2label[{i}]": name for i, name in named if not str(name).startswith("LABEL_")}


def _licences(base: Path, experts: Sequence[Path]) -> list[str]:
    stated = sorted({licence for path in (base, *experts) if (licence := read_licence(path))})
    if len(stated) < 2:
        return []
    return [f"base and experts have other licences ({', '.join(stated)}): a merge has to respect all of them"]


def _likenesses(
    base: Checkpoint, experts: Mapping[str, Checkpoint], parameters: Mapping[str, tuple[int, ...]]
) -> list[str]:
    """Experts that are the base, or each other."""
    names, gram = list(experts), _products(base, list(experts.values()), parameters)
    gram[~np.isfinite(gram)] = np.nan  # what is not finite is refused elsewhere, and is like nothing
    norms = np.sqrt(np.diag(gram))
    notes = [
        f"expert {name} equals the base in all that is merged: its task vector is zero"
        for name, norm in zip(names, norms, strict=True)
        if norm == 0 and _equal(base, experts[name], parameters)
    ]
    for (j, one), (k, two) in combinations(enumerate(names), 2):
        if 0 < norms[j] * norms[k] < math.inf and (cosine := min(gram[j, k] / (norms[j] * norms[k]), 1.0)) > SAME:
            notes.append(
                f"experts {one} and {two} have nearly the same task vectors (cosine {cosine:.4f}, norms "
                f"{norms[j]:.4g} and {norms[k]:.4g}): a search can hardly tell their coefficients apart; leave one out"
            )
    return notes


def _products(base: Checkpoint, experts: Sequence[Checkpoint], parameters: Mapping[str, tuple[int, ...]]) -> np.ndarray:
    """Return the inner products of the task vectors, float64 (K, K). Of a large tensor, evenly spaced rows stand for
    all, so that the answer takes a second for any size of model.
    """
    gram = np.zeros((len(experts), len(experts)))
    for name in parameters if experts else ():
        ours = base.tensor(name)
        step = max(1, min(len(ours), math.ceil(ours.numel() / SAMPLE))) if ours.dim() > 1 else 1
        chosen = slice(None, None, step) if ours.dim() else ...  # a number, as the temperature of CLIP, has no rows
        before = ours[chosen].float()
        rows = torch.stack(
            [
                _difference(expert, name, chosen, before) if name in expert.keys else torch.zeros(before.numel())
                for expert in experts
            ]
        )
        gram += step * (rows @ rows.T).numpy()
    return gram


def _difference(expert: Checkpoint, name: str, chosen: Any, before: Tensor) -> Tensor:
    """Return τ in some rows, flat; of factors, without multiplying out the others."""
    if (factors := expert.factors.get(name)) is None:
        return (expert.tensor(name)[chosen].float() - before).flatten()
    return (factors.left[chosen] @ factors.right * factors.scale).flatten()


def _equal(base: Checkpoint, expert: Checkpoint, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    return expert.sha256 == base.sha256 or all(
        bool((base.tensor(name) == expert.tensor(name)).all()) for name in parameters if name in expert.keys
    )
