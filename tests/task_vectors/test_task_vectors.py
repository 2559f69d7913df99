import logging
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import load_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.matching import Layout
from evomerge.task_vectors.store import task_vectors
from evomerge.transforms.store import transformed
from tests.kit.models import SHAPES, Family, drawn, saved, tuned
from tests.kit.vectors import anonymous_memory
from tests.processes.waiting import server

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)


@settings(max_examples=50, deadline=None)
@given(before=arrays("float32", (3, 4), elements=FLOATS), after=arrays("float32", (3, 4), elements=FLOATS))
def test_base_plus_delta_is_the_expert_within_one_rounding(tmp_path_factory, before, after):
    path = tmp_path_factory.mktemp("family")
    before, after = torch.from_numpy(before), torch.from_numpy(after)
    base = open_checkpoint(saved(path / "base", {"w": before}), {"w": (3, 4)})
    expert = open_checkpoint(saved(path / "a", {"w": after}), {"w": (3, 4)})
    vectors = task_vectors(base, {"a": expert}, {"w": (3, 4)}, path / "cache")
    delta = vectors.dense("a", "w")
    if delta is None:
        assert torch.equal(before, after)
        assert vectors.zero == {("a", "w")}
        return
    assert delta.dtype == torch.float32
    # one rounding of the difference and one of the sum
    eps = torch.finfo(torch.float32).eps
    error = ((before.double() + delta.double()) - after.double()).abs()
    assert bool((error <= eps / 2 * delta.double().abs()).all())
    assert bool(
        ((before + delta).double() - after.double()).abs().le(eps * torch.maximum(delta.abs(), after.abs())).all()
    )


