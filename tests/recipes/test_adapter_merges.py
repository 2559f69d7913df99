"""Adapters beside whole experts: what is written is what was scored, bit for bit, by every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.live import load_live
from evomerge.recipes.adapter import write_adapter
from tests.kit.adapters import CAUSAL, folded_by_peft, gpt2, llama, loaded_by_peft, opened, save_adapter
from tests.kit.language import save_tokenizer
from tests.kit.merging import METHODS, live_merge, loaded, make_recipe, names, same, save_family, write


@pytest.fixture(scope="module")
def family(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base in bfloat16, a whole expert, two adapters, and one with tensors of every other kind."""
    path = tmp_path_factory.mktemp("family")
    experts = save_family(path, llama().bfloat16(), experts=1)
    save_tokenizer(path / "base")
    experts["low"] = save_adapter(path / "low", llama().bfloat16().float(), seed=1)
    experts["other"] = save_adapter(
        path / "other", llama().bfloat16(), seed=2, r=4, target_modules=["q_proj", "lm_head"]
    )
    more = {"use_dora": True, "bias": "all", "modules_to_save": ["input_layernorm"]}
    experts["odd"] = save_adapter(path / "odd", llama().bfloat16(), seed=3, **more)
    return path, experts


@pytest.mark.parametrize("granularity", ["tensor", "chunk:3"])
@pytest.mark.parametrize("method", METHODS)
def test_what_is_written_is_what_was_scored(family, tmp_path, method, granularity):
    path, experts = family
    recipe = make_recipe(path / "base", experts, method, granularity, CAUSAL)
    expected = live_merge(recipe, path / "base", experts, tmp_path / "cache")
    out = write(recipe, path, tmp_path / "out")
    model, missing, unexpected = loaded(out, CAUSAL)
    assert (missing, unexpected) == (set(), set())
    assert same(model, expected)
    assert expected["lm_head.weight"].dtype == torch.bfloat16


def logits(model: Any) -> torch.Tensor:
    return model(torch.arange(2, 14).view(2, 6)).logits


@pytest.fixture(scope="module")
def adapters(tmp_path_factory) -> tuple[Path, dict[str, Path]]:
    """A base, and three adapters of several ranks and modules."""
    path = tmp_path_factory.mktemp("adapters")
    llama().save_pretrained(path / "base")
    found = {"low": save_adapter(path / "low", llama(), seed=1)}
    more = {"target_modules": ["q_proj", "lm_head", "embed_tokens"], "use_rslora": True}
    found["wide"] = save_adapter(path / "wide", llama(), seed=2, r=5, **more)
    found["mixed"] = save_adapter(path / "mixed", llama(), seed=3, rank_pattern={"q_proj": 1})
    return path, found


@pytest.mark.parametrize("granularity", ["tensor", "layer", "chunk:2"])
def test_one_adapter_gives_the_logits_that_were_scored(adapters, tmp_path, granularity):
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, "linear", granularity, CAUSAL)
    expected = load_live(path / "base", CAUSAL, "cpu", needs_processor=False).model
    expected.load_state_dict(live_merge(recipe, path / "base", experts, tmp_path / "cache"))
    written = write_adapter(recipe, path, tmp_path / "out", reporter=Silent())
    assert written.error == 0
    model = loaded_by_peft(path / "base", tmp_path / "out")
    assert (logits(model) - logits(expected)).norm() <= 1e-5 * logits(expected).norm()
    assert names(tmp_path / "out") == {"adapter_config.json", "adapter_model.safetensors", "recipe.yaml", "README.md"}
    assert len({one.rank for one in opened(path / "base", tmp_path / "out")[2].factors.values()}) > 1


def test_of_inputs_first(tmp_path):
    gpt2().save_pretrained(tmp_path / "base")
    target = {"target_modules": ["c_attn", "c_fc"]}
    experts = {name: save_adapter(tmp_path / name, gpt2(), seed=k, **target) for k, name in enumerate(("a", "b"))}
    recipe = make_recipe(tmp_path / "base", experts, "linear", "tensor", CAUSAL)
    write_adapter(recipe, tmp_path, tmp_path / "out", reporter=Silent())
    folded = folded_by_peft(tmp_path / "base", tmp_path / "out")
    for name, tensor in live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache").items():
        assert (folded[name] - tensor).norm() <= 1e-6 * tensor.norm()


def test_of_a_lower_rank_the_error_is_said(adapters, tmp_path):
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, "linear", "model", CAUSAL)
    exact = live_merge(recipe, path / "base", experts, tmp_path / "cache")
    written = write_adapter(recipe, path, tmp_path / "out", rank=2, reporter=Silent())
    _, base, merged = opened(path / "base", tmp_path / "out")
    lost = sum(float((exact[name] - merged.tensor(name)).double().square().sum()) for name in merged.factors)
    size = sum(float((exact[name] - base.tensor(name)).double().square().sum()) for name in merged.factors)
    assert written.rank == 2
    assert written.error == pytest.approx((lost / size) ** 0.5, rel=1e-3)
    assert 0 < written.error < written.worst[0] < 1
    name = written.worst[1]
    best = torch.linalg.svdvals((exact[name] - base.tensor(name)).double())[2:].square().sum()
    assert float((exact[name] - merged.tensor(name)).double().square().sum()) == pytest.approx(float(best), rel=1e-3)


REFUSED = {
    "whole": (["red", "low"], "linear", {}, "the expert red is a whole model"),
    "odd": (["odd"], "linear", {}, r"the expert odd holds .*no products of factors"),
    "ties": (["low"], "ties", {}, "method ties is no weighted sum"),
    "transform": (["low"], "ties_frozen", {}, r"were transformed \(ties\)"),
    "store": (["low"], "linear", {"store": {"name": "int8"}}, "task vectors in int8"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_an_adapter_is_refused(family, tmp_path, case):
    path, experts = family
    which, method, more, message = REFUSED[case]
    recipe = make_recipe(path / "base", {name: experts[name] for name in which}, method, "model", CAUSAL, 1, **more)
    with pytest.raises(ConfigError, match=f"(?s){message}.*whole model"):
        write_adapter(recipe, path, tmp_path / "out", reporter=Silent())
    assert not (tmp_path / "out").exists()


def test_parts_of_rows_are_refused(adapters, tmp_path):
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, "linear", "chunk:7", CAUSAL)
    with pytest.raises(ConfigError, match="ends within a row"):
        write_adapter(recipe, path, tmp_path / "out", reporter=Silent())


def test_what_is_tied_is_refused(tmp_path):
    llama(tie=True).save_pretrained(tmp_path / "base")
    expert = {"a": save_adapter(tmp_path / "a", llama(tie=True), target_modules=["embed_tokens"])}
    recipe = make_recipe(tmp_path / "base", expert, "linear", "model", CAUSAL, 1)
    with pytest.raises(ConfigError, match=r"ties model\.embed_tokens\.weight to another"):
        write_adapter(recipe, tmp_path, tmp_path / "out", reporter=Silent())
