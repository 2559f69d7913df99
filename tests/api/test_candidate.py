"""Several candidates of one family, models in memory that go on changing, and what a candidate refuses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import evomerge as em
from evomerge.common.errors import ConfigError
from evomerge.recipes.recipe import Source
from evomerge.runs.suite import Suite
from tests.processes.api_search import Net, score, tuned

ITEMS = em.items((str(i), i % 3) for i in range(90))
FEW = {"searcher": "random", "budget": 3, "items": 8, "select_items": 8}
TRIMMED = [{"ties": {"density": 0.005}}]


@pytest.fixture
def family() -> em.Family:
    net = Net()
    return em.Family(net, red=tuned(net, 1), blue=tuned(net, 2))


def state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(model: torch.nn.Module, before: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_candidates_of_one_family_do_not_mix():
    """One that did not write last begins at the base: in `set`, `base` and `gradient`, and where another is made."""
    net = Net()
    head = {name: tensor for name, tensor in net.state_dict().items() if name.startswith("head")}
    family = em.Family(net, red=tuned(net, 1), blue=tuned(net, 2))
    whole, part = em.Candidate(family, "tensor"), em.Candidate(family, "tensor", transform=TRIMMED)
    base = state(part.base())
    trimmed = state(part.set(0.5))
    assert torch.equal(trimmed["head.weight"], head["head.weight"])
    full = state(whole.set(0.5))
    assert same(part.set(0.5), trimmed)
    assert same(whole.set(0.5), full)
    assert same(part.base(), base)
    whole.set(0.5)
    slope = part.gradient(lambda model: model(torch.arange(9)).square().mean())
    assert same(part.model, base)
    assert slope.any()
    whole.set(0.5)
    other = em.Candidate(family, "model")
    assert same(other.model, base)
    assert same(whole.set(0.5), full)


def test_the_gradient_of_weights_with_a_sum():
    """Points are amounts there: their scale changes nothing, so the gradient is orthogonal to them."""
    net = Net().double()
    candidate = em.Candidate(em.Family(net, red=tuned(net, 1), blue=tuned(net, 2)), "model", sum=1.0)

    def loss(model):
        return model(torch.arange(9)).square().mean()

    def at(x):
        with torch.no_grad():
            return loss(candidate.apply(x)).item()

    x, step = np.array([0.3, 0.9]), 1e-2
    numeric = [(at(x + step * one) - at(x - step * one)) / (2 * step) for one in np.eye(2)]
    candidate.apply(x)
    slope = candidate.gradient(loss)
    assert slope == pytest.approx(numeric, rel=1e-2)
    assert slope @ x == pytest.approx(0, abs=1e-9)
    candidate.set({"red": 0.25, "blue": 0.75})  # the same weights, of other amounts
    assert candidate.gradient(loss) @ x == pytest.approx(0, abs=1e-9)


def test_a_search_begins_at_the_base(family):
    candidate, red = em.Candidate(family, "tensor"), tuned(Net(), 1)

    def near(model, items):
        return [-float((model.head.weight - red["head.weight"]).norm())] * len(items)

    def values() -> list[list[float]]:
        found = em.search(candidate, near, {"red": ITEMS}, normalised=True, **FEW)
        return [trial.values for trial in found.trials]

    fresh = values()
    candidate.set(1.2)
    assert values() == fresh


def test_experts_in_memory_are_copied():
    net, red = Net(), Net()
    red.load_state_dict(tuned(net, 1))
    blue = tuned(net, 2)
    before = red.state_dict()["head.weight"].clone(), blue["head.weight"].clone()
    family = em.Family(net, red=red, blue=blue)
    with torch.no_grad():
        red.head.weight.add_(5)
        blue["head.weight"].add_(5)
    candidate = em.Candidate(family)
    for name, was in zip(("red", "blue"), before, strict=True):
        assert torch.allclose(candidate.set({name: 1.0}).head.weight, was, atol=1e-5)


def test_a_loaded_result_has_the_transforms_of_its_search(pico_suite, tmp_path):
    family = em.Family(pico_suite.base, pico_suite.experts, cache=tmp_path / "cache")
    candidate = em.Candidate(family, transform=TRIMMED)

    def score(model, items):
        return [float(model.embeddings.word_embeddings.weight[0, 0])] * len(items)

    tasks = {name: em.items(task.items) for name, task in pico_suite.tasks.items()}
    result = em.search(candidate, score, tasks, run=tmp_path / "run", report_items=8, **FEW)
    saved = em.load(tmp_path / "run")
    assert same(saved.model, state(result.model))
    linear = em.Candidate(family)
    with pytest.raises(em.EvomergeError, match=r"The recipe transforms task vectors by .*'density': 0\.005"):
        linear.set(result.recipe)
    with pytest.raises(em.EvomergeError, match=r"The recipe transforms task vectors by .*'density': 0\.005"):
        linear.set(tmp_path / "run" / "recipe.yaml")


def test_a_loaded_result_is_compared_in_one_live_model(pico_suite, tmp_path, monkeypatch):
    candidate = em.Candidate(em.Family(pico_suite.base, pico_suite.experts, cache=tmp_path / "cache"), "model")
    tasks = {name: em.items(task.items) for name, task in pico_suite.tasks.items()}
    em.search(candidate, "tests.kit.user_fitness:score", tasks, run=tmp_path / "run", report_items=8, **FEW)
    loaded, made = em.load(tmp_path / "run"), []
    from evomerge.runs import families

    load_live = families.load_live
    monkeypatch.setattr(families, "load_live", lambda *args: made.append(args) or load_live(*args))
    assert em.evaluate(loaded, "base", "experts").models["winner"] == loaded.summary.winner
    assert len(made) == 1


def test_a_recipe_of_something_else_is_refused(family):
    candidate = em.Candidate(family)
    recipe = em.search(candidate, score, {"red": ITEMS}, **FEW).recipe
    candidate.set(recipe)
    other = Source("elsewhere", "0" * 64)
    for wrong, message in (
        (replace(recipe, base=other), r"the base of it \(elsewhere\) has other weights"),
        (replace(recipe, experts={**recipe.experts, "red": other}), "the expert red of it"),
        (replace(recipe, method={"name": "ties"}, coefficients=_densities(recipe)), "The recipe merges by"),
    ):
        with pytest.raises(em.EvomergeError, match=message):
            candidate.set(wrong)
    with pytest.raises(em.EvomergeError, match="of other experts: Unknown expert 'green'"):
        em.Candidate(em.Family(Net(), red=tuned(Net(), 1), green=tuned(Net(), 2))).set(recipe)


def _densities(recipe):
    return {**recipe.coefficients, "density": recipe.coefficients["weight"]}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"typo": 0.3}, "Unknown expert or variable 'typo'"),
        ({"red": 0.3, "weight": 0.2}, "Unknown variable 'red'"),
        ({"red": [0.3, 0.2]}, r"The weight of red has shape \(2,\)"),
        ("nothing.yaml", "nothing.yaml cannot be read"),
        (float("nan"), "not finite"),
        (np.zeros(3), r"has shape \(8,\), not \(3,\)"),
        (object(), "cannot be put into the model: give a number"),
    ],
)
def test_what_cannot_be_put_into_the_model_is_said(family, wrong, message):
    candidate = em.Candidate(family)
    with pytest.raises(em.EvomergeError, match=message):
        candidate.set(wrong)


def test_numbers_of_numpy_are_numbers(family):
    candidate = em.Candidate(family)
    before = state(candidate.set(0.25))
    assert same(candidate.set(np.float32(0.25)), before)
    assert same(candidate.set({"red": np.float64(0.25), "blue": np.float32(0.25)}), before)


def test_a_cache_that_cannot_be_written_is_named(pico_suite: Suite, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigError, match=r"file/cache cannot be used.*cache=DIR"):
        em.Candidate(em.Family(pico_suite.base, pico_suite.experts, cache=tmp_path / "file" / "cache"), "model")
