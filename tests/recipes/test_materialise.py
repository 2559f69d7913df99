"""The way out of what mergekit cannot express: materialised experts, merged as mergekit's arithmetic has it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import Tensor

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.merging.methods import Ties
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors
from evomerge.problem import Problem
from evomerge.recipes.catalog import TRANSFORMS
from evomerge.recipes.handover import as_mergekit, make_recipe
from evomerge.recipes.materialise import materialise
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.suite import Suite
from evomerge.space.groups import make_groups
from evomerge.transforms.chain import Stage, Step, streamed
from evomerge.transforms.spectral import Cart
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.methods import merged as by_method
from tests.kit.published import quick


def recipe_on(
    problem: Problem, granularity: str, method: dict[str, Any], transform: Any = (), rows: Any = (), seed: int = 0
) -> Recipe:
    """A recipe of the pico suite with coefficients that are all different."""
    rng = np.random.default_rng(seed)
    start = plain(compose("model=pico"))
    recipe = make_recipe(under(problem, start), problem.space.constant(np.full(3, 0.4)), {}, {})
    variables = ("weight",) if method["name"] in ("linear", "slerp") else ("weight", "density")
    coefficients = {
        variable: {
            group.name: {expert: float(rng.uniform(0.1, 0.9)) for expert in rows or recipe.experts}
            for group in make_groups(granularity, problem.vectors.parameters)
        }
        for variable in variables
    }
    made_of = {"transform": list(transform), "rows": list(rows), "coefficients": coefficients}
    return replace(recipe, method=method, granularity=granularity, **made_of)


def merged_by_mergekit(config: Path) -> dict[str, Tensor]:
    """What mergekit makes of a YAML, by its arithmetic (generalized_task_arithmetic.py), for a density of 1."""
    document = yaml.safe_load(config.read_text())
    base = read_tensors(weight_files(Path(document["base_model"])))
    models = [(row["parameters"], read_tensors(weight_files(Path(row["model"])))) for row in document["models"]]
    merged = {}
    for key, tensor in base.items():

        def of(settings: dict[str, Any], name: str, key: str = key) -> float:
            return next(entry["value"] for entry in settings[name] if entry.get("filter", "") in key)

        deltas = [tensors[key] - tensor for _, tensors in models]
        weights = np.array([of(settings, "weight") for settings, _ in models])
        if document["merge_method"] == "ties":
            assert all(of(settings, "density") == 1 or not of(settings, "weight") for settings, _ in models)
            flat = by_method(
                Ties(document["parameters"]["normalize"]), [each.flatten() for each in deltas], weights.tolist()
            )
            merged[key] = tensor + flat.view(tensor.shape)
        else:
            total = weights.sum() if document["parameters"]["normalize"] else 1
            merged[key] = tensor + sum(weight * delta for weight, delta in zip(weights, deltas, strict=True)) / total
    return merged


@pytest.mark.parametrize(
    ("granularity", "method", "rest"),
    [
        ("chunk:3", {"name": "linear"}, "task_arithmetic"),
        ("module", {"name": "dare_ties", "seed": 3, "normalize": True}, "ties"),
        ("chunk:2", {"name": "dare_ties", "seed": 3, "normalize": False}, "ties"),
        ("chunk:2", {"name": "ties", "normalize": False}, "ties"),
        ("layer", {"name": "ties", "over": "group"}, "ties"),
        ("module", {"name": "dare"}, "task_arithmetic"),
        ("module", {"name": "dare", "normalize": True}, "dare_linear"),
        ("module", {"name": "della"}, "ties"),
        ("module", {"name": "della", "elect": None}, "task_arithmetic"),
        ("model", {"name": "breadcrumbs", "over": "group"}, "task_arithmetic"),
        ("module", {"name": "breadcrumbs", "elect": "sum", "normalize": True, "scale": 0.7}, "ties"),
    ],
    ids=lambda given: "-".join(map(str, given.values())) if isinstance(given, dict) else given,
)
def test_materialised_experts_merge_to_the_recipe(
    problem: Problem, tmp_path: Path, granularity: str, method: dict[str, Any], rest: str
) -> None:
    check(problem, tmp_path, recipe_on(problem, granularity, method), rest)


def check(problem: Problem, tmp_path: Path, recipe: Recipe, rest: str) -> None:
    config = materialise(problem, recipe, tmp_path / "experts", Reporter())
    document = yaml.safe_load(config.read_text())
    assert document["merge_method"] == rest
    assert "float32" in config.read_text().splitlines()[1]
    theirs = merged_by_mergekit(config)
    ours = read_tensors(weight_files(write_model(recipe, tmp_path, tmp_path / "ours", reporter=Reporter())))
    assert set(ours) == set(theirs)
    for key, tensor in ours.items():
        assert tensor.dtype == torch.float32
        torch.testing.assert_close(theirs[key], tensor, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("transform", "rows"),
    [
        ([{"name": "tests.kit.transforms.Common"}], ("common", "animals", "trees", "metals")),
        ([{"name": "tests.kit.transforms.Sum", "only": ["encoder.*"]}], ("all", "animals", "trees", "metals")),
    ],
    ids=["common row", "merged row of some parameters"],
)
def test_materialised_rows_merge_to_the_recipe(problem: Problem, tmp_path: Path, transform: Any, rows: Any) -> None:
    """There is a model for each row, whether or not it is an expert."""
    check(problem, tmp_path, recipe_on(problem, "layer", {"name": "linear"}, transform, rows), "task_arithmetic")


@pytest.mark.parametrize("name", TRANSFORMS)
def test_every_transform_has_its_way_to_mergekit(problem: Problem, tmp_path: Path, name: str) -> None:
    """Its YAML is refused by the name of the way out, which gives the model that the recipe stands for."""
    step, whole = Step(quick(name)), problem.vectors
    pair = {expert: whole.experts[expert] for expert in ("animals", "trees")}
    vectors = replace(whole, experts=pair, deltas={expert: whole.deltas[expert] for expert in pair})
    rows = list(step.rows(vectors.rows, vectors.parameters))
    recipe = recipe_on(problem, "layer", {"name": "linear"}, [step.about()], rows)
    own = {expert: recipe.experts[expert] for expert in pair}
    recipe = replace(recipe, experts=own, rows=[] if rows == list(own) else rows)
    with pytest.raises(ConfigError, match=rf"transformed before the search \({name}\).*export RUN --materialise DIR"):
        as_mergekit(problem, recipe)
    theirs = merged_by_mergekit(materialise(problem, recipe, tmp_path / "experts", Reporter()))
    weights, made = recipe.per_parameter(vectors.parameters)["weight"], streamed(vectors, Stage(step, vectors))
    changed = 0
    for parameter, key in vectors.base.keys.items():
        expected = vectors.base.tensor(parameter).clone()
        for row in rows:
            if (delta := made.dense(row, parameter)) is not None:
                expected += weights[row][parameter] * delta
        torch.testing.assert_close(theirs[key], expected, atol=1e-6, rtol=0)
        changed += not torch.equal(theirs[key], vectors.base.tensor(parameter))
    assert changed > 10


@pytest.mark.parametrize(("group", "method"), [("embeddings", "sce"), ("encoder.layer.0", None)])
def test_weights_of_no_task_vector_do_not_count_beside_weights_of_one(
    pico_suite: Suite, tmp_path: Path, group: str, method: str | None
) -> None:
    """The embeddings of the suite are untouched, so `space=layer` freezes their weights at 0."""
    where = (f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu")
    settings = plain(compose("model=pico", *where, "transform=sce", "space=layer"))
    problem = build_problem(settings, Reporter())
    weights = problem.space.constant(1.0)
    weights["weight"][[each.name for each in problem.space.groups].index(group)] = 0.0
    recipe = make_recipe(problem, weights, {}, {})
    if method is None:
        with pytest.raises(ConfigError, match=r"transformed before the search \(sce\)"):
            as_mergekit(problem, recipe)
    else:
        assert yaml.safe_load(as_mergekit(problem, recipe))["merge_method"] == method


def test_rows_that_the_search_has_made_are_not_made_again(
    pico_suite: Suite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    where = (f"model.suite={pico_suite.path}", f"model.cache={tmp_path / 'cache'}", "model.device=cpu")
    settings = plain(compose("model=pico", *where, "transform=cart"))
    problem = build_problem(settings, Reporter())
    weights = problem.space.constant(np.array([0.9, 0.3, 0.5, 0.7]))
    recipe = Recipe.from_yaml(make_recipe(under(problem, settings), weights, {}, {}).to_yaml())
    ours = read_tensors(weight_files(write_model(recipe, tmp_path, tmp_path / "ours", reporter=Reporter())))
    monkeypatch.setattr(Cart, "apply", lambda *_: pytest.fail("it was made again"))
    theirs = merged_by_mergekit(materialise(problem, recipe, tmp_path / "experts", Reporter()))
    for key, tensor in ours.items():
        torch.testing.assert_close(theirs[key], tensor, atol=1e-6, rtol=0)


def test_what_cannot_be_materialised_is_refused_before_anything_is_written(problem: Problem, tmp_path: Path) -> None:
    target = tmp_path / "experts"
    with pytest.raises(ConfigError, match=r"weights of the experts are divided by their sum.*evomerge merge"):
        materialise(problem, recipe_on(problem, "chunk:2", {"name": "ties", "normalize": True}), target, Reporter())
    assert not target.exists()
    for method, what in (({"name": "ties", "elect": "count"}, "elect=count"), ({"name": "slerp"}, "slerp")):
        recipe = recipe_on(problem, "layer", method)
        if method["name"] == "slerp":
            rows = {group: {"trees": row["trees"]} for group, row in recipe.coefficients["weight"].items()}
            own = {"trees": recipe.experts["trees"]}
            recipe = replace(recipe, experts=own, coefficients={"weight": rows})
        with pytest.raises(ConfigError, match=f"a merge by {what} is no sum of experts.*evomerge merge"):
            materialise(problem, recipe, target, Reporter())
        assert not target.exists()
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="not empty"):
        materialise(problem, recipe_on(problem, "chunk:2", {"name": "linear"}), tmp_path, Reporter())
