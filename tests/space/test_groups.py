import math
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import SpaceError
from evomerge.space.groups import GRANULARITIES, make_groups

SMALL: dict[str, Any] = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 16}
MODELS = {
    "bert": lambda: tf.BertModel(tf.BertConfig(vocab_size=20, **SMALL)),
    "gpt2": lambda: tf.GPT2LMHeadModel(
        tf.GPT2Config(vocab_size=20, n_embd=8, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0)
    ),
    "llama": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, tie_word_embeddings=True, **SMALL)),
    "llama_untied": lambda: tf.LlamaForCausalLM(tf.LlamaConfig(vocab_size=20, **SMALL)),
    "vit": lambda: tf.ViTModel(tf.ViTConfig(image_size=32, **SMALL)),
    "dinov2": lambda: tf.Dinov2Model(tf.Dinov2Config(hidden_size=8, num_hidden_layers=3, num_attention_heads=2)),
    "clip": lambda: tf.CLIPModel(
        tf.CLIPConfig(
            text_config=SMALL | {"vocab_size": 20, "bos_token_id": 0, "eos_token_id": 1},
            vision_config=SMALL | {"num_hidden_layers": 4},
            projection_dim=8,
        )
    ),
    "t5": lambda: tf.T5ForConditionalGeneration(
        tf.T5Config(vocab_size=20, d_model=8, d_kv=4, d_ff=16, num_layers=3, num_heads=2)
    ),
}
LAYERS = {
    "bert": ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2", "head"],
    "gpt2": ["embeddings", "transformer.h.0", "transformer.h.1", "transformer.h.2", "head"],
    "llama": ["embeddings", "model.layers.0", "model.layers.1", "model.layers.2", "head"],
    "llama_untied": ["embeddings", "model.layers.0", "model.layers.1", "model.layers.2", "head"],
    "vit": ["embeddings", "layers.0", "layers.1", "layers.2", "head"],
    "dinov2": ["embeddings", "encoder.layer.0", "encoder.layer.1", "encoder.layer.2", "head"],
    "clip": [
        "embeddings",
        *(f"text_model.encoder.layers.{i}" for i in range(3)),
        *(f"vision_model.encoder.layers.{i}" for i in range(4)),
        "head",
    ],
    "t5": ["embeddings", *(f"encoder.block.{i}" for i in range(3)), *(f"decoder.block.{i}" for i in range(3)), "head"],
}


@pytest.fixture(scope="module")
def parameters():
    """Name -> shape of real models, in their own order, tied parameters once."""

    def build(make):
        with torch.device("meta"):
            return {name: tuple(p.shape) for name, p in make().named_parameters()}

    return {name: build(make) for name, make in MODELS.items()}


def members(groups):
    return {group.name: [span.parameter for span in group.spans] for group in groups}


def line_model(blocks=4):
    return {"emb.weight": (5, 2), **{f"blocks.{i}.mlp.{i}.weight": (2, 2) for i in range(blocks)}, "ln_f.weight": (2,)}


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("granularity", ["model", "blocks:2", "layer", "module", "tensor", "chunk:3", "line"])
def test_every_element_is_in_exactly_one_span(parameters, model, granularity):
    seen = {name: np.zeros(math.prod(shape), dtype=int) for name, shape in parameters[model].items()}
    groups = make_groups(granularity, parameters[model])
    for group in groups:
        assert group.spans
        for span in group.spans:
            assert span.start < span.stop
            seen[span.parameter][span.start : span.stop] += 1
    assert all((count == 1).all() for count in seen.values())
    assert len({group.name for group in groups}) == len(groups)


@pytest.mark.parametrize("model", MODELS)
def test_layers_of_real_models(parameters, model):
    groups = make_groups("layer", parameters[model])
    assert [group.name for group in groups] == LAYERS[model]
    assert groups == make_groups("line", parameters[model])
    depths = {group.name: group.depth for group in groups}
    assert depths["embeddings"] is None
    assert depths["head"] is None
    for axis in {name.rpartition(".")[0] for name in LAYERS[model]} - {""}:
        inside = [depth for name, depth in depths.items() if name.startswith(f"{axis}.")]
        assert inside == [i / (len(inside) - 1) for i in range(len(inside))]


def test_embeddings_and_head_of_real_models(parameters):
    def outside(model):
        found = members(make_groups("layer", parameters[model]))
        return found["embeddings"], found["head"]

    assert outside("gpt2") == (
        ["transformer.wte.weight", "transformer.wpe.weight"],
        ["transformer.ln_f.weight", "transformer.ln_f.bias"],
    )
    assert outside("llama") == (["model.embed_tokens.weight"], ["model.norm.weight"])
    assert outside("llama_untied")[1] == ["model.norm.weight", "lm_head.weight"]
    assert outside("bert")[1] == ["pooler.dense.weight", "pooler.dense.bias"]
    assert outside("t5") == (["shared.weight"], ["encoder.final_layer_norm.weight", "decoder.final_layer_norm.weight"])
    early, late = outside("clip")  # the vision tower comes after the text tower, and its embeddings are embeddings
    assert "vision_model.embeddings.patch_embedding.weight" in early
    assert "text_model.final_layer_norm.weight" in late
    assert "visual_projection.weight" in late


@pytest.mark.parametrize("model", ["bert", "gpt2", "llama", "vit", "t5", "clip"])
def test_modules_of_real_models_are_attention_mlp_and_norm(parameters, model):
    names = [group.name for group in make_groups("module", parameters[model])]
    kinds = {name.rpartition(".")[2] for name in names if name not in ("embeddings", "head")}
    assert kinds == {"attention", "mlp", "norm"}
    assert len(names) == 3 * (len(LAYERS[model]) - 2) + 2


