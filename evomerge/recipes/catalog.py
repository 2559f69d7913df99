"""What the names in a recipe stand for: our own methods and transforms by their names, others by module and class.

In: the method and the transforms of a recipe, names and plain settings. Out: the `Method` object, and the chain.
Nothing else that a recipe names is ever called: a class must be a method or a transform before one of it is made.
"""

from __future__ import annotations

import importlib
from collections.abc import Collection, Mapping
from typing import Any

from evomerge.common.arguments import check_arguments, check_names
from evomerge.common.errors import ConfigError
from evomerge.common.exits import Exited, contained
from evomerge.common.names import unknown
from evomerge.merging import methods
from evomerge.merging.earlier import REFUSAL
from evomerge.merging.method import Method, check_rows
from evomerge.recipes.recipe import Recipe
from evomerge.transforms import families
from evomerge.transforms.base import Transform
from evomerge.transforms.chain import KEEP, RESTS, Chain, Step, row_names

METHODS: dict[str, type[Method]] = {method.name: method for method in methods.METHODS}
TRANSFORMS: dict[str, type[Transform]] = {transform.name: transform for transform in families.TRANSFORMS}


EARLIER = ("0.1.", "0.2.")
"""Versions whose random masks were others."""


def find_method(recipe: Recipe) -> type[Method]:
    """Return the class of a recipe's method.

    Raises:
        ConfigError: there is none of that name.
    """
    kind: Any = _find(METHODS, "method", str(recipe.method["name"]))
    if not (isinstance(kind, type) and isinstance(kind, Method)):  # all that it promises stands on the class
        raise ConfigError(f"recipe: {recipe.method['name']} is no method of merging.")
    found: Any = kind
    return found


def find_transforms(recipe: Recipe) -> list[type[Transform]]:
    """Return the classes of a recipe's transforms.

    Raises:
        ConfigError: there is none of that name.
    """
    return [_checked(_find(TRANSFORMS, "transform", step["name"])) for step in recipe.transform]


def make_method(recipe: Recipe) -> Method:
    """Make the method of a recipe.

    Raises:
        ConfigError: there is no method of that name, its masks are others now, it does not have these settings, it
            merges another number of rows, or the recipe has coefficients of other variables than it needs.
    """
    kind = find_method(recipe)
    if kind is methods.DareTies and recipe.version.startswith(EARLIER) and recipe.thinned:
        raise ConfigError(f"recipe: evomerge {recipe.version} wrote it. {REFUSAL}")
    given = _plain(recipe.method, "method", kind.name)
    try:
        check_names(kind, given, f"the method {kind.name}")
        check_arguments(kind, given, "method")
        method = _made(kind, given, "method")
        check_rows(method, recipe.row_names)
    except ConfigError as error:
        raise ConfigError(f"recipe: {error}") from error
    needed = [variable.name for variable in method.variables]
    for variable in method.variables:
        values = [value for row in recipe.coefficients.get(variable.name, {}).values() for value in row.values()]
        if variable.share and not all(0 <= value <= 1 for value in values):
            raise ConfigError(
                f"recipe: coefficients.{variable.name} has a number outside of 0 to 1, and it is a share: correct it."
            )
    if sorted(needed) != sorted(recipe.coefficients):
        raise ConfigError(
            f"recipe: it has coefficients of {' and '.join(recipe.coefficients)}, and the method {method.name} needs "
            f"{' and '.join(needed)}: correct the name of the method, or the coefficients."
        )
    return method


def make_chain(recipe: Recipe, parameters: Collection[str]) -> Chain:
    """Make the transforms of a recipe.

    Args:
        recipe: the recipe.
        parameters: names of those that are merged.

    Raises:
        ConfigError: there is no transform of that name, it does not have these settings, the method of the recipe can
            have none, or the recipe has coefficients of other rows than the transforms make.
    """
    try:
        kinds = find_transforms(recipe)
        chain = tuple(
            make_step(kind, _plain(step, "transform", kind.name))
            for kind, step in zip(kinds, recipe.transform, strict=True)
        )
        check_chain(find_method(recipe), chain)
    except ConfigError as error:
        raise ConfigError(f"recipe: {str(error).removeprefix('recipe: ')}") from error
    rows = list(row_names(chain, list(recipe.experts), parameters))
    if rows != recipe.row_names:
        raise ConfigError(
            f"recipe: it has coefficients of the rows {', '.join(recipe.row_names)}, and its transforms make "
            f"{', '.join(rows)}: correct `rows` and the coefficients, or the transforms."
        )
    return chain


