"""Where a search begins: what a recipe or a merge YAML of mergekit's says.

In: the setting `start`, and the space. Out: coefficients to begin with. A recipe is carried over to other groups by
means; of a YAML, evomerge takes what its own space can express and refuses the rest, so that the search does begin with
that merge. The numbers of a recipe of other models, or of another method or transform, are no such merge here, and
evomerge says so.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.problem import Problem, Sources
from evomerge.recipes.catalog import METHODS, TRANSFORMS
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.mergekit.document import is_mergekit
from evomerge.recipes.recipe import Recipe
from evomerge.runs.closed_forms import CLOSED
from evomerge.runs.targets import find_class
from evomerge.runs.theirs import find_theirs, on_groups
from evomerge.space.coefficients import CoefficientSpace

Arrays = dict[str, Any]
"""{variable: (G, K)}, or a number for all."""
NEAR = 1e-6
"""How far a coefficient may be from that of a YAML."""


def text_of(start: str) -> str:
    """Return the text of a file that a search begins with, or that is judged beside what it finds.

    Raises:
        ConfigError: it has none, since it is weights or another thing.
    """
    try:
        return Path(start).read_text(encoding="utf-8")
    except (UnicodeDecodeError, OSError) as error:
        raise ConfigError(
            f"{start} is no recipe and no merge YAML of mergekit's, since it cannot be read as a text ({error}): write "
            f"the path of one of these, such as runs/<name>/recipe.yaml."
        ) from error


def digests_of(baselines: Any) -> dict[str, str]:
    """Return a hash of what each file among baselines says, by its path; nothing where they are no list."""
    starts = [start for start in baselines or [] if isinstance(start, str) and start not in CLOSED]
    return {start: digest(text_of(start)) for start in starts if Path(start).is_file()}


@dataclass(frozen=True)
class StartFile:
    """A file that a search begins with, or that is judged beside what it finds.

    Attributes:
        path: where it is, as the user named it.
        text: what it says.
        recipe: the same as a recipe; None where it is a merge YAML of mergekit's.
    """

    path: str
    text: str
    recipe: Recipe | None


def open_start(path: str) -> StartFile:
    """Read a recipe or a merge YAML of mergekit's, once for all that is asked of it.

    Raises:
        ConfigError: it is neither.
    """
    text = text_of(path)
    try:
        return StartFile(path, text, None if is_mergekit(text) else Recipe.from_yaml(text))
    except ConfigError as error:
        raise ConfigError(f"start={path}: {error}") from error


def read_start(
    start: StartFile,
    method: Mapping[str, Any],
    space: CoefficientSpace,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Sources | None = None,
    transform: Collection[str] = (),
) -> Arrays:
    """Return the coefficients of a file.

    Args:
        start: the file.
        method: the settings `method`.
        space: where the search is.
        parameters: name -> shape, in the order of the live model.
        sources: base and experts, by which a YAML may name them.
        transform: the names of the transforms that the search has.

    Raises:
        ConfigError: the space cannot express the YAML, or the search has transforms, which a YAML with numbers has not.
    """
    if start.recipe:
        known = start.recipe.on_groups(space.groups, space.rows, parameters)
        return {variable.name: known[variable.name] for variable in space.variables if variable.name in known}
    try:
        return _of_yaml(start.text, method, space, parameters, sources, Path(start.path).parent, transform)
    except ConfigError as error:
        raise ConfigError(f"start={start.path}: {error}") from error


def is_averaged(start: StartFile, space: CoefficientSpace, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether a recipe becomes another merge on the groups and rows of a space: where coefficients within one
    group differ, or it has weights of further rows.

    Args:
        start: a recipe, or a merge YAML, which is never averaged.
        space: where the search is.
        parameters: name -> shape, in the order of the live model.
    """
    recipe = start.recipe
    if recipe is None:
        return False
    groups = recipe.coefficients.get("weight", {}).values()
    if any(value for rows in groups for row, value in rows.items() if row not in space.rows):
        return True
    squares = {
        variable: {group: {row: value * value for row, value in rows.items()} for group, rows in by_group.items()}
        for variable, by_group in recipe.coefficients.items()
    }
    means = recipe.on_groups(space.groups, space.rows, parameters)
    of_squares = replace(recipe, coefficients=squares).on_groups(space.groups, space.rows, parameters)
    spread = (of_squares[name] - values * values for name, values in means.items())  # the variance within a group
    return any(bool((each > NEAR * NEAR).any()) for each in spread)


def numbers_only(start: StartFile, problem: Problem) -> str:
    """Return why the numbers of a recipe are not its merge in a search, as a note; nothing where they are, or where it
    is no recipe.

    Args:
        start: the file.
        problem: what is searched.
    """
    theirs = start.recipe
    if theirs is None:
        return ""
    ours = Recipe.from_yaml(make_recipe(problem, problem.space.constant(0.0), {}, {}, {}).to_yaml())
    parts = {
        "method": tuple(_full(one.method, METHODS) for one in (theirs, ours)),
        "transform": tuple([_full(step, TRANSFORMS) for step in one.transform] for one in (theirs, ours)),
        "base": (theirs.base.sha256, ours.base.sha256),
        "experts": (_hashes(theirs), _hashes(ours)),
    }
    others = [name for name, (one, other) in parts.items() if one != other]
    told = {"method": _named([theirs.method]), "transform": _named(theirs.transform) or "no transform"}
    if not others:
        return ""
    each = listed([f"{name} ({told[name]} there)" if name in told else name for name in others])
    are = "are not those" if others[1:] or others == ["experts"] else "is not that"
    return (
        f"start={start.path} gives numbers only, since the {each} of that recipe {are} of this search: it does not "
        f"begin with that merge"
    )


def _full(step: Mapping[str, Any], kinds: Mapping[str, type]) -> dict[str, Any]:
    """Return a method or a transform with all settings: those that it does not have, since they came later, are at
    their defaults.
    """
    kind = kinds.get(step["name"])
    known = inspect.signature(kind).parameters.values() if kind else ()
    return {**{each.name: each.default for each in known if each.default is not each.empty}, **step}


def _hashes(recipe: Recipe) -> dict[str, str]:
    return {name: source.sha256 for name, source in recipe.experts.items()}


def _named(steps: Sequence[Mapping[str, Any]]) -> str:
    """Return methods or transforms with their settings, in words."""
    each = [
        (step["name"], ", ".join(f"{key}={value}" for key, value in step.items() if key != "name")) for step in steps
    ]
    return " + ".join(f"{name}({own})" if own else name for name, own in each)


def _of_yaml(
    text: str,
    method: Mapping[str, Any],
    space: CoefficientSpace,
    parameters: Mapping[str, tuple[int, ...]],
    sources: Sources | None,
    beside: Path,
    transform: Collection[str],
) -> Arrays:
    theirs = find_theirs(text, space.rows, sources, beside)
    read = theirs.read(parameters)
    if read.transform:
        peer = theirs.peer
        raise theirs.document.method.error(
            f"{peer.name} has no numbers to begin with: write transform={peer.transform}, and start=1"
        )
    if transform:
        raise ConfigError(
            f"it merges task vectors as they are, and the search changes them first ({' + '.join(transform)}), so its "
            f"numbers would make another merge: write transform=none; or, for these transforms, start=constants."
        )
    _check_method(read.method, method)
    wanted = {variable: on_groups(values, space) for variable, values in read.values.items()}
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
