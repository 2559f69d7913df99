"""A recipe as the merge YAML of mergekit, so that other people can build the model without evomerge.

In: a recipe and the file keys of the base. Out: YAML in which every tensor gets exactly our coefficient: accumulated in
float32, with explicit filters for embeddings, norms, head and everything else. mergekit tests a filter as a plain
substring of a tensor's name, the first match wins, and its names are those of the files or those of the live model, as
its architecture tables have them. So the writer plays that resolution through for every name of every tensor, and
refuses to write what would resolve to anything else.
"""

import math
from collections.abc import Collection, Iterable, Mapping
from typing import Any

import yaml

from evomerge.common.errors import ConfigError
from evomerge.common.names import dtype_name, unknown
from evomerge.recipes.kept import mergekit_caveat
from evomerge.recipes.mergekit.methods import NEARLY
from evomerge.recipes.mergekit.settings import as_settings, called_there, has_base, lists_base, shared_settings
from evomerge.recipes.recipe import Recipe, Source
from evomerge.task_vectors.spans import Span

_DTYPES = ("float32", "bfloat16", "float16", "float64")
_HEADER = """\
# Written by evomerge {version} for mergekit 0.1.5: mergekit-yaml THIS_FILE OUTPUT
# (without a network: --no-write-model-card, since for the card it asks the hub whether it knows the models).
# Where mergekit-yaml does not know the architecture or fails on it (BertModel in 0.1.5), mergekit-pytorch takes this
# file, with the weight files (.../model.safetensors) in place of the directories.
"""
_SORTED = """\
# Where elements of a task vector are equal in magnitude and some of them are trimmed, mergekit keeps any of them (its
# sort is not stable) and evomerge the first. `evomerge export RUN --materialise DIR` keeps those of evomerge.
"""
_DRAWN = """\
# Not bit-equal to the model that evomerge scored: mergekit draws other random masks, and it rescales to the norm of the
# task vector where evomerge divides by the density. `evomerge export RUN --materialise DIR` keeps those of evomerge.
"""
_NEARLY = "# {}.\n# `evomerge export RUN --materialise DIR` keeps the numbers of evomerge.\n"
_CAVEATS = {"ties": _SORTED, "breadcrumbs": _SORTED, "dare": _DRAWN, "dare_ties": _DRAWN, "della": _DRAWN}
"""What mergekit does otherwise, by the recipe's method."""


def to_mergekit(
    recipe: Recipe,
    keys: Mapping[str, str],
    parameters: Mapping[str, tuple[int, ...]],
    dtype: str,
    extra: Collection[str] = (),
    tied: Mapping[str, str] | None = None,
    adapters: Collection[str] = (),
) -> str:
    """Write a recipe as mergekit's YAML (for mergekit 0.1.5).

    Args:
        recipe: What to write; its sources are named as on the hub if they came from there, else by path as it stands.
        keys: Parameter name of the live model -> file key of the base; parameters that no file holds are left out.
        parameters: name -> shape, in the order of the live model.
        dtype: In which the merged model is saved: the base's, such as bfloat16.
        extra: File keys that are no parameter of the live model; they stay the base's.
        tied: alias -> parameter, for names under which a file may hold a tied parameter once more.
        adapters: The experts that are adapters, which mergekit folds into the base first.

    Raises:
        ConfigError: mergekit cannot express this recipe; the message says what to do instead.
    """
    called = _check(recipe, parameters, dtype, extra)
    names = {
        name: list(dict.fromkeys([name, keys[name]]))
        for name, shape in parameters.items()
        if name in keys and math.prod(shape)
    }
    for alias, source in (tied or {}).items():
        if source in names and alias not in names[source]:
            names[source].append(alias)
    values = as_settings(recipe, parameters)
    filters = {
        name: {expert: _conditions(row, names, extra, f"{name} of {expert}") for expert, row in rows.items()}
        for name, rows in values.items()
    }
    shared = shared_settings(recipe)
    if "t" in filters:  # mergekit has one for both models
        shared |= {"t": next(iter(filters.pop("t").values()))}
    models = [
        {
            "model": _with_adapter(recipe.base, source) if expert in adapters else _reference(source),
            **({"parameters": own} if (own := _of(filters, expert)) else {}),
        }
        for expert, source in recipe.experts.items()
    ]
    document = {
        "merge_method": called,
        **({"base_model": _reference(recipe.base)} if has_base(recipe) else {}),
        "dtype": "float32",
        "out_dtype": dtype_name(dtype),
        "parameters": shared,
        "models": models,
    }
    text = yaml.safe_dump(document, sort_keys=False, default_flow_style=None, width=math.inf)
    return _HEADER.format(version=recipe.version) + caveat(recipe) + mergekit_caveat(recipe) + text


