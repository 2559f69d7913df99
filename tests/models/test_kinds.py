"""Models whose files are not tensor by tensor what is merged: experts packed at load, words tied thrice."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.inspection.sources import inspect_sources
from evomerge.models.live import load_skeleton
from evomerge.problem import Problem, Sources
from evomerge.recipes.handover import make_recipe, mergekit_yaml
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from tests.kit.kinds import BOTH_WAYS, MIXTURES, logits, save_kind
from tests.kit.language import write_jsonl
from tests.kit.models import rewritten
from tests.kit.yardstick import settings_of

CAUSAL, BOTH = "AutoModelForCausalLM", "AutoModelForSeq2SeqLM"
LAMBDAS = {"one": 0.7, "two": -0.4}
FORMS = {
    "as saved": {"base": True, "one": True, "two": True},
    "packed base": {"base": False, "one": True, "two": False},
    "packed expert": {"base": True, "one": False, "two": True},
}


@pytest.fixture
def problem_of(tmp_path: Path) -> Callable[..., Problem]:
    """Builds the problem of a family in the directory of the test, for a fitness that is never called."""
    (tmp_path / "fitness.py").write_text("def score(model, processor, items):\n    raise SystemExit\n")
    write_jsonl(tmp_path / "items.jsonl", [{"text": f"w{i} w{i + 1}", "label": i % 2} for i in range(100)])

    def build(auto_class: str, **more: Any) -> Problem:
        settings = settings_of(tmp_path)
        experts = {name: str(tmp_path / name) for name in LAMBDAS}
        own = {"base": str(tmp_path / "base"), "experts": experts, "auto_class": auto_class}
        settings["model"] |= {**own, "cache": str(tmp_path / "cache"), **more}
        return build_problem(settings, Reporter())

    return build


def by_hand(saved: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """θ₀ + Σλτ."""
    return {
        name: base + sum(weight * (saved[expert][name] - base) for expert, weight in LAMBDAS.items())
        for name, base in saved["base"].items()
    }


def merged(problem: Problem, path: Path) -> tuple[Any, Path]:
    """A recipe with the weights above, the live model with it in it, and the directory that it is written to."""
    coefficients = problem.space.constant(list(LAMBDAS.values()))
    problem.merger.apply(coefficients)
    recipe = make_recipe(problem, coefficients, {}, {})
    return recipe, write_model(recipe, path, path / "merged", reporter=Reporter())


@pytest.mark.parametrize("forms", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("kind", MIXTURES)
def test_a_mixture_of_experts_is_merged_in_whatever_form_its_files_are(tmp_path, problem_of, kind, forms):
    saved = save_kind(tmp_path, *MIXTURES[kind], forms)
    problem = problem_of(CAUSAL)
    _, out = merged(problem, tmp_path)
    expected = by_hand(saved)
    live = dict(problem.live.model.named_parameters())
    torch.testing.assert_close(live, expected, rtol=0, atol=1e-6)
    again = transformers.AutoModelForCausalLM.from_pretrained(out)
    for name, parameter in again.named_parameters():
        assert torch.equal(parameter, live[name]), name
    torch.testing.assert_close(logits(again), logits(problem.live.model), rtol=0, atol=1e-5)
    written, base = (load_file(path / "model.safetensors") for path in (out, tmp_path / "base"))
    assert {key: tensor.shape for key, tensor in written.items()} == {key: t.shape for key, t in base.items()}


def test_shards_of_experts_hold_what_one_file_holds(tmp_path, problem_of):
    save_kind(tmp_path, *MIXTURES["mixtral"], FORMS["as saved"])
    recipe, out = merged(problem_of(CAUSAL), tmp_path)
    write_model(recipe, tmp_path, tmp_path / "shards", max_shard_size="10KB", reporter=Reporter())
    files = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(files) > 3
    found = {key: tensor for file in files for key, tensor in load_file(file).items()}
    whole = load_file(out / "model.safetensors")
    assert found.keys() == whole.keys()
    assert all(torch.equal(found[key], tensor) for key, tensor in whole.items())


def test_what_is_converted_is_kept_and_made_anew_where_it_is_damaged(tmp_path):
    saved = save_kind(tmp_path, *MIXTURES["olmoe"], {"base": True})
    live, cache = load_skeleton(tmp_path / "base", CAUSAL), tmp_path / "cache"
    for change in (lambda file: None, lambda file: file.write_bytes(b"x" * 99), lambda file: file.unlink()):
        checkpoint = live.open(tmp_path / "base", cache=cache)
        name = "model.layers.0.mlp.experts.gate_up_proj"
        assert torch.equal(checkpoint.tensor(name), saved["base"][name])
        for file in cache.glob("*.safetensors"):
            change(file)
    without = live.open(tmp_path / "base")
    assert torch.equal(without.tensor(name), saved["base"][name])


def test_an_expert_that_lacks_an_expert_is_refused_by_name(tmp_path, problem_of):
    save_kind(tmp_path, *MIXTURES["qwen3_moe"], FORMS["as saved"])
    rewritten(tmp_path / "one", lambda t: {key: tensor for key, tensor in t.items() if ".1.mlp.experts.2." not in key})
    with pytest.raises(CheckpointError, match=r"one: model\.layers\.1\.mlp\.experts\.0.* become .* are missing"):
        problem_of(CAUSAL)


def test_what_mergekit_cannot_express_of_a_mixture_is_refused(tmp_path, problem_of):
    save_kind(tmp_path, *MIXTURES["mixtral"], FORMS["as saved"])
    problem = problem_of(CAUSAL)
    recipe, _ = merged(problem, tmp_path)
    with pytest.raises(ConfigError, match=r"mergekit export: transformers makes .*gate_up_proj of several tensors"):
        mergekit_yaml(problem, recipe)


def test_inspect_sees_the_experts_of_a_mixture(tmp_path):
    save_kind(tmp_path, *MIXTURES["mixtral"], FORMS["packed base"])
    sources = Sources(tmp_path / "base", {name: tmp_path / name for name in LAMBDAS}, {})
    found = inspect_sources(sources, CAUSAL, tmp_path / "cache", 0.2, Reporter())
    assert not found.refused
    assert "model.layers.0.mlp.experts.down_proj" in found.parameters


# encoder and decoder


@pytest.mark.parametrize("kind", BOTH_WAYS)
def test_words_that_are_tied_thrice_are_merged_once(tmp_path, problem_of, kind):
    saved = save_kind(tmp_path, *BOTH_WAYS[kind], dict.fromkeys(("base", *LAMBDAS), True))
    problem = problem_of(BOTH)
    _, out = merged(problem, tmp_path)
    live = dict(problem.live.model.named_parameters())
    torch.testing.assert_close(live, by_hand(saved), rtol=0, atol=1e-6)
    assert sum("embed_tokens" in name or "shared" in name for name in problem.vectors.parameters) == 1
    again = transformers.AutoModelForSeq2SeqLM.from_pretrained(out)
    torch.testing.assert_close(logits(again), logits(problem.live.model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_an_expert_that_holds_its_words_under_all_their_names(tmp_path, problem_of, kind):
    """As safetensors of earlier years and .bin files have them; and one of them alone serves as well."""
    saved = save_kind(tmp_path, *BOTH_WAYS[kind], dict.fromkeys(("base", *LAMBDAS), True))
    front = "" if kind == "t5" else "model."
    shared = f"{front}shared.weight"
    aliases = [f"{front}{side}.embed_tokens.weight" for side in ("encoder", "decoder")] + ["lm_head.weight"]
    rewritten(tmp_path / "one", lambda t: t | {alias: t[shared].clone() for alias in aliases})
    rewritten(tmp_path / "two", lambda t: {aliases[1] if key == shared else key: one for key, one in t.items()})
    problem = problem_of(BOTH)
    merged(problem, tmp_path)
    torch.testing.assert_close(dict(problem.live.model.named_parameters()), by_hand(saved), rtol=0, atol=1e-6)
    rewritten(tmp_path / "one", lambda t: t | {aliases[0]: t[shared] + 1})
    with pytest.raises(CheckpointError, match=r"embed_tokens\.weight differ, but the base ties them"):
        problem_of(BOTH)
