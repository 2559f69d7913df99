"""Models in memory, of torch alone and of transformers: the same parameters, names and hashes as on disk."""

from __future__ import annotations

import pytest
import torch
from transformers import BertModel

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import from_tensors, open_checkpoint
from evomerge.models.completeness import check_base, check_expert
from evomerge.models.live import live_module
from evomerge.space.groups import make_groups
from tests.kit.models import BERT, SHAPES, drawn, opened, pico, saved
from tests.kit.tiny import Tiny


def test_tensors_have_the_hash_of_the_directory_that_holds_them(tmp_path):
    tensors = drawn(0)
    held, mapped = from_tensors(tensors), open_checkpoint(saved(tmp_path / "base", tensors), SHAPES)
    assert held.sha256 == mapped.sha256
    assert (held.keys, held.extra, held.missing) == (mapped.keys, (), ())
    assert held.tensor("norm.weight") is tensors["norm.weight"]
    assert from_tensors({**tensors, "norm.weight": tensors["norm.weight"] + 1}).sha256 != held.sha256


def test_a_module_that_is_no_transformer_is_copied_and_its_ties_are_found():
    module = Tiny().requires_grad_(True)
    live = live_module(module)
    assert live.tied == {"head.weight": "embed.weight"}
    assert list(live.parameters) == [name for name, _ in module.named_parameters()]
    assert (live.auto_class, live.dtype, live.processor) == ("Tiny", torch.float32, None)
    assert not live.model.training
    assert module.training
    live.model.embed.weight += 1
    assert not torch.equal(live.model.head.weight, module.head.weight)
    assert [group.name for group in make_groups("layer", live.parameters)] == ["embeddings", "layers.0", "layers.1"]


def test_a_state_dict_is_opened_by_the_parameters_of_the_live_model():
    """Tied tensors stand in it twice, buffers beside the parameters."""
    module = Tiny()
    module.register_buffer("count", torch.ones(2))
    live = live_module(module)
    base = live.take(module.state_dict(), "base")
    check_base(base)
    assert base.keys["embed.weight"] == "embed.weight"
    assert (base.buffers, base.spare, base.missing) == (("count",), ["count"], ())
    lacking = {name: tensor for name, tensor in module.state_dict().items() if name != "layers.0.bias"}
    with pytest.raises(CheckpointError, match=r"expert a \(memory/a\) lacks layers\.0\.bias"):
        check_expert("expert a", live.take(lacking, "a"), base)
    with pytest.raises(CheckpointError, match=r"memory/b: layers\.0\.bias has shape \(5,\)"):
        live.take({**module.state_dict(), "layers.0.bias": torch.zeros(5)}, "b")


def test_a_module_of_transformers_is_what_its_directory_is(tmp_path):
    model = pico(BertModel, BERT).eval()
    model.save_pretrained(tmp_path)
    live, there = live_module(model), opened(tmp_path, model)
    held = live.take(model.state_dict(), "base")
    check_base(held)
    assert held.keys.keys() == there.keys.keys()
    assert all(torch.equal(held.tensor(name), there.tensor(name)) for name in held.keys)
    assert live.dtype == torch.float32


def test_a_module_without_floating_parameters_is_refused():
    with pytest.raises(CheckpointError, match="Identity has no floating parameters"):
        live_module(torch.nn.Identity())