@pytest.mark.parametrize("base_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("expert_dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_both_sides_are_float32_before_they_are_subtracted(tmp_path, base_dtype, expert_dtype):
    before = {name: tensor.to(base_dtype) for name, tensor in drawn(0).items()}
    after = {name: tensor.to(expert_dtype) for name, tensor in tuned(drawn(0), 1).items()}
    base, expert = (open_checkpoint(saved(tmp_path / n, t), SHAPES) for n, t in (("base", before), ("a", after)))
    vectors = task_vectors(base, {"a": expert}, SHAPES, tmp_path / "cache")
    for name, shape in SHAPES.items():
        delta = vectors.dense("a", name)
        assert delta is not None
        assert (delta.dtype, tuple(delta.shape)) == (torch.float32, shape)
        assert torch.equal(delta, after[name].float() - before[name].float())


def test_identical_expert_is_zero_and_stores_nothing(tmp_path):
    family = Family(tmp_path, same=drawn(0), other={"norm.weight": drawn(0)["norm.weight"]})
    vectors = family.vectors()
    assert vectors.zero == {("same", name) for name in SHAPES} | {("other", "norm.weight")}
    assert vectors.dense("same", "embed.weight") is None
    assert vectors.dense("other", "norm.weight") is None
    assert sorted(len(load_file(file)) for file in family.files()) == [0, 3]
    assert list(vectors.parameters) == list(SHAPES)
    assert list(vectors.experts) == ["same", "other"]


def test_parameters_without_elements_or_without_a_file(tmp_path):
    shapes = {"empty": (0, 3), "scalar": ()}
    tensors = {"empty": torch.ones(0, 3), "scalar": torch.tensor(1.0)}
    base = open_checkpoint(saved(tmp_path / "base", tensors), shapes)
    a = open_checkpoint(saved(tmp_path / "a", tensors | {"scalar": torch.tensor(3.0)}), shapes)
    b = open_checkpoint(saved(tmp_path / "b", {"head": torch.ones(2)}), shapes)
    vectors = task_vectors(base, {"a": a, "b": b}, shapes, tmp_path / "cache")
    assert vectors.zero == {("a", "empty"), ("b", "empty"), ("b", "scalar")}
    assert torch.equal(vectors.dense("a", "scalar"), torch.tensor(2.0))


def test_deltas_by_live_name_whatever_the_files_call_them(tmp_path):
    config = BertConfig(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, vocab_size=50, num_labels=3
    )
    base, expert = BertModel(config), BertForSequenceClassification(config)
    base.save_pretrained(tmp_path / "base")
    expert.save_pretrained(tmp_path / "a")
    shapes = {name: tuple(parameter.shape) for name, parameter in base.named_parameters()}
    opened = [open_checkpoint(tmp_path / name, shapes, Layout(prefix="bert")) for name in ("base", "a")]
    vectors = task_vectors(opened[0], {"a": opened[1]}, shapes, tmp_path / "cache")
    for name, parameter in base.named_parameters():
        delta = vectors.dense("a", name)
        expected = expert.bert.get_parameter(name) - parameter
        assert torch.equal(expected, torch.zeros(shapes[name]) if delta is None else delta)


def test_cache_hit_does_not_read_the_experts(tmp_path):
    family = Family(tmp_path, a={}, b={"norm.weight": torch.zeros(8)})
    base, *experts = family.open()
    experts = dict(zip(family.experts, experts, strict=True))
    first = task_vectors(base, experts, SHAPES, family.cache)
    before = {file: file.stat().st_mtime_ns for file in family.files()}
    for name in ("base", "a", "b"):  # the mapped bytes change under the checkpoints: who reads them sees other numbers
        with (tmp_path / name / "model.safetensors").open("r+b") as file:
            file.seek(-64, 2)
            file.write(bytes(64))
    again = task_vectors(base, experts, SHAPES, family.cache)
    assert {file: file.stat().st_mtime_ns for file in family.files()} == before
    for name in SHAPES:
        assert torch.equal(first.dense("a", name), again.dense("a", name))


def test_deltas_are_memory_mapped(tmp_path):
    family = Family(tmp_path, a={})
    vectors = family.vectors()
    maps = [
        line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(family.files()[0]) in line
    ]
    spans = [[int(end, 16) for end in span.split("-")] for span in maps]
    delta = vectors.dense("a", "embed.weight")
    assert delta is not None
    assert any(low <= delta.data_ptr() < high for low, high in spans)


def test_cache_knows_content_and_not_paths(tmp_path):
    family = Family(tmp_path / "here", a={})
    family.vectors()
    files = family.files()
    moved = Family(tmp_path / "there", a={})
    moved.cache = family.cache
    moved.vectors()
    assert family.files() == files
    moved.experts["a"]["norm.weight"][0] += 1
    saved(moved.path / "a", moved.experts["a"])
    moved.vectors()
    assert len(family.files()) == 2


@settings(max_examples=20, deadline=None)
@given(byte=st.integers(0, 40 * 8 * 4 - 1))
def test_one_byte_of_an_expert_makes_another_file(tmp_path_factory, byte):
    family = Family(tmp_path_factory.mktemp("family"), a={})
    family.vectors()
    content = bytearray((family.path / "a" / "model.safetensors").read_bytes())
    content[-1 - byte] ^= 1
    (family.path / "a" / "model.safetensors").write_bytes(content)
    family.vectors()
    assert len(family.files()) == 2


def test_another_live_model_makes_another_file(tmp_path):
    family = Family(tmp_path, a={})
    family.vectors()
    base, a = family.open()
    short = {name: shape for name, shape in SHAPES.items() if name != "norm.weight"}
    base, a = (open_checkpoint(checkpoint.path, short) for checkpoint in (base, a))
    assert task_vectors(base, {"a": a}, short, family.cache).zero == frozenset()
    assert len(family.files()) == 2


def flip(content: bytes) -> bytes:
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def forge(content: bytes) -> bytes:
    return content.replace(b'"sha256"', b'"sha255"')


@pytest.mark.parametrize(
    "damage", [flip, forge, lambda c: c[:-1], lambda c: b"", lambda c: c[: len(c) // 2], lambda c: c + b"x"]
)
def test_damaged_file_is_computed_again_and_said(tmp_path, damage, caplog):
    family = Family(tmp_path, a={})
    family.vectors()
    (file,) = family.files()
    whole = file.read_bytes()
    file.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING):
        vectors = family.vectors()
    assert f"{file} is damaged: it is computed again" in caplog.text
    assert file.read_bytes() == whole
    assert torch.equal(
        vectors.dense("a", "norm.weight"), family.experts["a"]["norm.weight"] - family.base["norm.weight"]
    )


def test_cache_may_be_deleted(tmp_path, caplog):
    family = Family(tmp_path, a={})
    vectors = family.vectors()
    for file in family.cache.iterdir():
        file.unlink()
    again = family.vectors()
    assert torch.equal(
        vectors.dense("a", "embed.weight"), again.dense("a", "embed.weight")
    )  # the old mapping still holds
    assert not caplog.text


def compute(path: Path, start, results) -> None:
    opened = [open_checkpoint(path / name, SHAPES) for name in ("base", "a")]
    start.wait()
    done = []
    task_vectors(opened[0], {"a": opened[1]}, SHAPES, path / "cache", lambda what, *_: done.append(what))
    results.put("task vector of a" in done)


@pytest.mark.slow
def test_two_processes_compute_once(tmp_path):
    family = Family(tmp_path, a={})
    context = server()
    start, results = context.Barrier(2), context.Queue()
    processes = [context.Process(target=compute, args=(tmp_path, start, results)) for _ in range(2)]
    for process in processes:
        process.start()
    assert sorted(results.get(timeout=120) for _ in processes) == [False, True]
    for process in processes:
        process.join()
    assert len(family.files()) == 1
    assert {file.suffix for file in family.cache.iterdir()} <= {".safetensors", ".lock", ".json"}


def test_one_tensor_in_memory_at_a_time(tmp_path):
    shapes, tensor = {f"layers.{i}.weight": (1536, 1024) for i in range(6)}, 1536 * 1024 * 4
    weights = drawn(0, shapes=shapes)
    for k in range(6):
        saved(tmp_path / str(k), {name: (value + k).bfloat16() for name, value in weights.items()})
    base, *experts = [open_checkpoint(tmp_path / str(k), shapes) for k in range(6)]
    before, seen = anonymous_memory(), []
    vectors = task_vectors(
        base,
        {str(k): expert for k, expert in enumerate(experts)},
        shapes,
        tmp_path / "cache",
        lambda *_: seen.append(anonymous_memory()),
    )
    assert len(vectors.deltas) == 5
    assert max(seen) - before < 1.5 * tensor  # of five experts
    seen.clear()
    packed = transformed(vectors, (), tmp_path / "cache", lambda *_: seen.append(anonymous_memory()), "int8")
    assert len(packed.deltas) == 5
    assert max(seen) - before < (1.5 + 5 * 0.3) * tensor  # one in float32, and five that are packed


def test_cache_that_cannot_be_written(tmp_path):
    family = Family(tmp_path, a={})
    base, a = (open_checkpoint(tmp_path / name, SHAPES) for name in ("base", "a"))
    family.vectors()
    (file,) = family.files()
    file.unlink()
    file.mkdir()
    with pytest.raises(CheckpointError, match=r"the task vectors of a .*cannot be written to .*another directory"):
        task_vectors(base, {"a": a}, SHAPES, family.cache)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 3e38])
def test_weights_that_are_not_finite(tmp_path, value):
    bias = torch.full((8,), value)
    with pytest.raises(CheckpointError, match=r"a: layers\.0\.bias of expert a is not finite"):
        Family(tmp_path, a={"layers.0.bias": bias if value != 3e38 else 10 * bias}).vectors()


def test_base_that_is_not_finite(tmp_path):
    family = Family(tmp_path, a={})
    saved(tmp_path / "base", family.base | {"norm.weight": torch.full((8,), float("nan"))})
    with pytest.raises(CheckpointError, match=r"base: norm\.weight of the base is not finite"):
        family.vectors()
