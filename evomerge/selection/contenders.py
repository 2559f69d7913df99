"""What can be put into the live model to be scored, beside points of a search: a recipe's merge, a model directory, a
soup.

In: a path, and a problem. Out: a `Contender`: how to score it, and all that its outcome depends
on. A recipe may have other groups and another method than the search of the settings, and fewer experts; its base and
its experts must be those of the problem, by the hashes of their weights. It is named as a search over its own
groups would name it, so what that search has scored on all items of a split is not scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.code import code_of, target_of
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.merging.buffers import Buffers
from evomerge.merging.merger import Merger
from evomerge.merging.method import Formed, Method
from evomerge.models.buffers import AVERAGE, BASE, averaged, floating_buffers
from evomerge.models.completeness import check_expert
from evomerge.models.vocabulary import row_notes
from evomerge.models.weights import dtype_name, listed
from evomerge.problem import Problem, Written
from evomerge.recipes.buffers import put_statistics, statistics_of
from evomerge.recipes.catalog import make_chain, make_method
from evomerge.recipes.recipe import Recipe
from evomerge.search.evaluators.splits import Scoring
from evomerge.space.groups import Group
from evomerge.space.named import array_coefficients, name_coefficients
from evomerge.task_vectors.family import directory_notes, loaded_in
from evomerge.task_vectors.store import (
    RELATED,
    TaskVectors,
    beside_parameters,
    exact_deltas,
    unlike,
    weight_cosine,
)
from evomerge.task_vectors.stores import LOSSY
from evomerge.transforms.chain import Chain
from evomerge.transforms.store import transformed


@dataclass(frozen=True)
class Contender:
    """A model that is ready to be scored.

    Attributes:
        about: all that its outcome depends on beside items and machine, as plain data.
        score: scores it on items; it overwrites the live model, and leaves it so.
        marks: what stands beside its row, since it is not all that is scored.
    """

    about: dict[str, Any]
    score: Callable[[Scoring, Mapping[str, list[str]]], Outcome]
    marks: tuple[str, ...] = ()


def in_place(put: Callable[[], None], model: Any, about: Mapping[str, Any]) -> Contender:
    """Return a contender that is scored once something has put it into the live model.

    Args:
        put: overwrites the live model.
        model: its name, or what else tells it from all others of the same base and experts, as plain data.
        about: what `Problem.contents` says of these.
    """

    def placed(score: Scoring, ids: Mapping[str, list[str]]) -> Outcome:
        put()
        return score(ids)

    return Contender({"model": model, **about}, placed)


def read_recipe(path: Path) -> Recipe:
    """Read the recipe of a file.

    Raises:
        ConfigError: it is none; the message names the file.
    """
    try:
        return Recipe.from_yaml(path.read_text(encoding="utf-8"))
    except (ConfigError, UnicodeDecodeError, OSError) as error:
        raise ConfigError(f"{path} is no recipe of evomerge: {str(error).removeprefix('recipe: ')}") from error


def of_recipe(path: Path, problem: Problem, factor: float = 1.0, row: str | None = None) -> Contender:
    """Return the merge that a recipe describes, with the floating buffers that it was written with.

    Args:
        path: of the recipe.
        problem: what is searched.
        factor: its weights are multiplied with it,
        row: all of them, or those of one expert or other row.

    Raises:
        ConfigError: it is no recipe, belongs to other models, contradicts itself, or its statistics are not there.
        CheckpointError: its statistics are others.
    """
    recipe, opening = read_recipe(path), problem.opening
    if recipe.auto_class != opening.auto_class:
        raise ConfigError(
            f"{path} is of parameters of the class {recipe.auto_class}, and the base is loaded as "
            f"{opening.auto_class}: write model.auto_class={recipe.auto_class}."
        )
    vectors = _its_vectors(path, recipe, problem.vectors)
    _check_alike(path, recipe, problem, vectors)
    itself = factor == 1  # statistics were taken of the winner; with other weights they are taken anew
    statistics = statistics_of(recipe, path.parent) if itself and "file" in recipe.buffers else None
    try:
        method, chain = make_method(recipe), make_chain(recipe, vectors.parameters)
        groups = recipe.groups(vectors.parameters)
    except EvomergeError as error:
        raise ConfigError(f"{path}: {error}") from error
    coefficients = _scaled(recipe, groups, factor, row)
    named = name_coefficients(coefficients, groups, recipe.row_names)
    written = _written(problem, recipe, method, chain)
    own = vectors is problem.vectors and groups == problem.space.groups and written == problem.written
    own = own and recipe.kept_as == opening.kept_as

    live_model, cache, rounded = problem.live.model, opening.cache, problem.live.narrow

    def score(fitness: Scoring, ids: Mapping[str, list[str]]) -> Outcome:
        merger = problem.merger
        if not own:
            merged = transformed(_seen_by(method, recipe, vectors), chain, cache, store=recipe.kept_as)
            placed = problem.merger.placed
            merger = Merger(live_model, merged, groups, method, problem.live.turn, rounded, placed=placed)
            merger.buffers = _its_buffers(problem, vectors)
        try:
            merger.apply(coefficients)
            if statistics is not None:  # other search items than those of the settings may have made them
                put_statistics(live_model, statistics)
            return fitness(ids)
        finally:
            merger.restore()

    opened = replace(opening, store=recipe.kept_as)
    about = replace(problem, vectors=vectors, written=written, opening=opened).contents
    if statistics is not None:
        about = {**about, "buffers": [problem.buffers, recipe.buffers["sha256"]]}
    return Contender({"model": named, **about}, score)


def _check_alike(path: Path, recipe: Recipe, problem: Problem, vectors: TaskVectors) -> None:
    """Refuse a recipe that was made of models that were opened otherwise than those here.

    Raises:
        ConfigError: it was; the message says what to write.
    """
    opening = problem.opening
    if recipe.part != problem.live.part:
        raise ConfigError(
            f"{path} was made with model.part={recipe.part or 'null'}, and the experts here are opened with "
            f"{problem.live.part or 'null'}: write model.part={recipe.part or 'null'}."
        )
    if recipe.vocabulary != opening.vocabulary and any(expert.rows for expert in vectors.experts.values()):
        raise ConfigError(
            f"{path} was made with model.vocabulary={recipe.vocabulary}, and the experts here are opened with "
            f"{opening.vocabulary}: write model.vocabulary={recipe.vocabulary}."
        )
    if (asked := recipe.template or "base") != opening.template:
        raise ConfigError(
            f"{path} was made with model.template={asked}, and models here are asked with that of {opening.template}: "
            f"write model.template={asked}."
        )
    if (kept := recipe.buffers.get("name", BASE)) != problem.buffers:
        raise ConfigError(
            f"{path} was made with model.buffers={kept}, and candidates here have model.buffers={problem.buffers}: "
            f"write model.buffers={kept}."
        )
    live = dtype_name(problem.live.dtype)
    if recipe.dtype not in (None, live):
        raise ConfigError(
            f"{path} was scored in {recipe.dtype}, and transformers loads the base in {live}: its config.json has "
            f'changed since. Write "dtype": "{recipe.dtype}" in {problem.sources.base / "config.json"}.'
        )


def _scaled(recipe: Recipe, groups: Sequence[Group], factor: float, row: str | None) -> dict[str, np.ndarray]:
    """Return a recipe's coefficients, the weights of one row or of all multiplied with a factor."""
    coefficients = array_coefficients(recipe.coefficients, groups, recipe.row_names)
    if factor == 1:
        return coefficients
    factors = [factor if row in (None, name) else 1.0 for name in recipe.row_names]
    return {**coefficients, "weight": coefficients["weight"] * np.array(factors)}