def make_step(kind: Any, given: Mapping[str, Any]) -> Step:
    """Make a step of a chain.

    Args:
        kind: the class of the transform.
        given: its arguments; `only`, names or patterns of the parameters that it is for; and `rest`, what becomes of
            the others.

    Raises:
        ConfigError: it is no transform, has no such arguments, or needs what it cannot be given.
    """
    kind = _checked(kind)
    own = {name: value for name, value in given.items() if name not in ("only", "rest")}
    check_names(kind, own, f"the transform {kind.name}")
    check_arguments(kind, own, f"transform.{kind.name}")
    only = given.get("only") or []
    if not (isinstance(only, list) and all(isinstance(pattern, str) for pattern in only)):
        raise ConfigError(
            f"transform.{kind.name}.only={only}: write a list of names or patterns of parameters, such as "
            f'["*.attention.*"].'
        )
    rest = given.get("rest", KEEP)
    if rest not in RESTS:
        raise ConfigError(f"transform.{kind.name}.rest={rest}: write {' or '.join(RESTS)}.")
    if rest != KEEP and not only:
        raise ConfigError(
            f"transform.{kind.name}.rest={rest} is of the parameters that `only` leaves out, and there is no `only`: "
            f'write it, such as ["encoder.layer.*"], or leave out rest.'
        )
    if kind.needs != "nothing":
        raise ConfigError(
            f"The transform {kind.name} needs {kind.needs}, and evomerge gives a transform the task vectors alone so "
            f"far: choose one that needs nothing else, such as {', '.join(TRANSFORMS)}."
        )
    return Step(_made(kind, own, "transform"), tuple(only), rest)


def check_chain(method: type[Method] | Method, chain: Chain) -> None:
    """Refuse transforms before a method that does as much itself.

    Raises:
        ConfigError: there are transforms, and the method is no weighted sum.
    """
    if chain and not method.linear:
        names = ", ".join(step.transform.name for step in chain)
        raise ConfigError(
            f"The method {method.name} cannot have the transform {names}: a transform makes rows for a weighted sum, "
            f"and {method.name} makes another model of the experts for every candidate. Take the method linear, which "
            f"weighs the rows that a transform makes, or leave out the transform."
        )


def _find(known: Mapping[str, Any], kind: str, name: str) -> Any:
    """Return a class of ours by its name, or another by module and class."""
    if name in known:
        return known[name]
    module, _, attribute = name.rpartition(".")
    if not module or module.partition(".")[0] == "evomerge":
        raise ConfigError(f"recipe: {unknown(kind, name, known)}")
    try:
        return getattr(contained(lambda: importlib.import_module(module)), attribute)
    except Exception as error:  # whatever a module of somebody else's raises
        raise ConfigError(
            f"recipe: the {kind} {name} cannot be imported ({type(error).__name__}: {error}): install the package that "
            f"it is from."
        ) from error


def _checked(kind: Any) -> type[Transform]:
    if isinstance(kind, type) and issubclass(kind, Transform):
        return kind
    raise ConfigError(
        f"{kind!r} is no transform: derive the class from {Transform.__module__}.{Transform.__qualname__}."
    )


def _plain(given: Mapping[str, Any], kind: str, name: str) -> dict[str, Any]:
    """Return settings without the name; nothing in them can name a class or a variable of its own."""
    settings = {key: value for key, value in given.items() if key != "name"}
    for key, value in settings.items():
        if not isinstance(value, bool | int | float | str | None) and key != "only":
            raise ConfigError(
                f"recipe: {key} of the {kind} {name} is {value!r}: write a number, a word, true, false or null."
            )
    return settings


def _made(kind: Any, arguments: Mapping[str, Any], what: str) -> Any:
    try:
        return contained(lambda: kind(**arguments))
    except (TypeError, Exited) as error:
        raise ConfigError(f"{what} {kind.name} cannot be made: {str(error).splitlines()[0]}") from error
