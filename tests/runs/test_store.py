"""Searches whose task vectors are packed: from the settings to the log, the recipe, the merged model and its card."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import evomerge as em
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.problem import Problem
from evomerge.recipes.handover import make_recipe, mergekit_yaml
from evomerge.recipes.materialise import materialise
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.kept import store_text
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.task_vectors.stores import CHOICES, LOSSY
from tests.kit.helpers import compose
from tests.processes.api_search import Net, tuned

SMALL = ("fitness.items=24", "fitness.select_items=30", "fitness.report_items=60", "searcher=random", "space=layer")
ROUNDINGS = 2.0**-20
"""What sums in float32 may add to the bound here, where parameters are near 1."""


class Told(Silent):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def say(self, text: str) -> None:
        self.texts.append(text)


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={cache}", "model.device=cpu", *SMALL]


@pytest.fixture(scope="module")
def built(settings: list[str]) -> Callable[..., Problem]:
    return lambda *more: build_problem(plain(compose(*settings, *more)), Silent())


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A search in int8, stopped after three candidates and gone on with."""
    path, told = tmp_path_factory.mktemp("run") / "int8", Told()
    for budget in (3, 6):
        assert run_search(compose(*settings, "model.store=int8", f"budget={budget}"), path, told) is not None
    return path, told.texts


def values(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in problem.live.model.named_parameters()}


def applied(problem: Problem, recipe: Recipe) -> dict[str, torch.Tensor]:
    known = recipe.on_groups(problem.space.groups, problem.space.rows, problem.vectors.parameters)
    problem.merger.apply(known)
    return values(problem)


def written(problem: Problem, directory: Path) -> dict[str, torch.Tensor]:
    """The parameters that a merged directory holds."""
    tensors = load_file(directory / "model.safetensors")
    return {name: tensors[key] for name, key in problem.vectors.base.keys.items()}


