import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertForSequenceClassification,
    BertModel,
    Dinov2Config,
    Dinov2ForImageClassification,
    Dinov2Model,
    GPT2LMHeadModel,
    GPT2Model,
    LlamaForCausalLM,
    LlamaModel,
    MixtralForCausalLM,
    T5ForConditionalGeneration,
    ViTConfig,
    ViTForImageClassification,
    ViTModel,
)

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import Checkpoint, open_checkpoint
from evomerge.models.completeness import check_base
from evomerge.models.matching import Layout
from tests.kit.models import BERT, GPT2, LLAMA, LLAMA_TIED, MIXTRAL, T5, TINY, opened, pico, rewritten, saved, to_bin
from tests.kit.vision import SIZES

DINOV2 = Dinov2Config(**SIZES)
VIT = ViTConfig(**SIZES, intermediate_size=32)
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
    (Dinov2Model, DINOV2),
    (Dinov2ForImageClassification, DINOV2),
    (ViTModel, VIT),
    (ViTForImageClassification, VIT),
]
VISION = [(Dinov2Model, Dinov2ForImageClassification, DINOV2), (ViTModel, ViTForImageClassification, VIT)]


def holds(checkpoint: Checkpoint, model) -> bool:
    """Whether every parameter of the model is in the checkpoint, bit for bit."""
    return not checkpoint.missing and all(
        torch.equal(checkpoint.tensor(name), parameter) for name, parameter in model.named_parameters()
    )


FORMATS = [
    (cls, config, ("50GB", "20KB")[(i + j) % 2], kind)
    for i, (cls, config) in enumerate(ARCHITECTURES)
    for j, kind in enumerate(("safetensors", "bin", "old bin"))
]
"""Every architecture with every kind of file, in one file or in several."""


@pytest.mark.parametrize(("cls", "config", "shard", "kind"), FORMATS, ids=lambda x: getattr(x, "__name__", None))
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
    check_base(checkpoint)
    assert checkpoint.config["model_type"] == config.model_type


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
    assert torch.equal(checkpoint.tensors["classifier.weight"], whole.classifier.weight)


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
    saved(tmp_path, {"model_a.weight": torch.ones(3), "model.b.weight": torch.ones(3)})
    checkpoint = open_checkpoint(tmp_path, {"a.weight": (3,), "b.weight": (3,)}, Layout(prefix="model"))
    assert checkpoint.keys == {"b.weight": "model.b.weight"}
    assert checkpoint.missing == ("a.weight",)
    assert checkpoint.extra == ("model_a.weight",)


@pytest.mark.parametrize("other", [torch.ones(3), torch.zeros(3)], ids=["equal", "different"])
def test_two_tensors_for_one_parameter(tmp_path, other):
    saved(tmp_path, {"model.b.weight": torch.ones(3), "b.weight": other})
    if other.any():
        assert open_checkpoint(tmp_path, {"b.weight": (3,)}, Layout(prefix="model")).keys["b.weight"]
        return
    with pytest.raises(CheckpointError, match=r"b\.weight both stand for b\.weight and differ"):
        open_checkpoint(tmp_path, {"b.weight": (3,)}, Layout(prefix="model"))


def test_one_key_never_serves_two_parameters(tmp_path):
    saved(tmp_path, {"norm.weight": torch.ones(3), "layers.0.weight": torch.ones(3)})
    shapes = {"model.layers.0.weight": (3,), "model.norm.weight": (3,), "norm.weight": (3,)}
    checkpoint = open_checkpoint(tmp_path, shapes, Layout(prefix="model"))
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
    check_base(checkpoint)


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
    assert open_checkpoint(tmp_path, {"alias": (2,)}, Layout(tied={"alias": "source"})).keys == {"alias": "source"}


@pytest.mark.parametrize("text", [None, "{", "[]"])
def test_no_config(tmp_path, text):
    saved(tmp_path, {"a": torch.ones(2)})
    (tmp_path / "config.json").unlink()
    if text:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
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


def test_tensors_that_are_fused_at_load_are_held_as_the_model_has_them(tmp_path):
    model = pico(MixtralForCausalLM, MIXTRAL)
    model.save_pretrained(tmp_path)
    assert holds(opened(tmp_path, model), model)


def test_only_a_pooler_may_be_missing(tmp_path):
    pico(BertForMaskedLM, BERT).save_pretrained(tmp_path)
    checkpoint = opened(tmp_path, BertModel(BERT))
    assert set(checkpoint.missing) == {"pooler.dense.weight", "pooler.dense.bias"}
    check_base(checkpoint)
    with pytest.raises(CheckpointError, match=r"classifier\.weight.*AutoModel"):
        check_base(opened(tmp_path, BertForSequenceClassification(BERT)))


# names of earlier years


@pytest.mark.parametrize("legacy", [True, False])
@pytest.mark.parametrize(("bare", "classifier", "config"), VISION)
def test_vision_models_under_either_naming(tmp_path, bare, classifier, config, legacy):
    """With the prefix on either side, on both or on neither."""
    for file in (bare, classifier):
        whole = pico(file, config)
        whole.save_pretrained(tmp_path / file.__name__)
        if not legacy:
            tensors = {name: tensor.contiguous() for name, tensor in whole.state_dict().items()}
            save_file(tensors, tmp_path / file.__name__ / "model.safetensors")
        for live in (bare, classifier):
            checkpoint = opened(tmp_path / file.__name__, live(config))
            expected = dict(whole.base_model.named_parameters())
            for name, key in checkpoint.keys.items():
                inner = name.removeprefix(f"{whole.base_model_prefix}.")
                tensor = expected[inner] if inner in expected else whole.get_parameter(name)
                assert torch.equal(checkpoint.tensor(name), tensor)
                assert key in load_file(tmp_path / file.__name__ / "model.safetensors")
            assert all(name.startswith(("classifier", "pooler")) for name in checkpoint.missing)
            queries = [key for name, key in checkpoint.keys.items() if name.endswith("q_proj.weight")]
            assert len(queries) == 2
            assert all(key.endswith("attention.query.weight" if legacy else "q_proj.weight") for key in queries)


@pytest.mark.parametrize("legacy", [True, False])
def test_a_gated_dinov2_whose_files_fuse_what_the_model_has(tmp_path, legacy):
    """One tensor of the file is split to two parameters, and they are fused to it again."""
    model = pico(Dinov2Model, Dinov2Config(**SIZES, use_swiglu_ffn=True))
    model.save_pretrained(tmp_path, save_original_format=legacy)
    checkpoint = opened(tmp_path, model)
    assert holds(checkpoint, model)
    assert bool(checkpoint.conversions) == legacy
    for one in checkpoint.conversions:
        back = one.write({name: checkpoint.tensor(name) for name in one.names})
        assert all(torch.equal(back[key], checkpoint.tensors[key]) for key in one.sources)
