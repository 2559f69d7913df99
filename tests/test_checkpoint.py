import json
import os
import re
import time
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaModel,
    MixtralConfig,
    MixtralForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from evomerge.checkpoint import Checkpoint, check_base, open_checkpoint
from evomerge.errors import CheckpointError

TINY = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
BERT = BertConfig(**TINY, max_position_embeddings=16)
LLAMA = LlamaConfig(**TINY, num_key_value_heads=2)
LLAMA_TIED = LlamaConfig(**TINY, num_key_value_heads=2, tie_word_embeddings=True)
GPT2 = GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=50, n_positions=16, bos_token_id=1, eos_token_id=2)
T5 = T5Config(num_layers=2, d_model=32, d_kv=16, d_ff=64, num_heads=2, vocab_size=50)
MIXTRAL = MixtralConfig(**TINY, num_key_value_heads=2, num_local_experts=2)
ARCHITECTURES = [
    (BertModel, BERT),
    (BertForMaskedLM, BERT),
    (BertForSequenceClassification, BERT),
    (LlamaModel, LLAMA),
    (LlamaForCausalLM, LLAMA),
    (LlamaForCausalLM, LLAMA_TIED),
    (GPT2Model, GPT2),
    (GPT2LMHeadModel, GPT2),
    (T5ForConditionalGeneration, T5),
]


def pico(cls, config, seed=0, **kwargs):
    """A small model whose every parameter is drawn from its own generator."""
    model, generator = cls(config, **kwargs), torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def opened(path, model, **kwargs) -> Checkpoint:
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return open_checkpoint(path, shapes, model.base_model_prefix, model.all_tied_weights_keys, **kwargs)


def saved(path: Path, tensors: dict, config: dict | None = None) -> Path:
    """A model directory written by hand."""
    path.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path / "model.safetensors")
    (path / "config.json").write_text(json.dumps(config or {}))
    return path


def rewritten(path: Path, change) -> None:
    """Passes the tensors of a single safetensors file through `change`."""
    tensors = {key: tensor.clone() for key, tensor in load_file(path / "model.safetensors").items()}
    save_file(change(tensors), path / "model.safetensors")


def holds(checkpoint: Checkpoint, model) -> bool:
    """Whether every parameter of the model is in the checkpoint, bit for bit."""
    return not checkpoint.missing and all(
        torch.equal(checkpoint.tensor(name), parameter) for name, parameter in model.named_parameters()
    )


def to_bin(path: Path, old: bool = False) -> None:
    """Turns safetensors, single or sharded, into the `.bin` files of earlier years."""
    for file in path.glob("*.safetensors"):
        name = file.name.replace("model", "pytorch_model", 1).replace(".safetensors", ".bin")
        torch.save(load_file(file), path / name, _use_new_zipfile_serialization=not old)
        file.unlink()
    index = path / "model.safetensors.index.json"
    if index.exists():
        text = index.read_text().replace('"model-', '"pytorch_model-').replace(".safetensors", ".bin")
        (path / "pytorch_model.bin.index.json").write_text(text)
        index.unlink()


@pytest.mark.parametrize(("cls", "config"), ARCHITECTURES, ids=lambda x: getattr(x, "__name__", ""))
@pytest.mark.parametrize("shard", ["50GB", "20KB"])
@pytest.mark.parametrize("kind", ["safetensors", "bin", "old bin"])
def test_every_format_gives_the_live_models_parameters(tmp_path, cls, config, shard, kind):
    model = pico(cls, config)
    model.save_pretrained(tmp_path, max_shard_size=shard)
    if kind != "safetensors":
        to_bin(tmp_path, old=kind == "old bin")
    assert (len(list(tmp_path.glob("*.index.json"))) == 1) == (shard == "20KB")
    checkpoint = opened(tmp_path, model)
    assert holds(checkpoint, model)
    assert list(checkpoint.keys) == [name for name, _ in model.named_parameters()]
    assert checkpoint.extra == ()
    assert check_base(checkpoint) == []
    assert checkpoint.config["model_type"] == config.model_type


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
        assert (checkpoint.shape(name), checkpoint.dtype(name)) == ((50, 32), torch.float32)


# names


@pytest.mark.parametrize(
    ("live", "file", "config"),
    [
        (BertModel, BertForMaskedLM, BERT),
        (BertModel, BertForSequenceClassification, BERT),
        (GPT2Model, GPT2LMHeadModel, GPT2),
    ],
)
def test_prefix_on_the_file_only(tmp_path, live, file, config):
    whole = pico(file, config)
    whole.save_pretrained(tmp_path)
    model = live(config, **({"add_pooling_layer": False} if file is BertForMaskedLM else {}))
    checkpoint = opened(tmp_path, model)
    assert holds(checkpoint, whole.base_model)
    assert all(key == f"{model.base_model_prefix}.{name}" for name, key in checkpoint.keys.items())
    assert not any(key.startswith(f"{model.base_model_prefix}.") for key in checkpoint.extra)


