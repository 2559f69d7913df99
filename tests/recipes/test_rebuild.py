"""Parameters rebuilt one at a time from files: the merger's own numbers, bit for bit, in chunks of any size."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from evomerge.common.errors import ConfigError
from evomerge.merging.merger import Merger
from evomerge.models.live import load_live, load_skeleton
from evomerge.models.pretrained import rename_keys
from evomerge.recipes.catalog import make_method
from evomerge.recipes.rebuild import Rebuild
from evomerge.space.named import array_coefficients
from evomerge.task_vectors.expert import ExpertDeltas
from evomerge.task_vectors.store import task_vectors
from evomerge.transforms.store import transformed
from tests.kit.merging import METHODS, live_merge, make_recipe, opened, save_family
from tests.kit.models import LLAMA, pico


@pytest.fixture(scope="module")
def family(tmp_path_factory):
    path = tmp_path_factory.mktemp("family")
    experts = save_family(path, pico(LlamaForCausalLM, LLAMA))
    return path, experts


def rebuilt(recipe, base: Path, experts, dtype=torch.float32) -> dict[str, torch.Tensor]:
    skeleton = load_skeleton(base, recipe.auto_class)
    found = opened({"": base, **experts}, skeleton.model)
    ours = found.pop("")
    result, build = {}, Rebuild(recipe, ours, found, skeleton.parameters)
    for name, shape in skeleton.parameters.items():
        out = torch.full((ours.tensor(name).numel(),), float("nan"), dtype=dtype)
        build.write(name, out)
        result[name] = out.view(shape)
    return result


GRANULARITIES = ("model", "tensor", "chunk:3", "line", "module")
CELLS = [
    (method, granularity, (1 << 18, 320)[(i + j) % 2])
    for i, method in enumerate(METHODS)
    for j, granularity in enumerate(GRANULARITIES)
]
"""Every method with every granularity, and each of both with pieces of either length."""


@pytest.mark.parametrize(("method", "granularity", "chunk"), CELLS)
def test_it_is_what_the_merger_builds(family, tmp_path, monkeypatch, method, granularity, chunk):
    path, experts = family
    monkeypatch.setattr("evomerge.merging.builder.CHUNK", chunk)  # a multiple of 64, as `spans.CHUNK` is
    recipe = make_recipe(path / "base", experts, method, granularity, "AutoModelForCausalLM")
    expected = live_merge(recipe, path / "base", experts, tmp_path)
    found = rebuilt(recipe, path / "base", experts)
    assert list(found) == list(expected)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())
    base = opened({"": path / "base"}, load_skeleton(path / "base", "AutoModelForCausalLM").model)[""]
    assert torch.equal(found["model.embed_tokens.weight"], base.tensor("model.embed_tokens.weight"))  # nobody tuned it
    assert not torch.equal(found["lm_head.weight"], base.tensor("lm_head.weight"))


def test_sums_of_many_experts_do_not_depend_on_the_chunks(family, tmp_path, monkeypatch):
    """A sum over many tensors goes in blocks and by vectors, whose order depends on where a span ends."""
    path, experts = family
    many = {f"{name}{i}": place for i in range(7) for name, place in experts.items()}
    recipe = make_recipe(path / "base", many, "linear", "chunk:5", "AutoModelForCausalLM")
    expected = live_merge(recipe, path / "base", many, tmp_path)
    monkeypatch.setattr("evomerge.merging.builder.CHUNK", 64)
    found = rebuilt(recipe, path / "base", many)
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_it_casts_once(family, tmp_path):
    path, experts = family
    recipe = make_recipe(path / "base", experts, auto_class="AutoModelForCausalLM")
    exact = rebuilt(recipe, path / "base", experts)
    for name, tensor in rebuilt(recipe, path / "base", experts, torch.bfloat16).items():
        assert torch.equal(tensor, exact[name].bfloat16())


def test_deltas_are_those_of_the_task_vectors(family, tmp_path):
    path, experts = family
    model = pico(LlamaForCausalLM, LLAMA)
    found = opened({"": path / "base", **experts}, model)
    base = found.pop("")
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    kept = task_vectors(base, found, shapes, tmp_path)
    for name, expert in found.items():
        deltas = ExpertDeltas(base, expert, shapes)
        assert set(deltas) == set(kept.deltas[name])
        assert list(deltas) == [parameter for parameter in shapes if parameter in deltas]
        assert len(deltas) == len(shapes) - 1
        assert deltas.get("model.embed_tokens.weight") is None
        for parameter, delta in deltas.items():
            assert torch.equal(delta.dense().view(shapes[parameter]), kept.dense(name, parameter))


def test_files_that_hold_a_tensor_in_strides(family, tmp_path):
    """A `.bin` may: it keeps what torch had in memory."""
    path, experts = family
    model = pico(LlamaForCausalLM, LLAMA)
    moved = {}
    for name, place in {"base": path / "base", **experts}.items():
        tensors = {key: t.clone() for key, t in opened({"": place}, model)[""].tensors.items()}
        key = "model.layers.0.mlp.up_proj.weight"
        tensors[key] = tensors[key].T.contiguous().T
        assert not tensors[key].is_contiguous()
        moved[name] = tmp_path / name
        moved[name].mkdir()
        torch.save(tensors, moved[name] / "pytorch_model.bin")
        (moved[name] / "config.json").write_text((place / "config.json").read_text())
    recipe = make_recipe(path / "base", experts, auto_class="AutoModelForCausalLM")
    base = moved.pop("base")
    expected = rebuilt(recipe, path / "base", experts)
    assert all(torch.equal(tensor, expected[name]) for name, tensor in rebuilt(recipe, base, moved).items())


def test_a_recipe_of_another_model_is_refused(family):
    path, experts = family
    recipe = make_recipe(path / "base", experts, auto_class="AutoModelForCausalLM")
    skeleton = load_skeleton(path / "base", "AutoModel")
    found = opened({"": path / "base", **experts}, skeleton.model)
    with pytest.raises(ConfigError, match=r"recipe in coefficients\.weight: Unknown group 'model\.embed_tokens"):
        Rebuild(recipe, found.pop(""), found, skeleton.parameters)


def test_skeletons_have_the_names_of_the_loaded_model(family):
    path, _ = family
    skeleton = load_skeleton(path / "base", "AutoModelForCausalLM")
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    model = LlamaForCausalLM.from_pretrained(path / "base")
    assert list(skeleton.parameters.items()) == [(name, tuple(p.shape)) for name, p in model.named_parameters()]
    keys = ["model.layers.0.mlp.up_proj.weight", "lm_head.weight"]
    assert skeleton.rename(keys) == partial(rename_keys, model)(keys)


@pytest.mark.parametrize("store", ["int4", "bfloat16"])
def test_shares_of_groups_are_of_what_was_kept(family, tmp_path, store):
    """A cut over a whole group is found in the rows that the search has merged, not in those of the files."""
    path, experts = family
    recipe = make_recipe(path / "base", experts, "ties over groups", "model", "AutoModelForCausalLM")
    recipe = replace(recipe, store={"name": store})
    skeleton = load_skeleton(path / "base", recipe.auto_class)
    live = load_live(path / "base", recipe.auto_class, "cpu", needs_processor=False)
    ours = live.open(path / "base")
    found = {name: live.open(experts[name], base=ours) for name in recipe.experts}
    vectors = task_vectors(ours, found, skeleton.parameters, tmp_path, store=store)
    rows = transformed(vectors, (), tmp_path, store=store)
    groups = recipe.groups(skeleton.parameters)
    merger = Merger(live.model, rows, groups, make_method(recipe))
    merger.apply(array_coefficients(recipe.coefficients, groups, recipe.row_names))
    written = rebuilt(recipe, path / "base", experts)
    assert all(torch.equal(written[name], value) for name, value in live.model.named_parameters())
