"""Which tensor of a model directory is which parameter of the live model, as transformers decides it at load.

In: the keys of the weight files, and the live model's `Layout`. Out: for every parameter the keys that hold it, and
what is left over. A file may use other names than the live model: each key is renamed by transformers' own rules
(`gamma` and `beta` of bert-base-uncased, `attention.attention.query` of ViT), and the prefix of the model's class
(`bert.`) is then added or taken away, key by key. A tied parameter may stand under any of its names.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # file names are matched without torch
    from torch import Tensor

    from evomerge.models.conversions import Conversion

Rename = Callable[[Iterable[str]], Mapping[str, str | None]]
"""File keys -> the names that transformers gives them at load, None where it makes other tensors of them."""
Convert = Callable[["Mapping[str, Tensor]"], "Sequence[Conversion]"]
"""Tensors by file key -> what transformers converts of them at load."""


@dataclass(frozen=True)
class Layout:
    """What the names in a model directory mean.

    Attributes:
        prefix: `base_model_prefix` of the live model's class; it may stand on file keys, on names, or on neither.
        tied: alias -> the name it is tied to, in the live model.
        own: the same in the model that the directory itself describes; None where it is not known to differ.
        buffers: of the live model, by name.
        computed: parameters of the live model that are never trained, so that files may leave them out.
        spare: what transformers passes over in a file of this class, as a pattern of names; None for nothing.
        rename: transformers' renaming; None where files have the names of the live model.
        convert: its conversions; None where it has none.
        tokens: the size of the vocabulary by the directory's own config; None where it does not say.
        transposed: the parameters whose first dimension is that of inputs, as of GPT-2's Conv1D; None where it is not
            known.
    """

    prefix: str = ""
    tied: Mapping[str, str] | None = None
    own: Mapping[str, str] | None = None
    buffers: Collection[str] = ()
    computed: Collection[str] = ()
    spare: re.Pattern[str] | None = None
    rename: Rename | None = None
    convert: Convert | None = None
    tokens: int | None = None
    transposed: Collection[str] | None = None


@dataclass(frozen=True)
class Match:
    """Which keys of a file are what.

    Attributes:
        held: parameter -> the keys under which the file holds it, those of its aliases included; the first one counts.
        names: key -> its name in the live model, as transformers gives it.
        conversions: of keys that transformers fuses with others, splits or permutes; none of them is in `held`.
        extra: keys that are no parameter of the live model: heads, buffers, whatever else.
        stray: those of them under the live model's own modules that it does not know, and transformers does not pass
            over: a layer too many, say, or the parts of a quantised matrix.
        untied: names that the live model ties to a parameter, and the directory's own model neither ties nor holds.
    """

    held: dict[str, list[str]]
    names: dict[str, str]
    conversions: list[Conversion]
    extra: list[str]
    stray: list[str]
    untied: list[str]


def match(tensors: Mapping[str, Tensor], parameters: Collection[str], layout: Layout) -> Match:
    """Find what each key of a file is.

    Args:
        tensors: in the files, by key.
        parameters: the live model's, tied ones once.
        layout: what names mean.
    """
    keys = tensors.keys()
    conversions = [
        one for one in (layout.convert(tensors) if layout.convert else ()) if set(one.names) <= set(parameters)
    ]
    became = {key: one.names[0] for one in conversions for key in one.sources}
    renamed = layout.rename(keys) if layout.rename else {key: key for key in keys}
    families = _families(parameters, layout.tied or {})
    known = {name for family in families.values() for name in family} | set(layout.buffers)
    names = {key: became.get(key) or _placed(renamed[key], key, known, layout.prefix) for key in keys}
    by_name: dict[str, list[str]] = {}
    for key in (key for key in keys if key not in became):
        by_name.setdefault(names[key], []).append(key)
    held = {}
    for owner, family in families.items():
        if found := [key for name in _resolved(owner, family, by_name, layout) for key in by_name.get(name, ())]:
            held[owner] = found
    own, taken = layout.own, known - set(layout.buffers)
    extra = [key for key in keys if names[key] not in taken]
    return Match(
        held=held,
        names=names,
        conversions=conversions,
        extra=extra,
        stray=[key for key in extra if _is_stray(names[key], parameters, layout)],
        untied=[]
        if own is None
        else [
            name
            for owner, family in families.items()
            for name in family
            if owner in held and name not in by_name and not by_name.keys() & set(_tied_with(name, own))
        ],
    )


def allows(patterns: Collection[str], name: str) -> bool:
    """Whether a name is one of those that the user lets be missing or left over: names, or shell patterns of them."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def is_pooler(name: str) -> bool:
    """Whether a parameter belongs to a pooler at the top of a model: many encoders come without, and only a pooled
    output depends on it.
    """
    return "pooler" in name.split(".")[:2]


def _families(parameters: Iterable[str], tied: Mapping[str, str]) -> dict[str, list[str]]:
    """Parameter -> its own name, then its aliases."""
    families = {name: [name] for name in parameters}
    for source in dict.fromkeys(tied.values()):
        names = [source, *(alias for alias, target in tied.items() if target == source)]
        if owner := next((name for name in names if name in families), None):
            families[owner] += [name for name in names if name not in families]
    return families


def _placed(renamed: str | None, key: str, known: Collection[str], prefix: str) -> str:
    """The name of a key in the live model, with the prefix of its class added or taken away where that makes it one."""
    for name in (key,) if renamed is None else (renamed, key):
        if prefix and (inner := name.removeprefix(f"{prefix}.")) != name and inner in known:
            return inner
        if prefix and f"{prefix}.{name}" in known:
            return f"{prefix}.{name}"
        if name in known:
            return name
    return renamed or key


def _resolved(owner: str, family: list[str], held: Collection[str], layout: Layout) -> list[str]:
    """The names under which a parameter may be held: its own and its aliases; and, where the directory's own model ties
    what the live one does not, those that it is tied to there, if nothing is held under its own.
    """
    if any(name in held for name in family):
        return family
    return [*family, *(name for name in _tied_with(owner, layout.own or {}) if name not in family)]


def _tied_with(name: str, tied: Mapping[str, str]) -> list[str]:
    """The names that a model ties to a name, the source first; none if it stands alone."""
    source = tied.get(name, name)
    aliases = [alias for alias, target in tied.items() if target == source]
    return [source, *aliases] if aliases else []


def _is_stray(name: str, parameters: Collection[str], layout: Layout) -> bool:
    if name in layout.buffers or is_pooler(name) or (layout.spare and layout.spare.search(name)):
        return False
    front = f"{layout.prefix}." if layout.prefix else ""
    roots = {parameter.removeprefix(front).split(".")[0] for parameter in parameters if "." in parameter}
    return name.removeprefix(front).split(".")[0] in roots or bool(front and name.startswith(front))
