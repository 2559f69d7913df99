"""Adapters beside whole experts: what is written is what was scored, bit for bit, by every method."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import evomerge as em
from evomerge.cli.merge import main
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.models.live import load_live
from evomerge.recipes.adapter import write_adapter
from evomerge.recipes.mergekit.read import read_mergekit
from evomerge.recipes.mergekit.write import to_mergekit
from evomerge.task_vectors.low_rank import LowRankDelta
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


@pytest.mark.parametrize("method", ["linear", "ties"])
def test_of_a_lower_rank_the_error_is_said(adapters, tmp_path, method):
    """Of factors, and of a merge that is no sum of them."""
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, method, "model", CAUSAL)
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
    "union": (["low"], "linear", {"vocabulary": "union"}, "this recipe has vocabulary=union"),
    "part": (["low"], "linear", {"part": "language_model"}, "this recipe has part=language_model"),
    "template": (["low"], "linear", {"template": "low"}, "this recipe has template=low"),
    "buffers": (["low"], "linear", {"buffers": {"name": "average"}}, "this recipe has buffers=average"),
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
    assert write_adapter(recipe, path, tmp_path / "out", rank=40, reporter=Silent()).error < 1e-5


def test_changes_that_have_no_factors_are_refused_whatever_the_rank(family, tmp_path):
    path, experts = family
    recipe = make_recipe(path / "base", {name: experts[name] for name in ("red", "low")}, "linear", "model", CAUSAL, 1)
    message = r"changes .*q_proj\.bias.*, and an adapter changes weights of linear layers.*whole model"
    with pytest.raises(ConfigError, match=message):
        write_adapter(recipe, path, tmp_path / "out", rank=4, reporter=Silent())
    assert not (tmp_path / "out").exists()


def test_what_is_tied_is_refused(tmp_path):
    llama(tie=True).save_pretrained(tmp_path / "base")
    expert = {"a": save_adapter(tmp_path / "a", llama(tie=True), target_modules=["embed_tokens"])}
    recipe = make_recipe(tmp_path / "base", expert, "linear", "model", CAUSAL, 1)
    with pytest.raises(ConfigError, match=r"ties model\.embed_tokens\.weight to another"):
        write_adapter(recipe, tmp_path, tmp_path / "out", reporter=Silent())


def test_the_command_writes_it(adapters, tmp_path, capsys, monkeypatch):
    path, experts = adapters
    recipe = make_recipe(path / "base", experts, "linear", "model", CAUSAL)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    monkeypatch.chdir(tmp_path)
    main(["recipe.yaml", "adapter", "--adapter", "--rank", "2"])
    said = capsys.readouterr().out
    assert "rank 2 leaves out" in said
    assert "merged adapter: adapter (rank 2)" in said
    with pytest.raises(ConfigError, match="nothing is overwritten"):
        main(["recipe.yaml", "adapter", "--adapter"])
    with pytest.raises(SystemExit):
        main(["recipe.yaml", "other", "--rank", "2"])


def test_a_yaml_of_mergekit_with_an_adapter(adapters, tmp_path):
    """Read as base+adapter, and written so: the same recipe comes of both."""
    path, experts = adapters
    text = (
        "merge_method: task_arithmetic\nbase_model: {base}\ndtype: float32\nmodels:\n"
        "- model: {base}+{low}\n  parameters: {{weight: 0.5}}\n- model: {base}+{wide}\n  parameters: {{weight: 0.25}}\n"
    ).format(base=path / "base", **experts)
    recipe = read_mergekit(text, path, Silent()).recipe
    assert {name: one.path for name, one in recipe.experts.items()} == {n: str(experts[n]) for n in ("low", "wide")}
    assert {one for row in recipe.coefficients["weight"].values() for one in row.items()} == {
        ("low", 0.5),
        ("wide", 0.25),
    }
    live, base, _ = opened(path / "base", experts["low"])
    shapes = {name: tuple(shape) for name, shape in live.parameters.items()}
    written = to_mergekit(recipe, base.keys, shapes, "float32", base.extra, live.tied, ["low", "wide"])
    again = read_mergekit(written, path, Silent()).recipe
    assert (again.experts, again.coefficients) == (recipe.experts, recipe.coefficients)


def test_a_family_of_adapters(adapters, tmp_path):
    """The gradient by factors is that of the same expert folded into a whole model, and the candidate is it."""
    path, experts = adapters
    model = llama()
    model.load_state_dict(folded_by_peft(path / "base", experts["low"]), strict=False)
    model.save_pretrained(tmp_path / "whole")
    found = []
    for expert in (experts["low"], tmp_path / "whole"):
        family = em.Family(path / "base", {"low": expert}, auto_class=CAUSAL, device="cpu", cache=tmp_path / "cache")
        candidate = em.Candidate(family, "layer")
        merged = logits(candidate.set(0.7)).clone()
        found.append((merged, candidate.gradient(lambda live: logits(live).square().mean())))
        if expert == experts["low"]:
            assert family.opened.experts["low"].factors
    assert (found[0][0] - found[1][0]).norm() <= 1e-5 * found[0][0].norm()
    np.testing.assert_allclose(found[0][1], found[1][1], rtol=1e-4, atol=1e-7)


def test_nobody_holds_more_of_a_product_than_is_merged(adapters, tmp_path, monkeypatch):
    """Factors are multiplied out chunk by chunk, whatever the method, and for a gradient not at all."""
    path, experts = adapters
    seen, dense = [], LowRankDelta.dense
    monkeypatch.setattr("evomerge.merging.builder.CHUNK", 320)
    monkeypatch.setattr(
        LowRankDelta, "write", spy(LowRankDelta.write, lambda delta, out, weight=1.0: seen.append(len(out)))
    )
    for method in ("linear", "dare_ties"):
        live_merge(make_recipe(path / "base", experts, method, "model", CAUSAL), path / "base", experts, tmp_path / "c")
        assert 0 < max(seen) <= 384
    delta = LowRankDelta(
        opened(path / "base", experts["low"])[2].factors["model.layers.0.self_attn.q_proj.weight"], 0, 1024
    )
    gradient, size = torch.ones(1024), len(seen)
    assert dense(delta).double().sum().item() == pytest.approx(delta.product(gradient).item(), rel=1e-5)
    assert len(seen) == size + 1


def spy(function: Any, told: Any) -> Any:
    """The same function, of whose calls somebody is told."""

    def called(*given: Any, **named: Any) -> Any:
        told(*given, **named)
        return function(*given, **named)

    return called
