"""What the numbers of a recipe are as settings of mergekit 0.1.5, or why mergekit cannot be given them.

In: a recipe. Out: the name of mergekit's method, its settings, and a number for each setting, model and tensor.
mergekit counts shares of tensors alone, elects by sums alone, and rounds shares otherwise. What it would do otherwise
is refused, never written.
"""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.recipes.mergekit.methods import Peer, peer_of, peer_of_transform
from evomerge.recipes.recipe import Recipe

Shapes = Mapping[str, tuple[int, ...]]
Values = dict[str, dict[str, dict[str, float]]]
"""{setting: {expert: {parameter: number}}}."""

_INSIDE = 0.999
"""The share of the distance of a density to 0 or 1 that DELLA's epsilon may take: mergekit wants it to be less."""


def called_there(recipe: Recipe, parameters: Shapes, extra: Collection[str]) -> str:
    """Return what mergekit calls the method of a recipe with its settings.

    Args:
        recipe: the recipe.
        parameters: name -> shape.
        extra: file keys that stay the base's.

    Raises:
        ConfigError: mergekit has nothing of the kind.
    """
    from evomerge.recipes.catalog import find_method  # which loads torch; a YAML needs none

    if recipe.transform:
        return _whole_method(recipe, extra).name
    method, settings = str(recipe.method["name"]), recipe.method
    kind = find_method(recipe)
    peer = peer_of(settings)
    if peer is None and settings.get("elect") != "count":
        raise ConfigError(f"mergekit export: mergekit has no method {method}: merge with `evomerge merge`.")
    for variable in kind.variables:
        if variable.name not in recipe.coefficients:
            raise ConfigError(f"mergekit export: the method {method} needs a {variable.name}, and the recipe has none.")
    if peer is None:
        raise ConfigError(
            f"mergekit export: no method of mergekit elects signs by their count, as elect=count does: merge with "
            f"`evomerge merge`, or search {method} with method.elect=sum."
        )
    if settings.get("over", "tensor") != "tensor":
        raise ConfigError(
            "mergekit export: over=group counts the density over all tensors of a group, and mergekit over each one: "
            "merge with `evomerge merge`, write the trimmed experts out (`evomerge export RUN --materialise DIR`), or "
            "search with method.over=tensor."
        )
    if peer.base != "always" and extra:
        which = "two experts" if method == "nuslerp" else "experts"
        raise ConfigError(
            f"mergekit export: mergekit's {peer.name} mixes every tensor of the {which}, and {min(extra)} stays "
            f"the base's here: merge with `evomerge merge`."
        )
    if method == "karcher" and any(len(set(row.values())) > 1 for row in recipe.coefficients["weight"].values()):
        raise ConfigError(
            "mergekit export: mergekit's karcher weighs all models alike, and this recipe does not: merge with "
            "`evomerge merge`."
        )
    if method == "della":
        _check_rows(recipe, parameters)
    return peer.name


def _whole_method(recipe: Recipe, extra: Collection[str]) -> Peer:
    """Return the method of mergekit that is a recipe's transform with weights of 1.

    Raises:
        ConfigError: there is none.
    """
    names = ", ".join(str(step["name"]) for step in recipe.transform)
    if (peer := peer_of_transform(recipe.method, recipe.transform, recipe.coefficients["weight"])) is None:
        raise ConfigError(
            f"mergekit export: this recipe's task vectors were transformed before the search ({names}), and "
            "mergekit works tensor by tensor. Write each row out as base + transformed task vector and merge those by "
            "task_arithmetic with the recipe's weights: `evomerge export RUN --materialise DIR`."
        )
    if extra:
        raise ConfigError(
            f"mergekit export: mergekit's {peer.name} merges every tensor of the experts, and {min(extra)} stays the "
            f"base's here: `evomerge export RUN --materialise DIR`."
        )
    return peer


def lists_base(recipe: Recipe) -> bool:
    """Return whether mergekit is given a base only where it is one of the models that are merged."""
    peer = peer_of(recipe.method)
    return peer is not None and peer.base == "listed"


