"""Experts of 16 bits kept as they are: the numbers of cached task vectors, bit for bit, at half the bytes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.common.errors import CheckpointError
from evomerge.merging.builder import CHUNK
from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear, Ties
from evomerge.models.pretrained import load_model
from evomerge.space.groups import make_groups
from evomerge.task_vectors.expert import ExpertDeltas
from evomerge.task_vectors.spans import chunks
from evomerge.task_vectors.store import TaskVectors, task_vectors
from evomerge.task_vectors.stores import AUTO, FLOAT32
from tests.kit.merging import CAUSAL, EXPERTS, opened, save_family
from tests.kit.models import LLAMA, LLAMA_TIED, Family, pico, rewritten
from tests.kit.tiny import state, weights
from tests.kit.vectors import anonymous_memory

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


def shapes_of(model):
    return {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}


def both(path, model, cache):
    """The task vectors of a family: kept as experts, and cached in float32."""
    found = opened({"": path / "base", **{name: path / name for name in EXPERTS}}, model)
    base = found.pop("")
    return [task_vectors(base, found, shapes_of(model), cache, store=store) for store in (AUTO, FLOAT32)]


@pytest.fixture(scope="module", params=[(LLAMA, torch.bfloat16), (LLAMA_TIED, torch.float16)], ids=["bf16", "fp16"])
def family(request, tmp_path_factory):
    path, (config, dtype) = tmp_path_factory.mktemp("family"), request.param
    save_family(path, pico(LlamaForCausalLM, config).to(dtype))
    return path


@pytest.mark.parametrize("granularity", ["model", "tensor", "chunk:3", "line"])
def test_merges_and_gradients_are_those_of_cached_task_vectors(family, tmp_path, granularity):
    merged, gradients = [], []
    for keep in (0, 1):
        model, _ = load_model(family / "base", CAUSAL)
        vectors = both(family, model, tmp_path)[keep]
        groups = make_groups(granularity, vectors.parameters)
        merger = Merger(model, vectors, groups, Linear())
        merger.apply({"weight": np.random.default_rng(0).uniform(-0.5, 1.5, (len(groups), 3))})
        merged.append(state(model))
        gradients.append(merger.gradient(model(input_ids=IDS).logits.float().square().mean() for _ in range(1)))
        merger.restore()
        assert all(torch.equal(p, vectors.base.tensor(name)) for name, p in model.named_parameters())
    assert all(torch.equal(merged[0][name], tensor) for name, tensor in merged[1].items())
    assert any(not torch.equal(tensor, vectors.base.tensor(name)) for name, tensor in merged[1].items())
    assert np.array_equal(gradients[0]["weight"], gradients[1]["weight"])
    assert np.abs(gradients[0]["weight"]).max(0).min() > 0  # the embeddings, which nobody tuned, have none


def test_chunks_do_not_matter(family, tmp_path, monkeypatch):
    merged = []
    for size in (1 << 18, 64):
        monkeypatch.setattr("evomerge.merging.builder.CHUNK", size)
        model, _ = load_model(family / "base", CAUSAL)
        kept, _ = both(family, model, tmp_path)
        groups = make_groups("layer", kept.parameters)
        Merger(model, kept, groups, Linear()).apply(weights(len(groups), 0.3, 0.7, -0.2))
        merged.append(state(model))
    assert all(torch.equal(merged[0][name], tensor) for name, tensor in merged[1].items())


def test_what_is_kept_and_what_is_on_the_disk(family, tmp_path):
    model, _ = load_model(family / "base", CAUSAL)
    found = opened({"": family / "base", **{name: family / name for name in EXPERTS}}, model)
    base, shapes, told = found.pop(""), shapes_of(model), []
    kept = task_vectors(base, found, shapes, tmp_path, lambda what, *_: told.append(what), store=AUTO)
    assert {file.suffix for file in tmp_path.iterdir()} == {".json", ".lock"}
    assert sum(file.stat().st_size for file in tmp_path.iterdir()) < 10_000
    assert set(told) == {f"looking at {name}" for name in EXPERTS}
    cached = task_vectors(base, found, shapes, tmp_path)
    assert kept.zero == cached.zero != frozenset()  # nobody tuned the embeddings
    assert 2 * kept.nbytes == cached.nbytes > 0
    for name in EXPERTS:
        assert set(kept.deltas[name]) == set(cached.deltas[name])
        assert all(torch.equal(kept.dense(name, each), cached.dense(name, each)) for each in cached.deltas[name])
        assert kept.delta(name, "model.embed_tokens.weight") is kept.dense(name, "model.embed_tokens.weight") is None
    told.clear()
    again = task_vectors(base, found, shapes, tmp_path, lambda what, *_: told.append(what), store=AUTO)
    assert told == []
    assert again.zero == kept.zero
    for file in tmp_path.glob("*.json"):
        file.write_text("{")
    assert task_vectors(base, found, shapes, tmp_path, store=AUTO).zero == kept.zero


def test_an_expert_of_16_bits_of_a_float32_base(tmp_path):
    family = Family(tmp_path, a={}, b={})
    rewritten(tmp_path / "a", lambda tensors: {name: tensor.bfloat16() for name, tensor in tensors.items()})
    base, a, b = family.open()
    vectors = task_vectors(base, {"a": a, "b": b}, {n: t.shape for n, t in family.base.items()}, tmp_path, store=AUTO)
    assert isinstance(vectors.deltas["a"], ExpertDeltas)
    assert not isinstance(vectors.deltas["b"], ExpertDeltas)
    for name, tensor in family.base.items():
        assert torch.equal(vectors.dense("a", name), a.tensor(name).float() - tensor)


@pytest.mark.parametrize(("who", "value"), [("a", math.nan), ("a", math.inf), ("base", -math.inf)])
def test_what_is_not_finite_is_refused(tmp_path, who, value):
    family = Family(tmp_path, a={})
    for name in ("base", "a"):
        rewritten(tmp_path / name, lambda tensors: {each: tensor.bfloat16() for each, tensor in tensors.items()})
    rewritten(tmp_path / who, lambda t: t | {"norm.weight": torch.full((8,), value, dtype=torch.bfloat16)})
    base, a = family.open()
    with pytest.raises(CheckpointError, match=f"{'the base' if who == 'base' else 'expert a'} is not finite"):
        task_vectors(base, {"a": a}, {n: t.shape for n, t in family.base.items()}, tmp_path / "cache", store=AUTO)


@settings(deadline=None)
@given(st.integers(0, 60), st.integers(2, 20))
def test_chunks_of_a_span(length, size):
    found = list(chunks(length, size))
    assert [i for chunk in found for i in range(length)[chunk]] == list(range(length))
    lengths = [chunk.stop - chunk.start for chunk in found]
    assert all(each <= size + 1 for each in lengths)
    assert length == 1 or 1 not in lengths


def test_a_method_that_elects_is_given_whole_task_vectors(family, tmp_path):
    merged = []
    for keep in (0, 1):
        model, _ = load_model(family / "base", CAUSAL)
        vectors = both(family, model, tmp_path)[keep]
        groups = make_groups("layer", vectors.parameters)
        Merger(model, vectors, groups, Ties()).apply(weights(len(groups), 0.3, 0.7, 1.1))
        merged.append(state(model))
    assert all(torch.equal(merged[0][name], tensor) for name, tensor in merged[1].items())


def test_a_merge_of_kept_experts_takes_no_memory_of_its_own(tmp_path):
    """Three experts of 20 MiB, whose task vectors would take 40 MiB each."""
    config = LlamaConfig(
        hidden_size=256, num_hidden_layers=8, num_attention_heads=4, intermediate_size=1024, vocab_size=4096
    )
    save_family(tmp_path, pico(LlamaForCausalLM, config).bfloat16())
    model, _ = load_model(tmp_path / "base", CAUSAL)
    elements = sum(parameter.numel() for parameter in model.parameters())
    found = opened({"": tmp_path / "base", **{name: tmp_path / name for name in EXPERTS}}, model)
    base = found.pop("")
    before = anonymous_memory()
    vectors = task_vectors(base, found, shapes_of(model), tmp_path / "cache", store=AUTO)
    groups = make_groups("layer", vectors.parameters)
    merger = Merger(model, vectors, groups, Linear())
    for value in (0.3, 0.6):
        merger.apply(weights(len(groups), value, 0.5, -0.1))
    assert elements > 10e6
    chunk = (len(EXPERTS) + 3) * 4 * CHUNK  # in float32: of each expert, the base and the sum, and one to spare
    assert anonymous_memory() - before < 2 * elements + chunk  # the model is mapped until it is written
    assert 2 * elements + chunk < 4 * sum(len(delta) for delta in vectors.deltas["red"].values()) * len(EXPERTS)
    assert isinstance(vectors, TaskVectors)
    assert vectors.nbytes <= 3 * 2 * elements
