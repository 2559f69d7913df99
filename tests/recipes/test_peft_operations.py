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
OF_CHANGES: dict[str, tuple[list[dict[str, Any]], int | None, dict[str, Any]]] = {
    "cat": ([], None, {}),
    "svd": ([], 4, {}),
    "magnitude_prune_svd": ([TRIM], 32, HALF),
    "ties_svd": ([TRIM, ELECT], 32, HALF),
    "ties_svd of a low rank": ([TRIM, ELECT], 4, HALF),
    "ties_svd by frequency": ([TRIM, ELECT | {"by": "count"}], 32, HALF | {"majority_sign_method": "frequency"}),
    "dare_linear_svd": ([DARE], 32, HALF),
    "dare_ties_svd": ([DARE, ELECT], 32, HALF),
}
"""Operations of PEFT on B·A·s: the transforms that do the same, the rank, and further settings for PEFT."""
OF_FACTORS = ("linear", "ties", "dare_linear", "dare_ties", "magnitude_prune")
"""Operations of PEFT on A and on B, each by itself."""
BOTH = "model.layers.0.self_attn.q_proj.weight"
"""A matrix that both adapters change."""


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base, and two adapters of one rank, with modules that only one of them has."""
    path = tmp_path_factory.mktemp("operations")
    llama().save_pretrained(path / "base")
    low = save_adapter(path / "low", llama(), seed=1)
    other = save_adapter(path / "other", llama(), seed=2, lora_alpha=2, target_modules=["q_proj", "embed_tokens"])
    return path, {"low": low, "other": other}


@pytest.fixture(scope="module")
def loaded(adapters) -> Any:
    return loaded_twice(adapters[0] / "base", adapters[1])


@pytest.fixture(scope="module")
def held(adapters) -> dict[str, dict[str, Factors]]:
    """The factors of each adapter."""
    return {name: dict(opened(adapters[0] / "base", one)[2].factors) for name, one in adapters[1].items()}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """PEFT warns of much, and draws from the global generator."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        yield


def loaded_twice(base: Path, adapters: dict[str, Path]) -> Any:
    """The base with two adapters on it."""
    low, other = adapters.values()
    model = loaded_by_peft(base, low)
    model.load_adapter(other, "other")
    return model


def combine(model: Any, name: str, kind: str, **more: Any) -> dict[str, Tensor]:
    """What PEFT's combination of both adapters changes, by parameter; it has a name of its own."""
    kind_of_layer = pytest.importorskip("peft.tuners.lora").LoraLayer
    model.add_weighted_adapter(["default", "other"], [*WEIGHTS.values()], name, combination_type=kind, **more)
    layers = [(f"{place}.weight", one) for place, one in model.base_model.model.named_modules()]
    return {
        place: one.get_delta_weight(name)
        for place, one in layers
        if isinstance(one, kind_of_layer) and name in (*one.lora_A, *one.lora_embedding_A)
    }


def write(adapters: tuple[Path, dict[str, Path]], out: Path, **more: Any) -> dict[str, Tensor]:
    """What our merge with the same weights changes, by parameter, as its adapter says."""
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, "linear", "model", CAUSAL)
    recipe = replace(recipe, coefficients={"weight": {"model": WEIGHTS}}, transform=more.pop("transform", []))
    write_adapter(recipe, path, out, reporter=Silent(), **more)
    return {name: one.whole().view(one.shape) for name, one in opened(path / "base", out)[2].factors.items()}


def same_draws(held: dict[str, dict[str, Factors]]) -> Any:
    """PEFT's pruning at random, with the draws of our DARE: it goes module by module, and there adapter by adapter."""
    places = [name for name, _ in llama().named_parameters()]
    turns = iter([(row, name) for name in places for row in WEIGHTS if name in held[row]])

    def pruned(tensor: Tensor, density: float, rescale: bool) -> Tensor:
        row, name = next(turns)
        kept = uniforms(keys(DARE["seed"], row, name), 0, tensor.numel()).view(tensor.shape) < density
        assert rescale
        return torch.where(kept, tensor / density, 0)

    return pruned


def check_same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert {*ours} == {*theirs}
    for name, change in theirs.items():
        assert (ours[name] - change).norm() <= 1e-4 * change.norm()


@pytest.mark.parametrize("operation", OF_CHANGES)
def test_an_operation_on_changes_is_a_transform_and_a_rank(adapters, loaded, held, tmp_path, monkeypatch, operation):
    """A rank of 32 cuts nothing off, one of 4 does."""
    transform, rank, more = OF_CHANGES[operation]
    kind = operation.partition(" ")[0]
    if "dare" in kind:
        monkeypatch.setattr("peft.utils.merge_utils.random_pruning", same_draws(held))
    theirs = combine(loaded, operation, kind, **more, **({} if rank is None else {"svd_rank": rank}))
    check_same(write(adapters, tmp_path / "out", transform=transform, rank=rank), theirs)


@pytest.mark.parametrize("kind", OF_FACTORS)
def test_an_operation_on_factors_is_an_expert_and_no_merge_of_changes(adapters, loaded, held, tmp_path, kind):
    """evomerge takes what PEFT has made for what it is; the weighted sum of the changes is far from it."""
    theirs = combine(loaded, kind, kind, **({} if kind == "linear" else HALF))
    loaded.save_pretrained(tmp_path, selected_adapters=[kind])
    expert = opened(adapters[0] / "base", tmp_path / kind)[2]
    assert {*expert.factors} == {*theirs}
    for name, change in theirs.items():
        assert (expert.factors[name].whole().view(change.shape) - change).norm() <= 1e-6 * change.norm()
    change = theirs[BOTH]
    summed = sum(weight * held[row][BOTH].whole().view(change.shape) for row, weight in WEIGHTS.items())
    assert (change - summed).norm() > 0.3 * change.norm()


def test_linear_multiplies_the_b_of_one_adapter_by_the_a_of_another(loaded, held):
    """(Σ √(λ_k s_k) B_k) (Σ √(λ_k s_k) A_k): the weighted sum of the changes, and a product of each B with each A."""
    change = combine(loaded, "products", "linear")[BOTH]
    roots = {row: math.sqrt(weight * held[row][BOTH].scale) for row, weight in WEIGHTS.items()}
    left = sum(root * held[row][BOTH].left for row, root in roots.items())
    right = sum(root * held[row][BOTH].right for row, root in roots.items())
    assert (left @ right - change).norm() <= 1e-5 * change.norm()


def test_of_rslora_peft_scales_its_combination_twice(tmp_path):
    """The new adapter has the scales of the old ones in its factors, and √r by its own settings; ours is the merge."""
    llama().save_pretrained(tmp_path / "base")
    experts = {
        name: save_adapter(tmp_path / name, llama(), seed=seed, use_rslora=True) for seed, name in enumerate(WEIGHTS)
    }
    theirs = combine(loaded_twice(tmp_path / "base", experts), "sum", "cat")
    ours = write((tmp_path, experts), tmp_path / "out")
    check_same({name: math.sqrt(6) * change for name, change in ours.items()}, theirs)