def of_directory(path: Path, problem: Problem, reporter: Progress) -> Contender:
    """Return a model as it lies in a directory, seen through the live model's parameters; whatever else it has, such
    as heads of its own, has no part in its scores.

    Args:
        path: the directory.
        problem: what is searched.
        reporter: is told what of the model is not what one may think.

    Raises:
        CheckpointError: it cannot be read, or is no model of the base's architecture.
    """
    live, base, opening = problem.live, problem.vectors.base, problem.opening
    more: dict[str, Any] = {"cache": opening.cache, "progress": reporter.steps, "vocabulary": opening.vocabulary}
    found = live.open(path, base=base, **more)
    check_expert("the model", found, base, opening.allow_missing)
    lost = [name for name in problem.vectors.parameters if name not in found.keys and name not in found.rows]
    both = [name for name in problem.vectors.parameters if name in found.keys]
    notes = directory_notes(base.path, {str(path): path})
    notes += [f"{path} {note}" for note in (*found.notes, *row_notes(found.rows))]
    if lost:
        notes.append(f"{path} lacks {listed(lost)}: the base's stays")
    if not found.adapted and (cosine := weight_cosine(base, found, both)) < RELATED:
        notes.append(f"{path} was not tuned from this base: the cosine of their weights is {cosine:.3f}")
    if not found.adapted and (theirs := loaded_in(found)) != (ours := dtype_name(live.dtype)):
        notes.append(
            f"{path} is scored in {ours}, as the base is; loaded by itself it is in {theirs} (its dtype), and its "
            f"logits are rounded otherwise"
        )
    notes += [f"{path} {note}" for note in beside_parameters(base, found, problem.buffers)]
    for note in notes:
        reporter.say(f"warning: {note}")
    named = {"directory": found.sha256, **({"vocabulary": opening.vocabulary} if found.rows else {})}
    put = partial(problem.merger.load, [(name, found.tensor(name)) for name in both], floating_buffers(found))
    placed = in_place(put, named, problem.contents)
    return (
        replace(placed, marks=(f"it is scored with {text}",))
        if (text := unlike(base, found, problem.buffers))
        else placed
    )