def test_heads_stay_readable_by_file_key(tmp_path):
    whole = pico(BertForSequenceClassification, BERT)
    whole.save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, BertModel(BERT))
    assert set(checkpoint.extra) == {"classifier.weight", "classifier.bias"}
    assert torch.equal(checkpoint.extra_tensor("classifier.weight"), whole.classifier.weight)


def test_extra_pooler_of_the_file(tmp_path):
    pico(BertForSequenceClassification, BERT).save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, BertModel(BERT, add_pooling_layer=False))
    assert {"bert.pooler.dense.weight", "classifier.bias"} <= set(checkpoint.extra)
    assert not checkpoint.missing


def test_prefix_on_the_names_only_and_a_bare_head(tmp_path):
    bare, live = pico(BertModel, BERT), BertForSequenceClassification(BERT)
    bare.save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, live)
    assert checkpoint.keys["bert.pooler.dense.bias"] == "pooler.dense.bias"
    assert checkpoint.missing == ("classifier.weight", "classifier.bias")
    rewritten(
        tmp_path, lambda tensors: tensors | {"classifier.weight": torch.ones(2, 32), "classifier.bias": torch.ones(2)}
    )
    checkpoint = opened(tmp_path, live)
    assert checkpoint.keys["classifier.weight"] == "classifier.weight"
    assert not checkpoint.missing
    assert not checkpoint.extra


def test_prefix_is_a_whole_token(tmp_path):
    saved(tmp_path, {"model_a.weight": torch.ones(3), "model.b.weight": torch.ones(3), "b.weight": torch.zeros(3)})
    checkpoint = open_checkpoint(tmp_path, {"a.weight": (3,), "b.weight": (3,)}, prefix="model")
    assert checkpoint.keys == {"b.weight": "b.weight"}  # of equally many matches, names as they are
    assert checkpoint.missing == ("a.weight",)
    assert set(checkpoint.extra) == {"model_a.weight", "model.b.weight"}


def test_one_key_never_serves_two_parameters(tmp_path):
    saved(tmp_path, {"norm.weight": torch.ones(3), "layers.0.weight": torch.ones(3)})
    shapes = {"model.layers.0.weight": (3,), "model.norm.weight": (3,), "norm.weight": (3,)}
    checkpoint = open_checkpoint(tmp_path, shapes, prefix="model")
    assert checkpoint.keys == {"model.layers.0.weight": "layers.0.weight", "model.norm.weight": "norm.weight"}
    assert checkpoint.missing == ("norm.weight",)


def test_gamma_and_beta_of_the_first_bert(tmp_path):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    rewritten(
        tmp_path,
        lambda tensors: {f"bert.{re.sub(r'LayerNorm.*', lambda m: old[m[0]], key)}": t for key, t in tensors.items()},
    )
    checkpoint = opened(tmp_path, model)
    assert holds(checkpoint, model)
    assert checkpoint.keys["embeddings.LayerNorm.weight"] == "bert.embeddings.LayerNorm.gamma"
    assert holds(checkpoint, BertModel.from_pretrained(tmp_path))  # transformers reads it the same way


def test_integer_buffers_are_extra(tmp_path):
    model = pico(BertModel, BERT)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda tensors: tensors | {"embeddings.position_ids": torch.arange(16)[None]})
    checkpoint = opened(tmp_path, model)
    assert checkpoint.extra == ("embeddings.position_ids",)
    assert check_base(checkpoint) == []


# tied parameters


@pytest.mark.parametrize("held", ["source", "alias", "both"])
@pytest.mark.parametrize(
    ("cls", "config", "source", "alias"),
    [
        (LlamaForCausalLM, LLAMA_TIED, "model.embed_tokens.weight", "lm_head.weight"),
        (GPT2LMHeadModel, GPT2, "transformer.wte.weight", "lm_head.weight"),
        (T5ForConditionalGeneration, T5, "shared.weight", "decoder.embed_tokens.weight"),
    ],
)
def test_tied_parameters_under_any_name(tmp_path, cls, config, source, alias, held):
    model = pico(cls, config)
    model.save_pretrained(tmp_path)
    assert source in load_file(tmp_path / "model.safetensors")
    rewritten(tmp_path, lambda t: t | {alias: t[source].clone()} if held != "source" else t)
    rewritten(tmp_path, lambda t: {key: t[key] for key in t if key != source or held != "alias"})
    checkpoint = opened(tmp_path, model)
    assert holds(checkpoint, model)
    assert checkpoint.keys[source] == (alias if held == "alias" else source)
    assert not checkpoint.extra


