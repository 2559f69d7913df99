import json
import os
import re
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import BertModel, LlamaForCausalLM

from evomerge.common.errors import CheckpointError
from evomerge.models import weights
from evomerge.models.checkpoint import open_checkpoint
from evomerge.models.weights import content_hash
from tests.kit.models import BERT, LLAMA, opened, pico, saved, to_bin


def test_tensors_are_memory_mapped(tmp_path):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path / "safetensors")
    model.save_pretrained(tmp_path / "bin")
    to_bin(tmp_path / "bin")
    for path in (tmp_path / "safetensors", tmp_path / "bin"):
        checkpoint = opened(path, model)
        name = "embeddings.word_embeddings.weight"
        tensor = checkpoint.tensor(name)
        file = next(file for file in path.iterdir() if file.suffix in (".safetensors", ".bin"))
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line]
        spans = [[int(end, 16) for end in line[0].split("-")] for line in maps]
        assert any(low <= tensor.data_ptr() < high for low, high in spans)
        assert (checkpoint.tensor(name).shape, checkpoint.dtype(name)) == ((50, 32), torch.float32)


def test_not_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match=r"does not exist.* on the hub, write its whole name: owner/name\.$"):
        open_checkpoint("name", {})
    with pytest.raises(CheckpointError, match=r"does not exist.*Check the path\.$"):
        open_checkpoint(tmp_path / "nothing", {})
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file, where a model directory must be"):
        open_checkpoint(tmp_path / "file", {})


def test_no_weights(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"holds no weights.*tf_model\.h5.*save_pretrained"):
        open_checkpoint(tmp_path, {})
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match=r"PEFT adapter.*merge_and_unload"):
        open_checkpoint(tmp_path, {})


@pytest.mark.parametrize(
    "damage", [lambda b: b[:-1], lambda b: b[:4], lambda b: b"", lambda b: b"version https://git-lfs"]
)
@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
def test_damaged_file(tmp_path, name, damage):
    saved(tmp_path, {"a": torch.ones(2)})
    if name.endswith(".bin"):
        to_bin(tmp_path)
    file = tmp_path / name
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(CheckpointError, match=f"{re.escape(name)} is damaged.*Download or copy it again"):
        open_checkpoint(tmp_path, {"a": (2,)})


@pytest.fixture
def sharded(tmp_path):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    return tmp_path, model


def test_missing_shard(sharded):
    path, model = sharded
    next(path.glob("model-00002-*")).unlink()
    with pytest.raises(CheckpointError, match="shards that are not there: model-00002"):
        opened(path, model)


def test_damaged_index(sharded):
    path, model = sharded
    index = path / "model.safetensors.index.json"
    for text in ("{}", '{"weight_map": {"a": 1}}', "no json"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            opened(path, model)


def test_an_index_names_shards_and_not_what_is_in_them(sharded):
    """transformers reads every tensor of a shard that the index names, and misses none that nobody needs."""
    path, model = sharded
    index = path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    forgotten, shard = next(iter(content["weight_map"].items()))
    del content["weight_map"][forgotten]
    content["weight_map"]["ghost"] = shard
    index.write_text(json.dumps(content))
    checkpoint = opened(path, model)
    assert not checkpoint.missing
    assert torch.equal(checkpoint.tensors[forgotten], BertModel.from_pretrained(path).state_dict()[forgotten])
    assert checkpoint.notes == (
        "lacks ghost, which model.safetensors.index.json lists",
        f"holds {forgotten}, which model.safetensors.index.json does not list: read, as transformers does",
    )


def test_of_a_tensor_in_two_shards_the_last_one_counts(sharded):
    path, model = sharded
    first, *_, last = sorted(path.glob("model-*.safetensors"))
    key = next(iter(load_file(first)))
    save_file(load_file(last) | {key: torch.ones_like(load_file(first)[key])}, last)
    checkpoint = opened(path, model)
    assert torch.equal(checkpoint.tensors[key], BertModel.from_pretrained(path).state_dict()[key])
    assert checkpoint.tensors[key].eq(1).all()
    (note,) = checkpoint.notes
    assert note.startswith(f"holds {key} in {first.name} and with other values in {last.name}, which counts")


@pytest.mark.parametrize("other", ["pytorch_model.bin", "model.fp16.safetensors", "model.safetensors.index.json"])
def test_a_second_set_of_weights_is_named(tmp_path, other):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path)
    (tmp_path / other).write_text("anything")
    checkpoint = opened(tmp_path, model)
    assert torch.equal(checkpoint.tensors["pooler.dense.bias"], BertModel.from_pretrained(tmp_path).pooler.dense.bias)
    assert checkpoint.notes == (f"also holds {other}: model.safetensors is read, as transformers does",)


@pytest.mark.parametrize(
    "name", ["training_args.bin", "optimizer.pt", "README.md", "vocab.txt", "modelling.safetensors"]
)
def test_other_files_are_nobodys_business(tmp_path, name):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path)
    (tmp_path / name).write_text("anything")
    assert opened(tmp_path, model).notes == ()


def test_an_adapter_beside_whole_weights_is_refused(tmp_path):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json beside them: .* Move adapter_config\.json"):
        opened(tmp_path, model)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            {"quantization_config": {"quant_method": "gptq", "bits": 4}},
            r"is quantised \(gptq\), as quantization_config",
        ),
        ({"quantization_config": {"load_in_4bit": True}}, r"is quantised \(by a method it does not name\)"),
        ({"text_config": {"quantization_config": {"quant_method": "awq"}}}, r"is quantised \(awq\)"),
        ({"transformers_weights": "other.safetensors"}, r"in other\.safetensors \(transformers_weights\)"),
    ],
)
def test_what_the_config_says_of_the_weights_is_read_first(tmp_path, setting, message):
    saved(tmp_path, {"a": torch.ones(2)}, setting)
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path, {"a": (2,)})


