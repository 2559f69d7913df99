"""PEFT's `add_weighted_adapter`, operation by operation: what makes the same here, and what PEFT alone makes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.common.progress import Silent
from evomerge.models.factors import Factors
from evomerge.recipes.adapter import write_adapter
from evomerge.task_vectors.draws import keys, uniforms
from tests.kit.adapters import CAUSAL, llama, loaded_by_peft, opened, save_adapter
from tests.kit.merging import make_recipe

WEIGHTS = {"low": 0.7, "other": 0.4}
HALF = {"density": 0.5}
TRIM, ELECT = {"name": "trim", "density": 0.5, "scope": "tensor"}, {"name": "elect", "join": "mean"}
DARE = {"name": "dare", "density": 0.5, "seed": 3}
OF_CHANGES: dict[str, tuple[list[dict[str, Any]], dict[str, Any]]] = {
    "cat": ([], {}),
    "svd": ([], {}),
    "magnitude_prune_svd": ([TRIM], HALF),
    "ties_svd": ([TRIM, ELECT], HALF),
    "ties_svd by frequency": ([TRIM, ELECT | {"by": "count"}], HALF | {"majority_sign_method": "frequency"}),
    "dare_linear_svd": ([DARE], HALF),
    "dare_ties_svd": ([DARE, ELECT], HALF),
}
"""Operations of PEFT on B·A·s, the transforms that do the same, and the settings for PEFT."""
OF_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Operations of PEFT on A and on B, each by itself."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base, and two adapters of one rank, with modules that only one of them has."""
    path = tmp_path_factory.mktemp("operations")
    llama().save_pretrained(path / "base")
    low = save_adapter(path / "low", llama(), seed=1)
    other = save_adapter(path / "other", llama(), seed=2, lora_alpha=2, target_modules=["q_proj", "embed_tokens"])
    return path, {"low": low, "other": other}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of much, and draws from the global generator."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def combined_by_peft(adapters: tuple[Path, dict[str, Path]], kind: str, **more: Any) -> Any:
    """The base with the adapter `sum` on it, which PEFT has made of both."""
    path, (low, other) = adapters[0], adapters[1].values()
    model = loaded_by_peft(path / "base", low)
    model.load_adapter(other, "other")
    model.add_weighted_adapter(["default", "other"], [*WEIGHTS.values()], "sum", combination_type=kind, **more)
    model.set_adapter("sum")
    return model


def folded(model: Any) -> dict[str, Tensor]:
    return dict(model.merge_and_unload(adapter_names=["sum"]).named_parameters())


def factors_of(adapters: tuple[Path, dict[str, Path]]) -> dict[str, dict[str, Factors]]:
    path, experts = adapters
    return {name: dict(opened(path / "base", one)[2].factors) for name, one in experts.items()}


def same_draws(adapters: tuple[Path, dict[str, Path]]) -> Any:
    """PEFT's pruning at random, with the draws of our DARE: it goes module by module, and there adapter by adapter."""
    places = [name for name, _ in llama().named_parameters()]
    held = factors_of(adapters)
    turns = iter([(row, name) for name in places for row in WEIGHTS if name in held[row]])

    def pruned(tensor: Tensor, density: float, rescale: bool) -> Tensor:
        row, name = next(turns)
        kept = uniforms(keys(DARE["seed"], row, name), 0, tensor.numel()).view(tensor.shape) < density
        assert rescale
        return torch.where(kept, tensor / density, 0)

    return pruned


@pytest.mark.parametrize("rank", [4, 32])
@pytest.mark.parametrize("operation", OF_CHANGES)
def test_an_operation_on_changes_is_a_transform_and_a_rank(adapters, tmp_path, monkeypatch, operation, rank):
    """A rank of 32 cuts nothing off: there the two merges themselves are the same."""
    path, experts = adapters
    transform, more = OF_CHANGES[operation]
    kind = operation.partition(" ")[0]
    if "dare" in kind:
        monkeypatch.setattr("peft.utils.merge_utils.random_pruning", same_draws(adapters))
    theirs = folded(combined_by_peft(adapters, kind, **more, **({} if kind == "cat" else {"svd_rank": rank})))
    recipe = make_recipe(path / "base", experts, "linear", "model", CAUSAL)
    recipe = replace(recipe, coefficients={"weight": {"model": WEIGHTS}}, transform=transform)
    write_adapter(recipe, path, tmp_path / "out", rank=None if kind == "cat" else rank, reporter=Silent())
    _, base, merged = opened(path / "base", tmp_path / "out")
    assert {name for name, one in theirs.items() if not torch.equal(one, base.tensor(name))} == {*merged.factors}
    for name in merged.factors:
        change = theirs[name] - base.tensor(name)
        assert (merged.tensor(name) - theirs[name]).norm() <= 1e-4 * change.norm()


@pytest.mark.parametrize("kind", OF_FACTORS)
def test_an_operation_on_factors_is_an_expert_and_no_merge_of_changes(adapters, tmp_path, kind):
    """evomerge takes what PEFT has made for what it is; the weighted sum of the changes is far from it."""
    model = combined_by_peft(adapters, kind, **({} if kind == "linear" else HALF))
    model.save_pretrained(tmp_path, selected_adapters=["sum"])
    theirs, held = folded(model), factors_of(adapters)
    _, base, expert = opened(adapters[0] / "base", tmp_path / "sum")
    name = "model.layers.0.self_attn.q_proj.weight"
    for each in expert.factors:
        assert (expert.tensor(each) - theirs[each]).norm() <= 1e-6 * theirs[each].norm()
    summed = sum(weight * held[row][name].whole().view(32, 32) for row, weight in WEIGHTS.items())
    change = theirs[name] - base.tensor(name)
    assert (change - summed).norm() > 0.3 * change.norm()


def test_linear_multiplies_the_b_of_one_adapter_by_the_a_of_another(adapters):
    """(Σ √(λ_k s_k) B_k) (Σ √(λ_k s_k) A_k): the weighted sum of the changes, and a product of each B with each A."""
    theirs, held = folded(combined_by_peft(adapters, "linear")), factors_of(adapters)
    _, base, _ = opened(adapters[0] / "base", adapters[1]["low"])
    name = "model.layers.0.self_attn.q_proj.weight"
    roots = {row: math.sqrt(weight * held[row][name].scale) for row, weight in WEIGHTS.items()}
    left, right = (
        sum(root * getattr(held[row][name], side) for row, root in roots.items()) for side in ("left", "right")
    )
    change = theirs[name] - base.tensor(name)
    assert (left @ right - change).norm() <= 1e-5 * change.norm()
