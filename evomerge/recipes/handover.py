"""What others need to build a model that was found here: the recipe, its form for mergekit, and the heads.

In: the parts of a search and coefficients, of its winner or of any other point. Out: a `Recipe`, mergekit's YAML of a
recipe, and the heads of the tasks as files beside it.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from evomerge import __version__
from evomerge.common.code import called
from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.merging.bounds import parameter_bounds
from evomerge.models.buffers import BASE, RECALIBRATE
from evomerge.models.weights import dtype_name
from evomerge.problem import Problem
from evomerge.recipes.mergekit.write import to_mergekit
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.affine import dead_entries
from evomerge.space.named import name_coefficients
from evomerge.task_vectors.store import TaskVectors
from evomerge.task_vectors.stores import LOSSY

OTHER_DTYPES = """\
# Not bit-equal to the model that evomerge scored: transformers keeps {names} in another dtype
# than {dtype}, in which mergekit writes every tensor. `evomerge merge` keeps them.
"""
FOLDED = """\
# mergekit folds adapters into the base by PEFT, and rounds that before it merges; evomerge rounds once.
"""


def make_recipe(
    problem: Problem,
    coefficients: Mapping[str, Any],
    scores: Mapping[str, Any],
    heads: Mapping[str, str],
    buffers: Mapping[str, str] | None = None,
) -> Recipe:
    """Return the recipe of a candidate.

    Args:
        problem: what is searched.
        coefficients: {variable: (G, K)} as `CoefficientSpace.decode` gives them, or lists of lists.
        scores: what the model is worth.
        heads: task -> path of its head, relative to where the recipe will be.
        buffers: what the recipe says of floating buffers, as `keep_buffers` returns it; None where nothing was kept.

    Raises:
        ConfigError: the candidate's buffers were taken anew, and nothing was kept.
    """
    if buffers is None and problem.buffers == RECALIBRATE:
        raise ConfigError(
            "With model.buffers=recalibrate only the winner's statistics are kept, so no other candidate has a recipe: "
            "search with model.buffers=average, or take the winner."
        )
    if buffers is None:
        buffers = {} if problem.buffers == BASE else {"name": problem.buffers}
    sources, vectors, space = problem.sources, problem.vectors, problem.space
    return Recipe(
        base=Source(str(sources.base), vectors.base.sha256, sources.hub.get("")),
        experts={
            name: Source(str(path), vectors.experts[name].sha256, sources.hub.get(name), sources.dequantised.get(name))
            for name, path in sources.experts.items()
        },
        method=_method(problem),
        transform=[step.about() for step in problem.transforms],
        rows=list(space.rows) if list(space.rows) != list(sources.experts) else [],
        store=_store(problem, np.asarray(coefficients["weight"], dtype=float)),
        granularity=problem.written.granularity,
        coefficients=name_coefficients(coefficients, space.groups, space.rows),
        scores=dict(scores),
        heads=dict(heads),
        buffers=dict(buffers),
        template=problem.opening.template if problem.template else None,
        auto_class=problem.opening.auto_class,
        vocabulary=problem.opening.vocabulary,
        part=problem.live.part,
        union=problem.live.union.digest if problem.live.union else None,
        dtype=dtype_name(problem.live.dtype),
        compute=dtype_name(problem.live.compute) if problem.live.compute else None,
        version=__version__,
    )


def mergekit_yaml(problem: Problem, recipe: Recipe) -> str:
    """Return a recipe of these sources as mergekit's YAML.

    Raises:
        ConfigError: mergekit cannot express it, or could not run it on these files; the message says the way out.
    """
    _check_names(problem.vectors)
    _check_rows(problem.vectors)
    return as_mergekit(problem, recipe)


def as_mergekit(problem: Problem, recipe: Recipe) -> str:
    """Return the same for experts whose files have the base's tensor names, whatever those of this search have."""
    if recipe.buffers:
        raise ConfigError(
            f"mergekit export: mergekit has no way to make the floating buffers of this merge "
            f"(model.buffers={recipe.buffers['name']}): merge with `evomerge merge`."
        )
    vectors, live = problem.vectors, problem.live
    dtype = live.dtype
    if live.union:
        raise ConfigError(
            "mergekit export: the experts' rows were put to the tokens of all models (model.vocabulary=union), which "
            "mergekit orders otherwise. Merge with `evomerge merge`."
        )
    if vectors.base.conversions:
        raise ConfigError(
            f"mergekit export: transformers makes {vectors.base.conversions[0].names[0]} of several tensors of the "
            f"base's files at load, and mergekit merges by the tensors of one of these forms. Merge with `evomerge "
            f"merge`, which writes the base's own form."
        )
    adapters = [
        name
        for name, source in recipe.experts.items()
        if (found := vectors.experts.get(name)) and found.adapted and found.sha256 == source.sha256
    ]
    own = _weighed(problem, recipe) if recipe.transform else recipe
    given = (own, vectors.base.keys, vectors.parameters, str(dtype), vectors.base.extra, live.tied, adapters)
    text = (FOLDED if adapters else "") + to_mergekit(*given)
    kept = [name for name, own in live.dtypes.items() if own != dtype]
    return (OTHER_DTYPES.format(names=listed(kept), dtype=dtype_name(dtype)) if kept else "") + text


