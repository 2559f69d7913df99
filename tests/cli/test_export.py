"""The weights of a merged directory: bit for bit the live model that was scored, for every kind of file and model."""

from __future__ import annotations

import json
import shutil
from itertools import cycle
from pathlib import Path

import pytest
import torch
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    BertForMaskedLM,
    LlamaConfig,
    LlamaForCausalLM,
    MarianConfig,
    MarianMTModel,
)

from evomerge.common.errors import CheckpointError, ConfigError
from tests.kit.merging import (
    ADDED,
    CAUSAL,
    EXPERTS,
    METHODS,
    live_merge,
    loaded,
    make_recipe,
    names,
    places,
    same,
    save_family,
    tensors_of,
    write,
)
from tests.kit.models import BERT, LLAMA, LLAMA_TIED, pico, rewritten, to_bin
from tests.processes import merge_memory
from tests.processes.waiting import exit_code, forked

MIB = 2**20
MARIAN = MarianConfig(
    **{"vocab_size": 50, "d_model": 16, "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0},
    **{f"{part}_{what}": n for part in ("encoder", "decoder") for what, n in (("layers", 1), ("attention_heads", 2))},
    **{"encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 32},
)
MASKED = "AutoModelForMaskedLM"
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Three families of a pico Llama: tied, untied, and untied in bfloat16 shards."""
    path = tmp_path_factory.mktemp("llamas")
    save_family(path / "tied", pico(LlamaForCausalLM, LLAMA_TIED), frozen="norm")
    save_family(path / "untied", pico(LlamaForCausalLM, LLAMA))
    save_family(path / "sharded", pico(LlamaForCausalLM, LLAMA).bfloat16(), frozen="q_proj", max_shard_size="30KB")
    return path


# the numbers


GRANULARITIES = ("layer", "tensor", "chunk:4", "line")
"""Each with one method here: test_rebuild.py holds every method with every granularity to the bit."""


@pytest.mark.parametrize(("method", "granularity"), list(zip(METHODS, cycle(GRANULARITIES), strict=False)))
def test_the_pico_suite(pico_suite, tmp_path, method, granularity):
    base, experts = pico_suite.base, dict(pico_suite.experts)
    recipe = make_recipe(base, experts, method, granularity)
    out = write(recipe, tmp_path, tmp_path / "out")
    model, missing, unexpected = loaded(out)
    assert (missing, unexpected) == (POOLER, set())  # the base has none either
    assert same(model, live_merge(recipe, base, experts, tmp_path / "cache"))
    assert names(out) == {*names(base), *ADDED}
    tokens = AutoTokenizer.from_pretrained(out)("the ant")
    assert tokens == AutoTokenizer.from_pretrained(base)("the ant")


@pytest.mark.parametrize("granularity", ["tensor", "line"])
@pytest.mark.parametrize("method", ["linear", "dare_ties"])
@pytest.mark.parametrize("family", ["tied", "untied", "sharded"])
def test_llamas(llamas, tmp_path, family, method, granularity):
    path = llamas / family
    recipe = make_recipe(path / "base", places(path), method, granularity, CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out")
    model, missing, unexpected = loaded(out, CAUSAL)
    assert (missing, unexpected) == (set(), set())
    assert same(model, live_merge(recipe, path / "base", places(path), tmp_path / "cache"))
    tied = family == "tied"
    assert (model.lm_head.weight is model.model.embed_tokens.weight) == tied
    assert ("lm_head.weight" in tensors_of(out)) != tied
    assert {file.name for file in out.glob("*.safetensors*")} == {
        file.name for file in (path / "base").glob("*.safetensors*")
    }
    held, wanted = tensors_of(out), tensors_of(path / "base")
    assert {key: (t.dtype, t.shape) for key, t in held.items()} == {
        key: (t.dtype, t.shape) for key, t in wanted.items()
    }


@pytest.mark.parametrize("method", ["linear", "ties_frozen"])
def test_images_under_the_names_of_earlier_years(vision_family, tmp_path, method):
    base, experts = vision_family / "base", {name: vision_family / name for name in ("digits", "letters")}
    recipe = make_recipe(base, experts, method, "layer")
    out = write(recipe, tmp_path, tmp_path / "out")
    model, missing, unexpected = loaded(out)
    assert (missing, unexpected) == (set(), set())
    assert same(model, live_merge(recipe, base, experts, tmp_path / "cache"))
    assert set(tensors_of(out)) == set(tensors_of(base))
    assert any("attention.attention.query" in key for key in tensors_of(out))
    assert AutoImageProcessor.from_pretrained(out, backend="pil").size == {"shortest_edge": 28}


def test_an_index_says_what_the_shards_hold(llamas, tmp_path):
    path = llamas / "sharded"
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out")
    ours, theirs = (json.loads((p / "model.safetensors.index.json").read_text()) for p in (out, path / "base"))
    assert ours["weight_map"] == theirs["weight_map"]
    assert list(ours["weight_map"]) == sorted(ours["weight_map"])
    assert ours["metadata"]["total_size"] == theirs["metadata"]["total_size"]


def test_other_shards(llamas, tmp_path):
    path = llamas / "untied"
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    whole = tensors_of(write(recipe, tmp_path, tmp_path / "whole"))
    for size, least in {"40KB": 2, "1 MB": 1}.items():
        out = write(recipe, tmp_path, tmp_path / size, max_shard_size=size)
        files = list(out.glob("*.safetensors"))
        assert (len(files) > 1) == (least > 1)
        assert (out / "model.safetensors.index.json").exists() == (least > 1)
        assert {key: t.tolist() for key, t in tensors_of(out).items()} == {key: t.tolist() for key, t in whole.items()}
        assert same(loaded(out, CAUSAL)[0], dict(loaded(tmp_path / "whole", CAUSAL)[0].named_parameters()))
    joined = make_recipe(llamas / "sharded" / "base", places(llamas / "sharded"), auto_class=CAUSAL)
    out = write(joined, tmp_path, tmp_path / "joined", max_shard_size="1GB")
    assert names(out) & {"model.safetensors", "model.safetensors.index.json"} == {"model.safetensors"}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("family", ["tied", "sharded"])
def test_a_base_of_earlier_years_becomes_safetensors(llamas, tmp_path, family, old):
    path = shutil.copytree(llamas / family, tmp_path / "family")
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    expected = write(recipe, tmp_path, tmp_path / "expected")
    for name in ("base", *EXPERTS):
        to_bin(path / name, old)
    out = write(recipe, tmp_path, tmp_path / "out")
    assert names(out) == names(expected)
    found = tensors_of(out)
    assert all(torch.equal(found[key], tensor) for key, tensor in tensors_of(expected).items())


# dtypes


def test_another_dtype(llamas, tmp_path):
    path = llamas / "untied"
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out", dtype="bfloat16")
    expected = live_merge(recipe, path / "base", places(path), tmp_path / "cache")
    model, missing, _ = loaded(out, CAUSAL)
    assert missing == set()
    assert same(model, {name: tensor.bfloat16() for name, tensor in expected.items()})
    assert json.loads((out / "config.json").read_text()) == {
        **json.loads((path / "base" / "config.json").read_text()),
        "dtype": "bfloat16",
    }


@pytest.mark.parametrize(("files", "said"), [("bfloat16", "float32"), ("float32", "bfloat16"), ("float32", None)])
def test_what_config_and_files_say_may_differ(llamas, tmp_path, files, said):
    """transformers loads what the config says; the live model that was scored had that."""
    path = shutil.copytree(llamas / "untied", tmp_path / "family")
    for name in ("base", *EXPERTS):
        rewritten(path / name, lambda tensors: {key: t.to(getattr(torch, files)) for key, t in tensors.items()})
        config = json.loads((path / name / "config.json").read_text())
        config.pop("dtype")
        (path / name / "config.json").write_text(json.dumps(config | ({"dtype": said} if said else {})))
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out")
    assert same(loaded(out, CAUSAL)[0], live_merge(recipe, path / "base", places(path), tmp_path / "cache"))


def test_what_a_narrow_dtype_cannot_hold_is_an_error(llamas, tmp_path):
    path = llamas / "untied"
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    rows = recipe.coefficients["weight"]
    name = next(name for name in rows if "mlp" in name)
    rows[name] = dict.fromkeys(rows[name], 1e6)
    message = r"mlp\S+ of the merged model is not finite in float16: .*float16 ends at 65504: write --dtype bfloat16"
    with pytest.raises(CheckpointError, match=message):
        write(recipe, path, tmp_path / "out", dtype="float16")
    assert not (tmp_path / "out").exists()
    rows[name] = dict.fromkeys(rows[name], 1e39)
    with pytest.raises(ConfigError, match=r"coefficients\.weight has a number that float32 cannot hold"):
        write(recipe, path, tmp_path / "out")


def test_a_source_that_is_not_finite(llamas, tmp_path):
    path = shutil.copytree(llamas / "untied", tmp_path / "family")
    rewritten(path / "red", lambda held: {**held, "model.norm.weight": held["model.norm.weight"] / 0})
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    with pytest.raises(
        CheckpointError, match=r"model\.norm\.weight of the merged model is not finite in float32: a coeff"
    ):
        write(recipe, path, tmp_path / "out")


# what is no parameter of the live model


@pytest.mark.parametrize("auto_class", ["AutoModelForSeq2SeqLM", "AutoModel"])
def test_positions_that_are_computed(tmp_path, auto_class, capsys):
    """No file of a MarianMT holds its positions; its bias of logits is a buffer, and its three embeddings are one."""
    model = pico(MarianMTModel, MARIAN)
    for part in (model.model.encoder, model.model.decoder):
        part.embed_positions.weight.data.copy_(part.embed_positions.create_weight())
    experts = save_family(tmp_path, model, frozen="embed_positions")
    assert not any("embed_positions" in key for key in tensors_of(tmp_path / "base"))
    recipe = make_recipe(tmp_path / "base", experts, auto_class=auto_class)
    out = write(recipe, tmp_path, tmp_path / "out")
    found, missing, _ = loaded(out, auto_class)
    assert all("embed_positions" in name for name in missing)
    assert same(found, live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache"))
    assert set(tensors_of(out)) == set(tensors_of(tmp_path / "base"))
    whole = MarianMTModel.from_pretrained(out)
    assert whole.lm_head.weight is whole.model.shared.weight
    assert torch.equal(whole.model.encoder.embed_positions.weight, model.model.encoder.embed_positions.weight)
    said = "final_logits_bias: these tensors are the base's" in (out / "README.md").read_text()
    assert said == (auto_class == "AutoModel")  # of the other class it is a buffer


def test_heads_and_buffers_stay_the_bases(tmp_path):
    """The live model is headless; the base keeps a head, a mask with -inf, and position ids."""
    experts = save_family(tmp_path, pico(BertForMaskedLM, BERT))
    mask = torch.tensor([0.0, float("-inf")])
    ids = torch.arange(16)[None]
    rewritten(tmp_path / "base", lambda held: {**held, "mask": mask, "bert.embeddings.position_ids": ids})
    recipe = make_recipe(tmp_path / "base", experts)
    out = write(recipe, tmp_path, tmp_path / "out")
    found, base = tensors_of(out), tensors_of(tmp_path / "base")
    assert found.keys() == base.keys()
    kept = {key for key in found if torch.equal(found[key], base[key])}
    assert {"mask", "bert.embeddings.position_ids", "cls.predictions.bias"} < kept
    assert "bert.encoder.layer.0.output.dense.weight" not in kept
    model, missing, _ = loaded(out, "AutoModelForMaskedLM")
    assert missing == set()
    expected = live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache")
    assert same(model.bert, {name: t for name, t in expected.items() if "pooler" not in name})
    cast = tensors_of(write(recipe, tmp_path, tmp_path / "cast", dtype="float16"))
    assert torch.equal(cast["mask"], mask.half())
    assert torch.equal(cast["bert.embeddings.position_ids"], ids)


def test_an_alias_in_the_file_is_dropped(llamas, tmp_path):
    path = shutil.copytree(llamas / "tied", tmp_path / "family")
    name = "model.embed_tokens.weight"
    rewritten(path / "base", lambda held: {**held, "lm_head.weight": held[name].clone()})
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out")
    assert "lm_head.weight" not in tensors_of(out)
    model, missing, _ = loaded(out, CAUSAL)
    assert missing == set()
    assert same(model, live_merge(recipe, path / "base", places(path), tmp_path / "cache"))


def test_a_file_that_has_only_the_alias(llamas, tmp_path):
    path = shutil.copytree(llamas / "tied", tmp_path / "family")
    rewritten(
        path / "base",
        lambda held: {key.replace("model.embed_tokens", "lm_head"): tensor for key, tensor in held.items()},
    )
    recipe = make_recipe(path / "base", places(path), auto_class=CAUSAL)
    out = write(recipe, tmp_path, tmp_path / "out")
    assert set(tensors_of(out)) == set(tensors_of(path / "base"))
    model, missing, _ = loaded(out, CAUSAL)
    assert missing == set()
    assert same(model, live_merge(recipe, path / "base", places(path), tmp_path / "cache"))


def test_a_tied_copy_in_a_head_does_not_untie_it(tmp_path):
    """The merge is of a headless model, and the base's file holds the head's weight, which is that of the words."""
    experts = save_family(tmp_path, pico(BertForMaskedLM, BERT), frozen="nothing")
    words, alias = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    rewritten(tmp_path / "base", lambda held: {**held, alias: held[words].clone()})
    out = write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "out")
    assert alias not in tensors_of(out)
    model, missing, _ = loaded(out, "AutoModelForMaskedLM")
    assert missing == set()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    rewritten(tmp_path / "base", lambda held: {**held, alias: held[words] + 1})  # another head: it stays
    out = write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "other")
    assert torch.equal(tensors_of(out)[alias], tensors_of(tmp_path / "base")[alias])


@pytest.mark.parametrize("architectures", [None, [], ["BertModel"], ["BertOfMyOwn"], ["BertForMaskedLM"]])
def test_a_config_need_not_name_the_class_that_ties_the_head(tmp_path, architectures):
    """Without the class's name, a stale copy of the base's words was the head of whoever loaded the merged model."""
    experts = save_family(tmp_path, pico(BertForMaskedLM, BERT), frozen="nothing")
    words, alias = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    rewritten(tmp_path / "base", lambda held: {**held, alias: held[words].clone()})
    config = json.loads((tmp_path / "base" / "config.json").read_text()) | {"architectures": architectures}
    (tmp_path / "base" / "config.json").write_text(json.dumps(config))
    model, missing, _ = loaded(write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "out"), MASKED)
    assert missing == set()
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight
    assert not torch.equal(model.cls.predictions.decoder.weight, tensors_of(tmp_path / "base")[words])


@pytest.mark.parametrize(("ties", "tied_expert"), [(True, False), (False, True), (None, False)])
def test_ties_are_those_of_the_live_model(tmp_path, ties, tied_expert):
    """Whether words and head are one is what transformers makes of config and files: two heads in spite of the config,
    an untied base with a tied expert, a config that says nothing."""
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA), frozen="nothing")
    for name in ("base", *experts):
        config = json.loads((tmp_path / name / "config.json").read_text())
        said = {} if ties is None else {"tie_word_embeddings": ties}
        if tied_expert and name == "red":
            said = {"tie_word_embeddings": True}
            rewritten(tmp_path / name, lambda held: {key: t for key, t in held.items() if key != "lm_head.weight"})
        del config["tie_word_embeddings"]
        (tmp_path / name / "config.json").write_text(json.dumps(config | said))
    recipe = make_recipe(tmp_path / "base", experts, auto_class=CAUSAL)
    model, missing, _ = loaded(write(recipe, tmp_path, tmp_path / "out"), CAUSAL)
    assert missing == set()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert same(model, live_merge(recipe, tmp_path / "base", experts, tmp_path / "cache"))


def test_a_tied_copy_of_another_dtype_is_one_where_transformers_loads_both_alike(tmp_path):
    experts = save_family(tmp_path, pico(BertForMaskedLM, BERT).bfloat16(), frozen="nothing")
    words, alias = "bert.embeddings.word_embeddings.weight", "cls.predictions.decoder.weight"
    rewritten(tmp_path / "base", lambda held: {**held, alias: held[words].float()})
    model, _, _ = loaded(write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "out"), MASKED)
    assert model.cls.predictions.decoder.weight is model.bert.embeddings.word_embeddings.weight


def test_a_head_that_was_not_merged_is_named(tmp_path, capsys):
    """An untied head that equals the words of the base is no copy: it stays, and people are told whose it is."""
    experts = save_family(tmp_path, pico(LlamaForCausalLM, LLAMA), frozen="nothing")
    words = "model.embed_tokens.weight"
    rewritten(tmp_path / "base", lambda held: {**held, "lm_head.weight": held[words].clone()})
    out = write(make_recipe(tmp_path / "base", experts), tmp_path, tmp_path / "out")
    assert torch.equal(tensors_of(out)["lm_head.weight"], tensors_of(tmp_path / "base")[words])
    note = "lm_head.weight: these tensors are the base's, since AutoModel, which was merged, has no such parameters."
    said = capsys.readouterr().err.splitlines()
    (line,) = [line for line in said if "lm_head.weight" in line and "expert" not in line]  # it is named once
    assert line.startswith(f"note: {note}")
    assert f"- {note}" in (out / "README.md").read_text()
    with_head = make_recipe(tmp_path / "base", experts, auto_class=CAUSAL)
    assert "these tensors" not in (write(with_head, tmp_path, tmp_path / "all") / "README.md").read_text()


# memory


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux does")
def test_it_holds_the_largest_shard_and_little_else(tmp_path):
    """160 MiB in shards of 38, of which one tensor has 31: its deltas of three experts alone would be 94 MiB."""
    config = LlamaConfig(
        hidden_size=512, num_hidden_layers=8, num_attention_heads=8, intermediate_size=1408, vocab_size=16000
    )
    with torch.random.fork_rng():
        model = pico(LlamaForCausalLM, config)
    experts = save_family(tmp_path, model, frozen="nothing", max_shard_size="40MB")
    del model
    recipe = make_recipe(tmp_path / "base", experts, auto_class=CAUSAL)
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml())
    held = tmp_path / "held.json"
    with forked(merge_memory.merge, tmp_path / "recipe.yaml", tmp_path / "out", held) as process:
        assert exit_code(process) == 0
    said = json.loads(held.read_text())
    sizes = [file.stat().st_size for file in (tmp_path / "out").glob("*.safetensors")]
    assert len(sizes) == 5
    assert sum(sizes) > 150 * MIB
    assert max(sizes) < 40 * MIB
    assert said["samples"] > 100
    assert said["peak"] - said["before"] < max(sizes) + 56 * MIB  # 24, and the compiler, which is loaded on the way