def of_soup(left_out: str | None, problem: Problem) -> Contender:
    """Return the merge in which all experts have the same weight, one over their number, or all but one.

    Args:
        left_out: the expert whose weight is 0; None for nobody.
        problem: what is searched.

    Raises:
        ConfigError: rows are not the experts, or nobody is left.
    """
    space = problem.space
    if list(space.rows) != list(problem.sources.experts):
        raise ConfigError(
            f"A soup has a weight for each expert, and transform= made other rows of them ({', '.join(space.rows)}): "
            f"leave out the transform."
        )
    there = np.array([row != left_out for row in space.rows], dtype=np.float64)
    if not there.any():
        raise ConfigError(f"{left_out} is the only expert, and nothing is left without it.")
    coefficients = space.constant(there / there.sum())
    named = name_coefficients(coefficients, space.groups, space.rows)
    return in_place(partial(problem.merger.apply, coefficients), named, problem.contents)


def _written(problem: Problem, recipe: Recipe, method: Method, chain: Chain) -> Written:
    """Return method and transforms of a recipe as its search had them, which is how outcomes are remembered."""
    own = {name: value for name, value in recipe.method.items() if name != "name"}
    steps = [{**step.about(), "_target_": target_of(type(step.transform))} for step in chain]
    for step, one in zip(steps, chain, strict=True):
        del step["name"]
        if code := code_of(type(one.transform)):
            step["code"] = code
    named = {"_target_": target_of(type(method)), **own}
    return replace(problem.written, method=named, transform=steps, code=code_of(type(method)))


def _its_buffers(problem: Problem, vectors: TaskVectors) -> Buffers | None:
    """Return what writes the floating buffers of a merge of a recipe's own experts, which may be fewer."""
    if problem.buffers != AVERAGE:
        return problem.merger.buffers
    base = vectors.base
    return Buffers(problem.live.model, floating_buffers(base), averaged(base, vectors.experts))


def _its_vectors(path: Path, recipe: Recipe, vectors: TaskVectors) -> TaskVectors:
    """Return the task vectors of a recipe's own experts, in its order and under its names, found by their hashes."""
    if recipe.base.sha256 != vectors.base.sha256:
        raise ConfigError(_others(path, "base", recipe.base.path, str(vectors.base.path)))
    found = {}
    for name, source in recipe.experts.items():
        equal = [own for own, expert in vectors.experts.items() if expert.sha256 == source.sha256]
        if not equal:
            here = ", ".join(str(expert.path) for expert in vectors.experts.values())
            raise ConfigError(_others(path, f"expert {name}", source.path, here))
        found[name] = name if name in equal else equal[0]
    if list(found) == list(vectors.experts) == list(found.values()):
        return vectors
    deltas = {name: vectors.deltas[own] for name, own in found.items()}
    contents = {name: vectors.contents[own] for name, own in found.items() if own in vectors.contents}
    experts = {name: vectors.experts[own] for name, own in found.items()}
    return TaskVectors(vectors.base, experts, vectors.parameters, deltas, contents, vectors.cache)


def _seen_by(method: Method, recipe: Recipe, vectors: TaskVectors) -> TaskVectors:
    """Return the task vectors as a search by the method of a recipe keeps them: where it merges the models themselves,
    these, to the bit.
    """
    if recipe.kept_as in LOSSY or not (isinstance(method, Formed) and method.form.blends):
        return vectors
    exact = {name: exact_deltas(vectors.base, one, vectors.parameters) for name, one in vectors.experts.items()}
    return replace(vectors, deltas=exact)


def _others(path: Path, who: str, its: str, here: str) -> str:
    return (
        f"{path} belongs to other models: no weights here have the hash of its {who} ({its}); here is {here}. Name the "
        f"models that it was made from (model=..., or model.base=... and model.experts=...)."
    )