def _weighed(problem: Problem, recipe: Recipe) -> Recipe:
    """Return the same merge with a weight of 1 where there is no task vector: a space freezes it at another one."""
    groups, rows = problem.space.groups, problem.space.rows
    dead = dead_entries(groups, rows, problem.rows.zero, "")
    none = {(group.name, row) for g, group in enumerate(groups) for k, row in enumerate(rows) if dead[g, k]}
    weights = {
        group: {row: 1.0 if (group, row) in none else weight for row, weight in found.items()}
        for group, found in recipe.coefficients["weight"].items()
    }
    return replace(recipe, coefficients={**recipe.coefficients, "weight": weights})


def keep_heads(problem: Problem, directory: Path) -> dict[str, str]:
    """Write the head of every task to `heads/` in a directory, and return their paths relative to it.

    A frozen head is copied. Of an expert's own head, all float tensors are written that the merge does not have.
    """
    base, heads = problem.vectors.base, {}
    for name, task in problem.sources.tasks.items():
        target = directory / "heads" / f"{name}.safetensors"
        if task.head is not None:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(task.head, target)
        elif task.expert is not None:
            expert = problem.vectors.experts[task.expert]
            keys = [*expert.extra, *(expert.keys[parameter] for parameter in base.missing if parameter in expert.keys)]
            tensors = {key: expert.tensors[key].contiguous() for key in keys if expert.tensors[key].is_floating_point()}
            if not tensors:
                continue
            target.parent.mkdir(exist_ok=True)
            save_file(tensors, target, metadata={"expert": task.expert})
        else:
            continue
        heads[name] = str(target.relative_to(directory))
    return heads


def copy_heads(heads: Mapping[str, str], source: Path, directory: Path) -> None:
    """Copy the heads of a recipe to where another recipe will be.

    Args:
        heads: task -> path, relative to `source` and to `directory`.
        source: where they are.
        directory: where they shall be.

    Raises:
        ConfigError: there are other heads of these names.
    """
    for name in heads.values():
        content, target = (source / name).read_bytes(), directory / name
        if not target.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
        elif target.read_bytes() != content:
            raise ConfigError(
                f"{target} is there already, and it is another head than that of this recipe: name a file in another "
                f"directory."
            )


def _store(problem: Problem, weights: np.ndarray) -> dict[str, Any]:
    """Return how task vectors are kept, and what that may change at most; nothing where it changes nothing."""
    if problem.opening.store not in LOSSY:
        return {}
    groups = problem.space.groups
    bounds = parameter_bounds(problem.method, problem.rows, groups, weights)
    names = [group.name for group in groups]
    found = {} if bounds is None else {"bound": dict(zip(names, bounds.tolist(), strict=True))}
    return {"name": problem.opening.store, **found}


def _method(problem: Problem) -> dict[str, Any]:
    """Return the method as plain data: a name instead of a class, and its settings."""
    own = {name: value for name, value in problem.written.method.items() if name != "_target_"}
    return {"name": called(problem.method.name, type(problem.method)), **own}


def _check_names(vectors: TaskVectors) -> None:
    """Refuse a mergekit.yaml that mergekit could not run: it looks for the base's tensor names in every expert."""
    for name, expert in vectors.experts.items():
        for parameter, key in expert.keys.items():
            if not expert.adapted and vectors.base.keys.get(parameter, key) != key:
                raise ConfigError(
                    f"mergekit needs the same tensor names in all files, and the expert {name} has {key} where the "
                    f"base has {vectors.base.keys[parameter]}. Save the experts' backbones alone, as the base is "
                    f"saved, or let `evomerge export RUN --materialise DIR` write them so."
                )


def _check_rows(vectors: TaskVectors) -> None:
    """Refuse a mergekit.yaml that mergekit could not run: it wants tensors of the same size in all files."""
    for name, expert in vectors.experts.items():
        for parameter, rows in expert.rows.items():
            raise ConfigError(
                f"mergekit needs tensors of the same size in all files, and the expert {name} has {rows.held} rows in "
                f"{parameter} where the base has {rows.base}. Let `evomerge export RUN --materialise DIR` write the "
                f"experts with the base's number of rows."
            )
