"""The way out where mergekit cannot express a recipe: models in which the hard part is done, and a plain merge of them.

Methods that go along circles and spheres have no such part, and mergekit elects by no count: these are refused.

In: a recipe. Out: a directory with a model for each expert, base + what the method makes of its task vector before
experts meet, and a YAML in which mergekit does the rest. The hard part is a transform that looked at the whole model
(the rest is a weighted sum, mergekit's `task_arithmetic`), random masks (the rest is the election and sum of `ties`, of
all elements), and weights of parts of tensors, which go into the models (the rest has weight 1).

A model holds θ₀ + T, and mergekit takes θ₀ away again, so T comes back as exactly as the sum could be written: the
models are float32, whatever the base's dtype, since in bfloat16 a sum keeps 8 bits, and few of them are those of T.
Where a task vector was only trimmed, the sum is the expert's own value; where it was scaled, the sum is rounded.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.progress import Progress
from evomerge.merging.method import Formed
from evomerge.problem import Problem
from evomerge.recipes.catalog import make_method
from evomerge.recipes.handover import as_mergekit
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe, Source
from evomerge.space.named import Coefficients

NOTE = """\
# The models beside this file hold the base + what is left of each expert's task vector after {done}.
# They are float32: in bfloat16 the difference to the base would lose most of its bits.
"""


def materialise(problem: Problem, recipe: Recipe, directory: Path, reporter: Progress) -> Path:
    """Write a model for each expert, and the YAML with which mergekit merges them to what the recipe stands for.

    Args:
        problem: the parts of the search that the recipe belongs to.
        recipe: what to write.
        directory: where to; new or empty.
        reporter: tells the user what goes on.

    Returns:
        The YAML, `mergekit.yaml` in the directory.

    Raises:
        ConfigError: the directory is not empty, or even so mergekit cannot express the recipe.
    """
    parameters = problem.vectors.parameters
    parts = has_parts(recipe, parameters)
    if parts and recipe.method.get("normalize"):
        raise ConfigError(
            "mergekit export: with normalize, the weights of the experts are divided by their sum, element by element, "
            "so those of parts of tensors cannot go into the models. Merge with `evomerge merge`, or search another "
            "granularity."
        )
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise ConfigError(f"{directory} is there already, and not empty: name a new directory.")
    rest = _rest(recipe, directory, parts)
    yaml = as_mergekit(problem, rest)  # what even this cannot express is said before anything is written
    directory.mkdir(parents=True, exist_ok=True)
    as_searched = recipe.transform == [step.about() for step in problem.transforms]
    made = problem.rows if recipe.transform and as_searched else None  # or each model would begin with the transform
    store = {"name": recipe.kept_as} if recipe.store else {}  # as it was scored; the bound is that of other weights
    for name in recipe.row_names:
        alone = replace(
            recipe, coefficients=_alone(recipe, name, parts), scores={}, heads={}, dtype="float32", store=store
        )
        write_model(alone, directory, directory / name, dtype="float32", made=made, reporter=reporter)
    done = " and ".join(step["name"] for step in recipe.transform or [recipe.method])
    write_atomically(directory / "mergekit.yaml", NOTE.format(done=done + " and the weights" * parts) + yaml)
    return directory / "mergekit.yaml"


def has_parts(recipe: Recipe, parameters: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether some group of a recipe is a part of a tensor."""
    spans = (span for group in recipe.groups(parameters) for span in group.spans)
    return any(span.stop - span.start < math.prod(parameters[span.parameter]) for span in spans)


def _alone(recipe: Recipe, name: str, parts: bool) -> Coefficients:
    """The coefficients with which the method leaves one row: weight 1, or its own, and 0 for all others."""
    weights = {
        group: {expert: (value if parts else 1.0) if expert == name else 0.0 for expert, value in row.items()}
        for group, row in recipe.coefficients["weight"].items()
    }
    return {**recipe.coefficients, "weight": weights}


def _rest(recipe: Recipe, directory: Path, parts: bool) -> Recipe:
    """What is left to do with the models: a weighted sum, after an election where the method has one."""
    elects, divides = _form(recipe)
    granularity, weights = recipe.granularity, recipe.coefficients["weight"]
    if parts:
        granularity, weights = "model", {"model": dict.fromkeys(recipe.row_names, 1.0)}
    density = {group: dict.fromkeys(row, 1.0) for group, row in weights.items()}
    method = {"name": "ties" if elects else "dare", "normalize": divides} if elects or divides else {"name": "linear"}
    return replace(
        recipe,
        experts={name: Source((directory / name).as_posix(), "") for name in recipe.row_names},
        method=method,
        transform=[],
        rows=[],
        store={},
        granularity=granularity,
        coefficients={"weight": weights, **({"density": density} if elects or divides else {})},
    )


def _form(recipe: Recipe) -> tuple[bool, bool]:
    """Return whether experts elect signs when they meet, and whether their sum is divided by weights.

    Raises:
        ConfigError: mergekit has no such sum.
    """
    method = make_method(recipe)
    if not isinstance(method, Formed) or not method.separable or method.form.join == "count":
        what = "elect=count" if isinstance(method, Formed) and method.form.join == "count" else method.name
        raise ConfigError(
            f"mergekit export: a merge by {what} is no sum of experts that can be changed one by one before mergekit "
            f"merges them: merge with `evomerge merge`."
        )
    return method.form.elects, method.form.divide
