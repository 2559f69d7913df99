"""What the names in a recipe stand for: a recipe names no class, so that reading one never runs anything of its own.

In: the method of a recipe, names and plain settings. Out: the `Method` object, its transform inside.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.merging.methods import DareTies, Linear, Method, Ties
from evomerge.recipes.recipe import Recipe
from evomerge.runs.config import build
from evomerge.transforms.ties import TrimElect

METHODS = {method.name: method for method in (Linear, Ties, DareTies)}
TRANSFORMS = {transform.name: transform for transform in (TrimElect,)}


def make_method(recipe: Recipe) -> Method:
    """Make the method of a recipe.

    Raises:
        ConfigError: there is no method or transform of that name, it does not have these settings, or the recipe has
            coefficients of other variables than it needs.
    """
    rest = dict(recipe.method)
    transform = rest.pop("transform", None)
    settings = _settings(METHODS, "method", rest)
    if transform:
        if not isinstance(transform, Mapping) or "transform" not in inspect.signature(METHODS[rest["name"]]).parameters:
            raise ConfigError(f"recipe: the method {rest['name']} cannot have the transform {transform!r}; linear can.")
        settings["transform"] = _settings(TRANSFORMS, "transform", transform)
    try:
        method: Method = build(settings, "method")
    except ConfigError as error:
        raise ConfigError(f"recipe: {error}") from error
    needed = [variable.name for variable in method.variables]
    if sorted(needed) != sorted(recipe.coefficients):
        raise ConfigError(
            f"recipe: it has coefficients of {' and '.join(recipe.coefficients)}, and the method {method.name} needs "
            f"{' and '.join(needed)}: correct the name of the method, or the coefficients."
        )
    return method


def _settings(known: Mapping[str, type], kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return name and settings as `build` takes them; nothing in them can name a class or a variable of its own."""
    if given.get("name") not in known:
        raise ConfigError(f"recipe: {unknown(kind, str(given.get('name')), known)}")
    target, name = known[given["name"]], given["name"]
    settings = {key: value for key, value in given.items() if key != "name"}
    own = [key for key in inspect.signature(target).parameters if key != "transform"]
    for key, value in settings.items():
        if key not in own:
            raise ConfigError(f"recipe: {unknown(f'setting of the {kind} {name}', str(key), own or ['none'])}")
        if not isinstance(value, bool | int | float):
            raise ConfigError(f"recipe: {key} of the {kind} {name} is {value!r}: write a number, true or false.")
    return {"_target_": f"{target.__module__}.{target.__qualname__}", **settings}