def has_base(recipe: Recipe) -> bool:
    """Return whether the base is one of the models that mergekit is given."""
    if lists_base(recipe):
        return recipe.base.path in (source.path for source in recipe.experts.values())
    peer = peer_of(recipe.method)
    deltas = bool(recipe.method.get("deltas", recipe.method["name"] == "multislerp"))
    return peer is None or peer.base == "always" or deltas


def shared_settings(recipe: Recipe) -> dict[str, Any]:
    """Return the settings that all models share."""
    method, settings = recipe.method["name"], recipe.method
    if recipe.transform:
        (step,) = recipe.transform
        sce = step["name"] == "sce"
        return {"select_topk": float(step["density"]), "int8_mask": False} if sce else {"filter_wise": False}
    if method == "slerp":
        return {}
    if method == "average":
        return {"normalize": True}
    if method == "nuslerp":
        return {"nuslerp_flatten": True, "nuslerp_row_wise": False}
    if method == "multislerp":
        return {"normalize_weights": True, "eps": 1e-8}
    if method == "karcher":
        return {"max_iter": settings.get("steps", 10), "tol": settings.get("tolerance", 1e-5)}
    rescale = {"rescale": bool(settings.get("rescale", True))} if method in ("dare", "dare_ties", "della") else {}
    shared = {"normalize": bool(settings.get("normalize", False)), "lambda": float(settings.get("scale", 1.0))}
    return {**shared, "int8_mask": False, **rescale}


def as_settings(recipe: Recipe, parameters: Shapes) -> Values:
    """Return the numbers of a recipe as settings of mergekit, by setting, expert and parameter."""
    method, values = recipe.method["name"], recipe.per_parameter(parameters)
    sizes = {name: math.prod(shape) for name, shape in parameters.items()}
    if method == "slerp":
        return {"t": values["weight"]}
    if method == "karcher" or recipe.transform:
        return {}
    if method == "ties":
        values["density"] = _each(values["density"], lambda name, density: _share(density, sizes[name], least=1))
    if method == "breadcrumbs":
        gamma = float(recipe.method.get("gamma", 0.01))
        values["gamma"] = _each(values["density"], lambda name, density: _share(gamma, sizes[name]))
        values["density"] = _each(values["density"], lambda name, density: _share(density, sizes[name]))
    if method == "della":
        epsilon = float(recipe.method.get("epsilon", 0.15))
        values["epsilon"] = _each(
            values["density"], lambda name, density: min(epsilon, _INSIDE * max(min(density, 1 - density), 0.0))
        )
    return values


def _each(
    rows: Mapping[str, Mapping[str, float]], change: Callable[[str, float], float]
) -> dict[str, dict[str, float]]:
    return {expert: {name: change(name, value) for name, value in row.items()} for expert, row in rows.items()}


def _share(share: float, size: int, least: int = 0) -> float:
    """The share for which mergekit, too, counts floor(share * size + 1e-9) elements.

    It counts int(share * size), of the largest at least one unless the share is 0: one too many in a small tensor, and
    one too few where the product falls just short of a whole number (0.29 * 100 is 28.999999999999996).
    """
    count = math.floor(share * size + 1e-9)
    return share if count == max(least, int(share * size)) else (count + 0.5) / size if count else 0.0


def _check_rows(recipe: Recipe, parameters: Shapes) -> None:
    """Refuse DELLA of a tensor with rows of one element: mergekit divides by their number less one."""
    densities = recipe.per_parameter(parameters)["density"]
    for name, shape in parameters.items():
        alone = shape[1] == 1 if len(shape) > 1 else math.prod(shape) == 1
        if alone and any(0 < row[name] < 1 for row in densities.values()):
            raise ConfigError(
                f"mergekit export: {name} has rows of one element, and mergekit's della divides by their number less "
                f"one: merge with `evomerge merge`, or hold the density there at 1 (space.frozen)."
            )