def farthest(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> float:
    return max(float((one[name].double() - other[name].double()).abs().max()) for name in one)


def test_a_run_that_goes_on_is_the_run_that_was_never_stopped(settings, run, tmp_path) -> None:
    assert run_search(compose(*settings, "model.store=int8", "budget=6"), tmp_path / "whole", Silent()) is not None
    assert (tmp_path / "whole" / "trials.jsonl").read_bytes() == (run[0] / "trials.jsonl").read_bytes()


def test_a_run_in_another_store_is_another_run(settings, run) -> None:
    with pytest.raises(em.EvomergeError, match="store"):
        run_search(compose(*settings, "model.store=int4", "budget=6"), run[0], Silent())


def test_preflight_says_what_is_lost(run) -> None:
    (text,) = {text.strip() for text in run[1] if text.strip().startswith("store")}
    assert "int8" in text
    assert "a parameter by" in text


def test_the_recipe_builds_what_was_scored_and_exact_says_the_difference(run, built, tmp_path) -> None:
    path, _ = run
    recipe = Recipe.from_yaml((path / "recipe.yaml").read_text())
    assert recipe.store["name"] == "int8"
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe
    packed, exact = built("model.store=int8"), built()
    scored, plain_merge = applied(packed, recipe), applied(exact, recipe)
    told = Told()
    write_model(recipe, path, tmp_path / "scored", reporter=told)
    write_model(recipe, path, tmp_path / "exact", exact=True, reporter=told)
    assert farthest(written(packed, tmp_path / "scored"), scored) == 0
    assert farthest(written(exact, tmp_path / "exact"), plain_merge) == 0
    difference = farthest(scored, plain_merge)
    assert 0 < difference <= recipe.bound + ROUNDINGS
    assert any(f"the largest difference of a parameter is {difference:.3g}" in text for text in told.texts)
    card = (tmp_path / "exact" / "README.md").read_text()
    assert f"{difference:.3g}" in card
    assert "--exact" in card
    assert "made of task vectors in int8, as it was scored" in (tmp_path / "scored" / "README.md").read_text()
    with pytest.raises(ConfigError, match="holds another merge"):
        write_model(recipe, path, tmp_path / "exact", reporter=told)
    assert "mergekit merges the experts as they are" in (path / "mergekit.yaml").read_text()


@pytest.mark.parametrize("store", LOSSY)
@pytest.mark.parametrize("more", [(), ("transform=ties",), ("method=ties",), ("space=chunk", "space.n=3")], ids=str)
def test_a_recipe_is_the_candidate_in_every_store(built, pico_suite, tmp_path, store: str, more) -> None:
    problem = built(f"model.store={store}", *more)
    x = np.random.default_rng(0).uniform(problem.space.low, problem.space.high)
    recipe = make_recipe(problem, problem.space.decode(x), {}, {})
    scored = applied(problem, recipe)
    write_model(recipe, tmp_path, tmp_path / "merged", reporter=Silent())
    assert farthest(written(problem, tmp_path / "merged"), scored) == 0
    far = farthest(scored, applied(built(*more), recipe))
    text = store_text(problem)
    assert text is not None
    if problem.method.linear:
        assert recipe.bound is not None
        assert 0 < far <= recipe.bound + ROUNDINGS
        assert max(recipe.store["bound"].values()) == recipe.bound
    else:
        assert recipe.bound is None
        assert "has no bound" in text
    kept = {delta.layout().kind for held in problem.rows.deltas.values() for delta in held.values()}
    kind = "dense" if store == "bfloat16" else store
    assert kept == {f"masked {kind}" if "transform=ties" in more else kind}


def test_what_keeps_every_bit_is_one_search(built) -> None:
    problems = {store: built(f"model.store={store}") for store in CHOICES if store not in LOSSY}
    contents = [problem.contents for problem in problems.values()]
    assert all(one == contents[0] for one in contents)
    coefficients = problems["auto"].space.decode(np.full(problems["auto"].space.dim, 0.3))
    found = []
    for problem in problems.values():
        problem.merger.apply(coefficients)
        found.append(values(problem))
        assert store_text(problem) is None
        assert make_recipe(problem, coefficients, {}, {}).store == {}
    assert all(farthest(one, found[0]) == 0 for one in found)
    assert built("model.store=int8").contents != contents[0]


def test_experts_are_scored_as_they_came(built) -> None:
    packed, exact = built("model.store=int4"), built()
    for problem in (packed, exact):
        problem.become("trees")
    assert farthest(values(packed), values(exact)) == 0


def test_materialised_models_are_those_that_were_scored(built, tmp_path) -> None:
    problem = built("model.store=int4", "transform=ties")
    recipe = make_recipe(problem, problem.space.constant(0.4), {}, {})
    materialise(problem, recipe, tmp_path / "out", Silent())
    base, row = problem.vectors.base, problem.space.rows[0]
    held = written(problem, tmp_path / "out" / row)
    for name, delta in problem.rows.deltas[row].items():
        expected = base.tensor(name).float() + delta.dense().view(base.tensor(name).shape)
        assert torch.equal(held[name], expected)
    assert "mergekit merges the experts as they are" not in (tmp_path / "out" / "mergekit.yaml").read_text()


def test_mergekit_is_told(built) -> None:
    problem = built("model.store=int8", "space=model")
    text = mergekit_yaml(problem, make_recipe(problem, problem.space.constant(0.4), {}, {}))
    assert "# mergekit merges the experts as they are, and evomerge scored task vectors in int8" in text


def test_what_there_is_not_is_refused(settings, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"model\.store: Unknown choice 'int5': did you mean 'int"):
        run_search(compose(*settings, "model.store=int5"), tmp_path, Silent())
    net = Net()
    with pytest.raises(ConfigError, match="store: Unknown choice 'half'"):
        em.Family(net, red=tuned(net, 1), store="half")


def test_a_family_in_memory_is_packed_too() -> None:
    net = Net()
    merged = {}
    for store in ("auto", "int8"):
        family = em.Family(net, red=tuned(net, 1), store=store)
        model = em.Candidate(family, space="model").set(0.5)
        merged[store] = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    assert 0 < farthest(merged["auto"], merged["int8"]) < 1e-2


def test_a_recipe_of_another_store_is_another_model(run, pico_suite) -> None:
    recipe = Recipe.from_yaml((run[0] / "recipe.yaml").read_text())
    family = em.Family(pico_suite.base, {name: str(path) for name, path in pico_suite.experts.items()}, device="cpu")
    with pytest.raises(ConfigError, match="task vectors in int8, and this candidate's are in float32"):
        em.Candidate(family, space="layer").set(recipe)