class Evil:
    """Unpickled without `weights_only`, it would make a directory."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("old", [False, True])
def test_malicious_pickle_is_refused_and_not_run(tmp_path, old):
    saved(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "model.safetensors").unlink()
    torch.save(
        {"a": torch.ones(2), "b": Evil(tmp_path / "made")},
        tmp_path / "pytorch_model.bin",
        _use_new_zipfile_serialization=not old,
    )
    assert zipfile.is_zipfile(tmp_path / "pytorch_model.bin") != old
    with pytest.raises(
        CheckpointError, match=r"asks for posix\.mkdir to be run at load, which is refused.*save_pretrained"
    ):
        open_checkpoint(tmp_path, {"a": (2,)})
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": torch.ones(2), "epoch": 3}, r"holds a int under 'epoch'.*state_dict"),
        ({"state_dict": {"a": torch.ones(2)}}, r"holds a dict under 'state_dict'"),
        ({"a": torch.ones(2).to_sparse()}, "dense"),
        ([torch.ones(2)], "holds a list, not a dictionary"),
    ],
)
def test_bin_of_other_things_than_tensors(tmp_path, content, message):
    saved(tmp_path, {})
    (tmp_path / "model.safetensors").unlink()
    torch.save(content, tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path, {"a": (2,)})


def test_hash_is_of_the_content_alone(tmp_path):
    model = pico(LlamaForCausalLM, LLAMA)
    model.save_pretrained(tmp_path / "a")
    model.save_pretrained(tmp_path / "b" / "c", max_shard_size="20KB")
    model.save_pretrained(tmp_path / "d", max_shard_size="20KB")
    to_bin(tmp_path / "d")
    hashes = {opened(tmp_path / path, model).sha256 for path in ("a", "b/c", "d")}
    assert len(hashes) == 1
    assert re.fullmatch("[0-9a-f]{64}", hashes.pop())


TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(2)}
CHANGES = [
    {"a": TENSORS["a"].reshape(3, 2), "b": TENSORS["b"]},
    {"a": TENSORS["a"], "c": TENSORS["b"]},
    {"a": TENSORS["a"], "b": TENSORS["b"].view(torch.int32)},
    {"a": TENSORS["a"]},
    {**TENSORS, "c": torch.ones(0)},
    {**TENSORS, "b": -TENSORS["b"]},
    {**TENSORS, "b": torch.ones(())},
]


def test_hash_sees_keys_shapes_dtypes_and_values(tmp_path):
    hashes = [open_checkpoint(saved(tmp_path / str(i), t), {}).sha256 for i, t in enumerate([TENSORS, *CHANGES])]
    assert len(set(hashes)) == len(hashes)


@settings(max_examples=20, deadline=None)
@given(byte=st.integers(0, 31), bit=st.integers(0, 7))
def test_hash_sees_every_bit(tmp_path_factory, byte, bit):
    path = saved(tmp_path_factory.mktemp("model"), TENSORS)
    cache = path / "cache"
    before = open_checkpoint(path, {}, cache=cache).sha256
    content = bytearray((path / "model.safetensors").read_bytes())
    content[-1 - byte] ^= 1 << bit
    (path / "model.safetensors").write_bytes(content)
    assert open_checkpoint(path, {}, cache=cache).sha256 != before


def test_hash_is_remembered(tmp_path):
    path, cache = saved(tmp_path / "model", TENSORS), tmp_path / "cache"
    time.sleep(0.15)  # a hash of a file that was just written is not remembered
    reports = []
    first = open_checkpoint(path, {}, cache=cache, progress=lambda *report: reports.append(report))
    assert reports[-1][1] == reports[-1][2] == 32
    reports.clear()
    (tmp_path / "link").symlink_to(path)
    for name in ("model", "link"):
        again = open_checkpoint(tmp_path / name, {}, cache=cache, progress=lambda *report: reports.append(report))
        assert again.sha256 == first.sha256
    assert not reports
    for damage in ("", "{", "[]", '{"x": 1}'):
        (cache / "hashes.json").write_text(damage)
        assert open_checkpoint(path, {}, cache=cache).sha256 == first.sha256


def test_who_wants_the_same_hash_meanwhile_waits_for_it(tmp_path, monkeypatch):
    path, cache, hashed = saved(tmp_path / "model", TENSORS), tmp_path / "cache", []

    def slow(*arguments):
        hashed.append(0)
        time.sleep(0.1)
        return content_hash(*arguments)

    monkeypatch.setattr(weights, "content_hash", slow)
    time.sleep(0.15)
    with ThreadPoolExecutor(3) as pool:
        found = {one.sha256 for one in pool.map(lambda _: open_checkpoint(path, {}, cache=cache), range(3))}
    assert len(found) == len(hashed) == 1


def test_remembered_hashes_can_be_read_by_those_who_can_read_the_models(tmp_path):
    path, cache = saved(tmp_path / "model", TENSORS), tmp_path / "cache"
    time.sleep(0.15)
    before = os.umask(0o022)
    try:
        open_checkpoint(path, {}, cache=cache)
    finally:
        os.umask(before)
    assert (cache / "hashes.json").stat().st_mode & 0o777 == 0o644


def test_hash_is_not_remembered_for_a_replaced_file_of_the_same_size_and_time(tmp_path):
    path, cache = saved(tmp_path / "model", TENSORS), tmp_path / "cache"
    time.sleep(0.15)
    first = open_checkpoint(path, {}, cache=cache)
    stat = (path / "model.safetensors").stat()
    saved(path, CHANGES[5])
    os.utime(path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_checkpoint(path, {}, cache=cache).sha256 != first.sha256