def test_tied_parameters_that_differ_are_refused(tmp_path):
    model = pico(LlamaForCausalLM, LLAMA_TIED)
    model.save_pretrained(tmp_path)
    rewritten(tmp_path, lambda tensors: tensors | {"lm_head.weight": torch.zeros(50, 32)})
    with pytest.raises(CheckpointError, match=r"embed_tokens.weight and lm_head.weight differ.*tie_word_embeddings"):
        opened(tmp_path, model)


def test_untied_model_keeps_both(tmp_path):
    model = pico(LlamaForCausalLM, LLAMA)
    model.save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, model)
    assert not torch.equal(checkpoint.tensor("lm_head.weight"), checkpoint.tensor("model.embed_tokens.weight"))


def test_live_model_that_lists_the_alias(tmp_path):
    saved(tmp_path, {"source": torch.ones(2)})
    assert open_checkpoint(tmp_path, {"alias": (2,)}, tied={"alias": "source"}).keys == {"alias": "source"}


# refusals


def test_not_a_directory(tmp_path):
    with pytest.raises(CheckpointError, match="hf download org/name --local-dir"):
        open_checkpoint("org/name", {})
    with pytest.raises(CheckpointError, match=r"does not exist.*Check the path\.$"):
        open_checkpoint(tmp_path / "nothing", {})
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match="is a file, not a directory"):
        open_checkpoint(tmp_path / "file", {})


def test_no_weights(tmp_path):
    (tmp_path / "tf_model.h5").touch()
    with pytest.raises(CheckpointError, match=r"holds no weights.*tf_model\.h5.*save_pretrained"):
        open_checkpoint(tmp_path, {})
    (tmp_path / "adapter_config.json").touch()
    with pytest.raises(CheckpointError, match=r"PEFT adapter.*merge_and_unload"):
        open_checkpoint(tmp_path, {})


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_no_config(tmp_path, text):
    saved(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "config.json").unlink()
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        open_checkpoint(tmp_path, {"a": (2,)})


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
    content = json.loads(index.read_text())
    first = next(iter(content["weight_map"].values()))
    index.write_text(json.dumps({"weight_map": content["weight_map"] | {"ghost": first}}))
    with pytest.raises(CheckpointError, match="do not hold: ghost in model-0"):
        opened(path, model)
    for text in ("{}", '{"weight_map": {"a": 1}}', "no json"):
        index.write_text(text)
        with pytest.raises(CheckpointError, match=r"index\.json"):
            opened(path, model)


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


def test_quantised_weights(tmp_path):
    for dtype in (torch.int8, torch.float8_e4m3fn):
        saved(tmp_path, {"a": torch.ones(2).to(dtype)})
        with pytest.raises(CheckpointError, match=r"a is torch\.\w+; the weights are quantised"):
            open_checkpoint(tmp_path, {"a": (2,)})


def test_shapes_and_vocabularies(tmp_path):
    pico(BertModel, BertConfig(**TINY | {"vocab_size": 53}, max_position_embeddings=16)).save_pretrained(tmp_path / "v")
    with pytest.raises(
        CheckpointError,
        match=r"v: embeddings\.word_embeddings\.weight has shape \(53, 32\).*has \(50, 32\): the vocabularies differ",
    ):
        opened(tmp_path / "v", BertModel(BERT))
    pico(BertModel, BertConfig(**TINY | {"intermediate_size": 48}, max_position_embeddings=16)).save_pretrained(
        tmp_path / "s"
    )
    with pytest.raises(CheckpointError, match=r"\(48, 32\).*\(64, 32\)\. Base and experts must be of one architecture"):
        opened(tmp_path / "s", BertModel(BERT))


# the base


def test_renamed_architecture_is_refused(tmp_path):
    model = pico(MixtralForCausalLM, MIXTRAL)
    model.save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, model)
    with pytest.raises(CheckpointError, match=r"mlp\.\w+.* renames or fuses .*not supported\s+yet"):
        check_base(checkpoint)


def test_only_a_pooler_may_be_missing(tmp_path):
    pico(BertForMaskedLM, BERT).save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, BertModel(BERT))
    assert set(checkpoint.missing) == {"pooler.dense.weight", "pooler.dense.bias"}
    assert "holds no pooler" in check_base(checkpoint)[0]
    with pytest.raises(CheckpointError, match=r"classifier\.weight.*AutoModel"):
        check_base(opened(tmp_path, BertForSequenceClassification(BERT)))


# the content hash


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


def test_hash_is_not_remembered_for_a_replaced_file_of_the_same_size_and_time(tmp_path):
    path, cache = saved(tmp_path / "model", TENSORS), tmp_path / "cache"
    time.sleep(0.15)
    first = open_checkpoint(path, {}, cache=cache)
    stat = (path / "model.safetensors").stat()
    saved(path, CHANGES[5])
    os.utime(path / "model.safetensors", ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert open_checkpoint(path, {}, cache=cache).sha256 != first.sha256
