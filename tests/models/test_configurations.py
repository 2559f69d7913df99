from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from transformers import AutoConfig, BertConfig, GPT2Config, LlamaConfig, MixtralConfig, Qwen2Config, RobertaConfig

from evomerge.common.errors import CheckpointError
from evomerge.models.configurations import Configuration, compare_configurations, configuration_notes
from tests.kit.models import TINY

LLAMA = LlamaConfig(**TINY, num_key_value_heads=2)
QWEN = Qwen2Config(**TINY | {"num_hidden_layers": 6}, num_key_value_heads=2, sliding_window=8)


@pytest.fixture
def pair(tmp_path: Path):
    """Write the config.json of a base and of an expert, the latter changed; return both directories."""

    def write(config, **changes) -> tuple[Path, Path]:
        for name, more in (("base", {}), ("expert", changes)):
            config.save_pretrained(tmp_path / name)
            file = tmp_path / name / "config.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | more))
        return tmp_path / "base", tmp_path / "expert"

    return write


def notes_of(base: Path, expert: Path) -> list[str]:
    return configuration_notes(Configuration(base), Configuration(expert), "expert a")


@pytest.mark.parametrize(
    ("config", "changes", "said"),
    [
        (
            LLAMA,
            {"rope_parameters": {"rope_theta": 1e5, "rope_type": "default"}},
            "rope_parameters.rope_theta is 100000.0 there and 10000.0",
        ),
        (
            LLAMA,
            {"rope_parameters": None, "rope_theta": 1e5},
            "rope_parameters.rope_theta is 100000.0 there and 10000.0",
        ),
        (LLAMA, {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_parameters.factor is 2.0 there and null"),
        (LLAMA, {"rms_norm_eps": 0.1}, "rms_norm_eps is 0.1 there and 1e-06"),
        (LLAMA, {"hidden_act": "gelu"}, 'hidden_act is "gelu" there and "silu"'),
        (LLAMA, {"num_attention_heads": 4, "num_key_value_heads": 4}, "num_attention_heads is 4 there and 2"),
        (LLAMA, {"attention_bias": True}, "attention_bias is true there and false"),
        (LLAMA, {"attention_dropout": 10.0}, "attention_dropout is 10.0 there and 0.0"),  # with which nothing loads
        (LLAMA, {"a_setting_of_next_year": 3}, "a_setting_of_next_year is 3 there and null"),
        (LLAMA, {"model_type": "mistral"}, 'model_type is "mistral" there and "llama"'),
        (
            QWEN,
            {"layer_types": ["full_attention"] * 5 + ["sliding_attention"]},
            'layer_types[5] is "sliding_attention"',
        ),
        (BertConfig(**TINY), {"layer_norm_eps": 0.1}, "layer_norm_eps is 0.1 there and 1e-12"),
        (BertConfig(**TINY), {"is_decoder": True}, "is_decoder is true there and false"),
        (RobertaConfig(**TINY), {"pad_token_id": 2}, "pad_token_id is 2 there and 1"),  # positions count from it
    ],
)
def test_what_changes_the_forward_pass_is_named_with_both_values(pair, config, changes, said):
    notes = notes_of(*pair(config, **changes))
    assert len(notes) == 1 or "eos_token_id" not in notes[0]
    assert notes[0].startswith("expert a was made for another configuration than the base: ")
    assert f"{said} in the base" in notes[0] or said in notes[0]
    assert all(one.forward for one in compare_configurations(*map(Configuration, pair(config, **changes))))


def test_nested_settings(pair):
    config = AutoConfig.for_model("llava")
    changed = config.to_dict()["vision_config"] | {"layer_norm_eps": 0.1}
    (note,) = notes_of(*pair(config, vision_config=changed))
    assert "vision_config.layer_norm_eps is 0.1 there and 1e-05 in the base" in note


@pytest.mark.parametrize(
    ("config", "changes"),
    [
        (LLAMA, {"rope_parameters": {"rope_theta": 10000.0}}),
        (LLAMA, {"rope_parameters": None, "rope_theta": 10000, "rope_scaling": None}),
        (LLAMA, {"head_dim": 16, "mlp_bias": False, "tie_word_embeddings": False, "max_position_embeddings": 2048}),
        (MixtralConfig(**TINY, num_key_value_heads=2), {"head_dim": 16}),
        (GPT2Config(n_embd=32, n_head=2, n_layer=2), {"n_inner": 128}),
        (
            LLAMA,
            {"attention_dropout": 0.1, "initializer_range": 1.0, "use_cache": False, "transformers_version": "4.1"},
        ),
        (
            LLAMA,
            {
                "architectures": ["LlamaModel"],
                "_name_or_path": "x/y",
                "torch_dtype": "float32",
                "output_attentions": True,
            },
        ),
        (BertConfig(**TINY), {"id2label": {"0": "a", "1": "b", "2": "c"}, "problem_type": "regression"}),
        (BertConfig(**TINY), {"hidden_dropout_prob": 0.0, "classifier_dropout": 0.3, "finetuning_task": "mnli"}),
    ],
)
def test_what_changes_nothing_is_not_said(pair, config, changes):
    base, expert = pair(config, **changes)
    written = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps({key: v for key, v in written.items() if key not in changes}))
    assert (base / "config.json").read_bytes() != (expert / "config.json").read_bytes()
    assert notes_of(base, expert) == []


def test_every_setting_that_is_written_out_as_it_is_by_default(pair):
    for config in (LLAMA, QWEN, BertConfig(**TINY), GPT2Config(n_embd=32, n_head=2)):
        base, expert = pair(config)
        (base / "config.json").write_text(config.to_json_string(use_diff=True))
        (expert / "config.json").write_text(config.to_json_string(use_diff=False))
        assert (base / "config.json").read_bytes() != (expert / "config.json").read_bytes()
        assert notes_of(base, expert) == []


def test_ties_and_tokens_are_said_by_themselves(pair):
    (note,) = notes_of(*pair(LLAMA, tie_word_embeddings=True))
    assert "tie_word_embeddings is true there and false in the base" in note
    (note,) = notes_of(*pair(LLAMA, eos_token_id=[2, 7], pad_token_id=0))
    assert note.startswith("expert a names other tokens in its config.json: ")
    assert "eos_token_id is [2, 7] there and 2 in the base" in note
    assert "pad_token_id is 0 there and null in the base" in note


def test_how_text_is_generated(pair):
    base, expert = pair(LLAMA)
    for path, settings in (
        (base, {"eos_token_id": 2}),
        (expert, {"eos_token_id": [2, 5], "temperature": 0.6, "do_sample": True}),
    ):
        (path / "generation_config.json").write_text(json.dumps({"bos_token_id": 1, **settings}))
    (note,) = notes_of(base, expert)
    assert note.startswith("expert a generates text in another way (generation_config.json): ")
    for said in (
        "eos_token_id is [2, 5] there and 2",
        "temperature is 0.6 there and null",
        "do_sample is true there and null",
    ):
        assert said in note
    (expert / "generation_config.json").unlink()  # then config.json says it, and it says the same as the base's file
    assert notes_of(base, expert) == []
    (expert / "generation_config.json").write_text('{"eos_token_id": "x')
    (note,) = notes_of(base, expert)
    assert re.search(r"could not be compared .*transformers cannot read .*generation_config\.json", note)


def test_a_configuration_that_cannot_be_read_is_said(pair):
    base, expert = pair(LLAMA, model_type="llama_of_next_year")
    (note,) = notes_of(base, expert)
    assert note.startswith(
        "expert a could not be compared with the base in its configuration: transformers cannot read"
    )
    assert note.endswith('As the files are written, model_type is "llama_of_next_year" there and "llama" in the base')
    shutil.rmtree(expert)
    with pytest.raises(CheckpointError, match=r"expert has no config\.json"):
        compare_configurations(Configuration(base), Configuration(expert))