def caveat(recipe: Recipe) -> str:
    """Return what mergekit does otherwise with a recipe that it can express, as comments; empty if all is alike."""
    if recipe.transform:
        return _NEARLY.format(NEARLY[str(recipe.transform[0]["name"])])
    return _CAVEATS.get(str(recipe.method["name"]), "") if recipe.thinned else ""


def _of(filters: Mapping[str, Mapping[str, Any]], expert: str) -> dict[str, Any]:
    return {name: rows[expert] for name, rows in filters.items()}


def _check(recipe: Recipe, parameters: Mapping[str, tuple[int, ...]], dtype: str, extra: Collection[str]) -> str:
    """What mergekit calls the method, if it has what the recipe needs."""
    called = called_there(recipe, parameters, extra)
    if dtype_name(dtype) not in _DTYPES:
        raise ConfigError(f"mergekit export: {unknown('dtype', dtype, _DTYPES)}")
    paths = [source.path for source in recipe.experts.values()]
    paths += [] if lists_base(recipe) else [recipe.base.path]  # there, the base may be one of them
    if len(set(paths)) < len(paths):
        raise ConfigError(
            "mergekit export: two of the models have the same path, and mergekit tells models apart by their paths. "
            "Give each of them a directory of its own."
        )
    for group in recipe.groups(parameters):
        for span in group.spans:
            if span != Span(span.parameter, 0, math.prod(parameters[span.parameter])):
                raise ConfigError(
                    f"mergekit export: {group.name} is a part of a tensor, and mergekit has one coefficient a tensor. "
                    "Search another granularity, or write each expert out with its coefficients inside (base + lambda "
                    "* task vector) and merge those by task_arithmetic with weight 1: `evomerge export RUN "
                    "--materialise DIR`."
                )
    return called


def _reference(source: Source) -> str | dict[str, dict[str, str]]:
    """A model as mergekit names it: owner/name@commit where it came from the hub, else by its path; in a plain string
    it would take + for an adapter and @ for a revision.
    """
    path = source.path
    return source.hub or ({"model": {"path": path}} if "+" in path or "@" in path else path)


def _with_adapter(base: Source, adapter: Source) -> dict[str, dict[str, str]]:
    """A base and an adapter of it, as mergekit names them."""
    return {"model": _place(base), "lora": _place(adapter)}


def _place(source: Source) -> dict[str, str]:
    if source.hub is None:
        return {"path": source.path}
    path, _, revision = source.hub.partition("@")
    return {"path": path, **({"revision": revision} if revision else {})}


def _conditions(
    values: Mapping[str, float], names: Mapping[str, Collection[str]], extra: Iterable[str], what: str
) -> list[dict[str, str | float]]:
    """The list of {filter, value} of one setting, proved on every name; what nobody named gets 0.

    Args:
        values: parameter -> value.
        names: parameter -> every name that mergekit may know it by.
        extra: names that get 0.
        what: For the message: which setting this is.

    Raises:
        ConfigError: no list of substring filters gives every name its value.
    """
    wanted, leaves = dict.fromkeys(extra, 0.0), dict.fromkeys(extra, 0.0)
    for parameter, spellings in names.items():
        for name in spellings:
            if wanted.setdefault(name, values[parameter]) != values[parameter]:
                raise ConfigError(f"mergekit export: {name} stands for two tensors with different values ({what}).")
            if not any(name.endswith(f".{other}") for other in spellings):  # the shorter matches both
                leaves[name] = values[parameter]
    for filters in (_prefixes(leaves), leaves):
        # longest first, and stable: in the model's order within a length
        ordered = sorted(filters.items(), key=lambda item: -len(item[0]))
        wrong = [name for name, value in wanted.items() if _resolve(name, ordered) != value]
        if not wrong:
            return [*({"filter": text, "value": value} for text, value in ordered), {"value": 0.0}]
    raise ConfigError(
        f"mergekit export: no list of filters gives {wrong[0]} its own {what}, since mergekit matches any part of a "
        "name. Search another granularity, or merge with evomerge."
    )


def _prefixes(leaves: Mapping[str, float], prefix: str = "") -> dict[str, float]:
    """The shortest dotted prefixes (with the dot, or whole names) below which all leaves have one value."""
    branches: dict[str, dict[str, float]] = {}
    for name, value in leaves.items():
        token, dot, _ = name[len(prefix) :].partition(".")
        branches.setdefault(prefix + token + dot, {})[name] = value
    found: dict[str, float] = {}
    for branch, inside in branches.items():
        if len(inside) == 1:
            found |= inside
        elif len(set(inside.values())) == 1:
            found[branch] = next(iter(inside.values()))
        else:
            found |= _prefixes(inside, branch)
    return found


def _resolve(name: str, filters: Iterable[tuple[str, float]]) -> float:
    """What mergekit takes for a name: the first filter that occurs in it, else the last entry's 0."""
    return next((value for text, value in filters if text in name), 0.0)