def test_modules_of_bert_gpt2_and_dinov2(parameters):
    def stems(model, group):
        return sorted({name.rpartition(".")[0] for name in members(make_groups("module", parameters[model]))[group]})

    block = "encoder.layer.1"
    assert stems("bert", f"{block}.attention") == [
        f"{block}.attention.output.dense",
        *(f"{block}.attention.self.{part}" for part in ("key", "query", "value")),
    ]
    assert stems("bert", f"{block}.norm") == [f"{block}.attention.output.LayerNorm", f"{block}.output.LayerNorm"]
    assert stems("bert", f"{block}.mlp") == [f"{block}.intermediate.dense", f"{block}.output.dense"]
    assert stems("gpt2", "transformer.h.0.norm") == ["transformer.h.0.ln_1", "transformer.h.0.ln_2"]
    assert stems("gpt2", "transformer.h.0.mlp") == ["transformer.h.0.mlp.c_fc", "transformer.h.0.mlp.c_proj"]
    assert stems("dinov2", f"{block}.other") == [f"{block}.layer_scale1", f"{block}.layer_scale2"]
    groups = make_groups("module", parameters["t5"])
    assert "decoder.block.0.layer.1.EncDecAttention.q.weight" in members(groups)["decoder.block.0.attention"]


def test_blocks_are_contiguous_runs_on_every_axis(parameters):
    names = [group.name for group in make_groups("blocks:2", parameters["clip"])]
    text, vision = "text_model.encoder.layers", "vision_model.encoder.layers"
    assert names == ["embeddings", f"{text}.0-1", f"{text}.2", f"{vision}.0-1", f"{vision}.2-3", "head"]
    deep = {f"h.{i}.mlp.weight": (2, 2) for i in range(12)}
    groups = make_groups("blocks:5", deep)
    assert [group.name for group in groups] == ["h.0-2", "h.3-5", "h.6-7", "h.8-9", "h.10-11"]
    assert groups[0].depth == pytest.approx(1 / 11)


def test_depth_is_read_by_whole_tokens():
    names = [
        "emb.0.weight",
        "blocks.1.mlp.0.weight",
        "blocks.10.mlp.0.weight",
        "blocks.2.layers.7.weight",
        "blocks.0.w",
    ]
    groups = make_groups("layer", dict.fromkeys(names, (2,)))
    assert members(groups) == {
        "embeddings": ["emb.0.weight"],
        "blocks.0": ["blocks.0.w"],
        "blocks.1": ["blocks.1.mlp.0.weight"],
        "blocks.2": ["blocks.2.layers.7.weight"],
        "blocks.10": ["blocks.10.mlp.0.weight"],
    }
    assert [group.depth for group in groups] == [None, 0, 1 / 3, 2 / 3, 1]


@pytest.mark.parametrize("container", ["layers", "layer", "h", "blocks", "block", "resblocks"])
def test_every_known_container_makes_blocks(container):
    shapes = {f"tower.{container}.{i}.attn.weight": (2, 2) for i in range(2)}
    assert [group.name for group in make_groups("layer", shapes)] == [f"tower.{container}.0", f"tower.{container}.1"]


def test_chunks_are_split_as_by_array_split():
    groups = make_groups("chunk:4", {"w": (3, 3), "b": (2,), "scale": ()})
    assert [group.name for group in groups] == [
        "w[0:3]",
        "w[3:5]",
        "w[5:7]",
        "w[7:9]",
        "b[0:1]",
        "b[1:2]",
        "scale[0:1]",
    ]


@given(st.integers(1, 200), st.integers(1, 50))
@settings(max_examples=50, deadline=None)
def test_chunk_sizes_are_those_of_array_split(size, n):
    sizes = [group.spans[0].stop - group.spans[0].start for group in make_groups(f"chunk:{n}", {"w": (size,)})]
    assert sizes == [len(part) for part in np.array_split(np.arange(size), n) if len(part)]


def test_model_is_one_group_and_tensor_one_per_parameter():
    shapes = line_model()
    assert members(make_groups("model", shapes)) == {"model": list(shapes)}
    assert members(make_groups("tensor", shapes)) == {name: [name] for name in shapes}
    assert make_groups("tensor", shapes)[2].depth == 1 / 3


@pytest.mark.parametrize(
    ("granularity", "message"),
    [
        ("layers", "did you mean 'layer'"),
        ("block:4", "did you mean 'blocks:n'"),
        ("nonsense", "There are model, blocks:n"),
        ("blocks", "blocks:4 instead of 'blocks'"),
        ("blocks:0", "1 or more"),
        ("chunk:two", "chunk:4 instead"),
        ("layer:2", "takes no number"),
        ("blocks:5", r"blocks has only 4 blocks. Write blocks:4 or fewer"),
    ],
)
def test_a_wrong_granularity_says_what_to_write(granularity, message):
    with pytest.raises(SpaceError, match=message):
        make_groups(granularity, line_model())


def test_a_model_without_blocks_or_parameters_says_so():
    with pytest.raises(SpaceError, match=r"stem\.weight.*Write tensor .* or model"):
        make_groups("layer", {"stem.weight": (2,), "fc.weight": (2,)})
    with pytest.raises(SpaceError, match="needs parameters"):
        make_groups("model", {"empty": (0, 3)})


def test_granularities_are_all_known():
    for granularity in GRANULARITIES:
        assert make_groups(granularity.replace(":n", ":2"), line_model())
