"""Adapters as experts: what PEFT folds them to, and what is refused by name."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.common.errors import CheckpointError
from evomerge.models.factors import Factors
from evomerge.models.live import load_skeleton
from evomerge.task_vectors.store import task_vectors
from tests.kit.adapters import CAUSAL, FORMS, folded_by_peft, llama, opened, rewrite, save_adapter


def family(path: Path, make: Any = llama, dtype: torch.dtype = torch.float32, **config: Any) -> tuple[Path, Path]:
    make().to(dtype).save_pretrained(path / "base")
    return path / "base", save_adapter(path / "adapter", make().to(dtype), **config)


@pytest.fixture(scope="module")
def plain(tmp_path_factory) -> tuple[Path, Path]:
    return family(tmp_path_factory.mktemp("plain"))


@pytest.fixture
def copied(plain, tmp_path) -> tuple[Path, Path]:
    """The same, to be damaged."""
    shutil.copytree(plain[1], tmp_path / "adapter")
    return plain[0], tmp_path / "adapter"


@pytest.mark.parametrize("form", FORMS)
def test_it_is_what_peft_folds(form, tmp_path):
    make, config = FORMS[form]
    base, adapter = family(tmp_path, make, **config)
    theirs = folded_by_peft(base, adapter)
    live, ours, expert = opened(base, adapter)
    vectors = task_vectors(ours, {"a": expert}, live.parameters, tmp_path / "cache")
    changed = {name for name in live.parameters if not torch.equal(theirs[name], ours.tensor(name))}
    assert changed == {*vectors.deltas["a"]} == {*expert.keys}
    for name in changed:
        size = (theirs[name] - ours.tensor(name)).norm()
        for merged in (
            expert.tensor(name),
            ours.tensor(name) + vectors.deltas["a"][name].dense().view(theirs[name].shape),
        ):
            assert (merged - theirs[name]).norm() <= 1e-6 * theirs[name].norm()
            assert (merged - theirs[name]).norm() <= 1e-5 * size
    assert ("DoRA" in form) != bool(expert.factors)


@pytest.mark.parametrize("form", ["plain", "embedding", "inputs first", "DoRA"])
def test_in_16_bits_it_is_nearer_than_peft(form, tmp_path):
    """PEFT rounds the product of factors of 16 bits before it adds it, and the sum once more."""
    make, config = FORMS[form]
    base, adapter = family(tmp_path, make, torch.bfloat16, **config)
    theirs = folded_by_peft(base, adapter, narrow=True)
    _, ours, expert = opened(base, adapter)
    farther = 0
    for name in expert.keys:
        before, merged = ours.tensor(name).double(), expert.tensor(name)
        exact = merged.double()
        if name in expert.factors:
            factors = expert.factors[name]
            exact = before + ((factors.left.double() @ factors.right.double()) * factors.scale).view(exact.shape)
            unit = torch.finfo(torch.bfloat16).eps * torch.stack([before, exact, exact - before]).abs().amax(0)
            assert ((merged.bfloat16() - theirs[name]).abs() <= unit).all()
        errors = [(each.double() - exact).abs() for each in (merged.bfloat16(), theirs[name])]
        assert (errors[0] <= errors[1] + 1e-7).all()
        farther += int((errors[0] < errors[1]).sum())
    assert farther > 0


def test_a_head_less_base_and_one_with_a_head_have_the_same_adapter(plain):
    base, adapter = plain
    whole, bare = opened(base, adapter)[2], opened(base, adapter, "AutoModel")[2]
    assert {name.removeprefix("model.") for name in whole.factors} == {*bare.factors}
    assert whole.sha256 == bare.sha256


def test_a_hash_is_of_weights_and_of_what_they_mean(plain, copied):
    base, adapter = copied
    same = opened(*plain)[2].sha256
    assert opened(base, adapter)[2].sha256 == same
    rewrite(adapter, lora_dropout=0.3, base_model_name_or_path="elsewhere")
    assert opened(base, adapter)[2].sha256 == same
    rewrite(adapter, lora_alpha=6)
    assert opened(base, adapter)[2].sha256 != same


def test_what_is_tied_and_changed_alone_is_said(tmp_path):
    base, adapter = family(tmp_path / "factors", lambda: llama(tie=True), target_modules=["embed_tokens"])
    (note,) = opened(base, adapter)[2].notes
    assert note.startswith("changes model.embed_tokens.weight alone, and the base ties it to lm_head.weight")
    assert note.endswith("as PEFT's merge_and_unload does")
    base, adapter = family(tmp_path / "whole", lambda: llama(tie=True), modules_to_save=["embed_tokens"])
    (note,) = opened(base, adapter)[2].notes
    assert "a merge changes both, where PEFT leaves lm_head.weight as it is" in note
    folded = folded_by_peft(base, adapter)
    assert not torch.equal(folded["lm_head.weight"], folded["model.embed_tokens.weight"])


def test_an_untrained_adapter_changes_nothing(plain, copied, tmp_path):
    base, adapter = copied
    tensors = load_file(adapter / "adapter_model.safetensors")
    save_file({k: t * ("lora_A" in k) for k, t in tensors.items()}, adapter / "adapter_model.safetensors")
    live, ours, expert = opened(base, adapter)
    assert not task_vectors(ours, {"a": expert}, live.parameters, tmp_path / "cache").deltas["a"]


KINDS = {
    "PROMPT_TUNING": "adds inputs and changes no weight.*Train the expert by LoRA",
    "IA3": r"kind IA3, whose change is no product.*merge_and_unload\(\)\.save_pretrained",
    "LOHA": "kind LOHA",
    "LOKR": "kind LOKR",
    "None": "kind None",
}
SETTINGS = {
    "pissa": ({"init_lora_weights": "pissa"}, "init_lora_weights=pissa.*path_initial_model_for_weight_conversion"),
    "loftq": ({"init_lora_weights": "loftq"}, "init_lora_weights=loftq"),
    "aLoRA": ({"alora_invocation_tokens": [1]}, r"from certain tokens.*alora_invocation_tokens"),
    "QALoRA": ({"use_qalora": True}, "use_qalora"),
    "more layers": ({"layer_replication": [[0, 2]]}, "layer_replication"),
    "unknown": ({"use_tomorrow": 3}, "use_tomorrow=3, which evomerge does not know"),
    "another rank": ({"r": 4}, "rank 3.*says 4"),
    "no rank": ({"r": "four"}, "a rank that is none"),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_sum_on_weights_is_refused(copied, kind):
    rewrite(copied[1], peft_type=None if kind == "None" else kind)
    with pytest.raises(CheckpointError, match=KINDS[kind]):
        opened(*copied)


@pytest.mark.parametrize("setting", SETTINGS)
def test_settings_that_change_weights_are_refused(copied, setting):
    changes, message = SETTINGS[setting]
    rewrite(copied[1], **changes)
    with pytest.raises(CheckpointError, match=message):
        opened(*copied)


def renamed(tensors: dict, old: str, new: str) -> dict:
    return {key.replace(old, new): tensor for key, tensor in tensors.items()}


Q = "base_model.model.model.layers.0.self_attn.q_proj"
TENSORS = {
    "another name": (lambda t: renamed(t, "layers.1.", "layers.7."), r"holds .*layers\.7\..*no place for"),
    "no front": (lambda t: renamed(t, "base_model.model.", ""), r"holds model\.layers"),
    "one more": (lambda t: t | {f"{Q}.lora_C.weight": torch.zeros(2)}, r"q_proj\.lora_C\.weight"),
    "one factor": (lambda t: {k: v for k, v in t.items() if k != f"{Q}.lora_B.weight"}, r"no lora_B of .*q_proj"),
    "other shapes": (lambda t: t | {f"{Q}.lora_B.weight": torch.zeros(8, 3)}, r"\(8, 3\) and \(3, 32\).*another base"),
    "not finite": (lambda t: t | {f"{Q}.lora_B.weight": torch.full((32, 3), float("nan"))}, "not finite"),
    "another base": (lambda t: t | {f"{Q}.base_layer.weight": torch.ones(32, 32)}, "it is not the base's"),
    "nothing": (lambda t: {}, "changes none of the live model's parameters"),
}


@pytest.mark.parametrize("damage", TENSORS)
def test_every_tensor_is_taken_or_refused(copied, damage):
    change, message = TENSORS[damage]
    file = copied[1] / "adapter_model.safetensors"
    save_file(change(load_file(file)), file)
    with pytest.raises(CheckpointError, match=message):
        opened(*copied)


def test_an_adapter_of_a_head_needs_the_head(tmp_path):
    base, adapter = family(tmp_path, target_modules=["lm_head"])
    assert [*opened(base, adapter)[2].factors] == ["lm_head.weight"]
    with pytest.raises(CheckpointError, match=r"lm_head.*model\.auto_class=AutoModelForCausalLM"):
        opened(base, adapter, "AutoModel")


def test_two_changes_of_what_is_tied_are_refused(tmp_path):
    base, adapter = family(tmp_path, lambda: llama(tie=True), target_modules=["embed_tokens", "lm_head"])
    with pytest.raises(CheckpointError, match="ties into one parameter"):
        opened(base, adapter)


def test_an_adapter_is_no_base(plain):
    with pytest.raises(CheckpointError, match="give it as an expert"):
        load_skeleton(plain[0], CAUSAL).open(plain[1])


def test_weights_are_asked_for(copied):
    (copied[1] / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"holds no adapter_model\.safetensors or adapter_model\.bin"):
        opened(*copied)


def test_the_bin_of_earlier_years(plain, copied):
    base, adapter = copied
    file = adapter / "adapter_model.safetensors"
    torch.save(load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    assert opened(base, adapter)[2].sha256 == opened(*plain)[2].sha256


def test_more_tokens_than_the_base(tmp_path):
    """The embeddings of an adapter with tokens of its own are cut to the base's, where that was chosen."""
    base, adapter = family(tmp_path, modules_to_save=["embed_tokens", "lm_head"])
    file = adapter / "adapter_model.safetensors"
    tensors = {k: torch.cat([t, t[:2]]) if len(t) == 50 else t for k, t in load_file(file).items()}
    save_file(tensors, file)
    with pytest.raises(CheckpointError, match=r"vocabularies differ \(52 tokens and 50\)"):
        opened(base, adapter)
    expert = opened(base, adapter, vocabulary="shared")[2]
    assert expert.tensor("lm_head.weight").shape == (50, 32)
    assert {*expert.rows} == {"lm_head.weight", "model.embed_tokens.weight"}


@pytest.mark.parametrize(("start", "stop"), [(0, 700 * 300), (7, 100_003), (299, 301), (10, 20)])
def test_compiled_or_not_a_product_has_the_same_bits(start, stop, monkeypatch):
    """And any part of it, whatever else is asked for."""
    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(shape, generator=generator) for shape in ((700, 9), (9, 300)))
    factors, found = Factors(left, right, 0.37), []
    for small in (0, 1 << 62):
        monkeypatch.setattr("evomerge.models.factors.SMALL", small)
        factors.write(start, out := torch.empty(stop - start))
        found.append(out)
    places = torch.arange(start, stop)[::7]
    assert torch.equal(*found)
    assert torch.equal(factors.at(places), found[0][::7])
    assert torch.equal(factors.whole()[start:stop], found[0])
    exact = ((left.double() @ right.double()) * 0.37).flatten()[start:stop]
    torch.testing.assert_close(found[0].double(), exact, rtol=1e-4, atol=1e-5)
