"""Where a search begins: a number, or what a recipe or a merge YAML of mergekit's says.

In: the setting `start`, and the space. Out: coefficients to begin with. A recipe is carried over to other groups by
means; of a YAML, evomerge takes what its own space can express and refuses the rest, so that the search does begin with
that merge.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.models.hub import short_name
from evomerge.models.vocabulary import read_object
from evomerge.problem import Sources
from evomerge.recipes.mergekit.document import Reference, is_mergekit, read_document
from evomerge.recipes.mergekit.methods import peer_named
from evomerge.recipes.mergekit.numbers import Reader
from evomerge.recipes.mergekit.plan import make_plan
from evomerge.recipes.recipe import Recipe
from evomerge.runs.targets import find_class
from evomerge.space.coefficients import CoefficientSpace

Arrays = dict[str, Any]
"""{variable: (G, K)}, or a number for all."""
NEAR = 1e-6
"""How far a coefficient may be from that of a YAML."""


def read_start(
    start: str,
    method: Mapping[str, Any],
    space: CoefficientSpace,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Sources | None = None,
) -> Arrays:
    """Return the coefficients of a file.

    Args:
        start: its path.
        method: the settings `method`.
        space: where the search is.
        parameters: name -> shape, in the order of the live model.
        sources: base and experts, by which a YAML may name them.

    Raises:
        ConfigError: it is neither a recipe nor a merge YAML, or the space cannot express the YAML.
    """
    text = Path(start).read_text(encoding="utf-8")
    if not is_mergekit(text):
        known = Recipe.from_yaml(text).on_groups(space.groups, space.rows, parameters)
        return {variable.name: known[variable.name] for variable in space.variables if variable.name in known}
    try:
        found = _of_yaml(text, method, space, parameters, sources, Path(start).parent)
    except ConfigError as error:
        raise ConfigError(f"start={start}: {error}") from error
    return found


def _of_yaml(
    text: str,
    method: Mapping[str, Any],
    space: CoefficientSpace,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Sources | None,
    beside: Path,
) -> Arrays:
    document = read_document(text)
    peer = peer_named(document.method.text())
    if isinstance(peer, str):
        raise document.method.error(peer)
    if sources and document.base:
        _check_base(document.base, sources, beside)
    models = [model for model in document.models if model != document.base or peer.base == "listed"]
    rows = {_row(model, space.rows, sources, beside): model for model in models}
    config = read_object(sources.base / "config.json") if sources else {}
    architecture = str(next(iter(config.get("architectures") or ()), "LlamaForCausalLM"))
    plan = make_plan(document, parameters, {name: name for name in parameters}, architecture)
    read = Reader(document, peer, rows, plan, parameters).read()
    if read.transform:
        raise document.method.error(
            f"{peer.name} has no numbers to begin with: write transform={peer.transform}, and start=1"
        )
    _check_method(read.method, method)
    wanted = {variable: _on_groups(values, space) for variable, values in read.values.items()}
    kept = space.decode(space.start(wanted))
    for variable, values in wanted.items():
        apart = np.where(space.moves(variable), np.abs(kept[variable] - values), 0.0)
        if apart.max() > NEAR:
            group, row = np.unravel_index(int(apart.argmax()), apart.shape)
            raise ConfigError(
                f"the {variable} of {space.rows[row]} in {space.groups[group].name} is {values[group, row]:g} there, "
                f"and the nearest that the space has is {kept[variable][group, row]:g}: leave out space.sharing "
                f"and space.tied, or take space=layer in place of line."
            )
    return wanted


def _row(model: Reference, rows: Sequence[str], sources: Sources | None, beside: Path) -> str:
    """Return the expert of the search that a model is."""
    for name in rows:
        path, hub = sources.experts.get(name) if sources else None, sources.hub.get(name, "") if sources else ""
        if sources and name in sources.dequantised:
            path, hub = Path(sources.dequantised[name]), sources.dequantised[name]
        if _is_at(model, path, hub, name, beside):
            return name
    raise ConfigError(
        f"line {model.line}: {model} is none of the experts of this search ({', '.join(rows)}): name it in "
        f"model.experts."
    )


def _check_base(model: Reference, sources: Sources, beside: Path) -> None:
    """Refuse a YAML with another base than that of the search: its weights are of other differences."""
    hub = sources.hub.get("", "")
    if not _is_at(model, sources.base, hub, short_name(hub or str(sources.base)), beside):
        raise ConfigError(
            f"line {model.line}: its base_model is {model}, and the base of this search is {hub or sources.base}: name "
            f"the same one in model.base, or that one in the YAML."
        )


def _is_at(model: Reference, path: Path | None, hub: str, name: str, beside: Path) -> bool:
    """Return whether a model is one of the search: by its directory where it is there, else by its name on the hub, or
    by what it is called.

    Args:
        model: as the YAML names it, from here or from where the YAML lies.
        path: the directory of the one of the search.
        hub: what that is on the hub.
        name: what that is called.
        beside: where the YAML lies.
    """
    text = model.lora.partition("@")[0] if model.lora else model.path
    there = next((place for place in (Path(text).expanduser(), beside / text) if place.is_dir()), None)
    if there and path and path.is_dir():
        return path.samefile(there)
    return text == hub.partition("@")[0] or short_name(text) == name


def _check_method(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse a YAML of another method than that of the search."""
    name = find_class(str(ours["_target_"]), "method").name
    if theirs["name"] != name:
        raise ConfigError(f"it merges by {theirs['name']} and the search by {name}: write method={theirs['name']}.")
    for setting, value in theirs.items():
        if setting != "name" and setting in ours and ours[setting] != value:
            shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else value
            raise ConfigError(
                f"it has {setting} {shown}, and the search {ours[setting]}: write method.{setting}={shown}."
            )


def _on_groups(values: Mapping[str, Mapping[str, float]], space: CoefficientSpace) -> np.ndarray:
    """Return the numbers of the parameters by group, (G, K); 0 for an expert that the YAML has not.

    Raises:
        ConfigError: parameters of one group have different numbers.
    """
    found = np.zeros((len(space.groups), len(space.rows)))
    for place, group in enumerate(space.groups):
        first = group.spans[0].parameter
        for span in group.spans:
            if values[span.parameter] != values[first]:
                raise ConfigError(
                    f"{first} and {span.parameter} have different numbers there, and one in this space "
                    f"({group.name}): write space=tensor, or another space that is fine enough."
                )
        found[place] = [values[first].get(row, 0.0) for row in space.rows]
    return found
