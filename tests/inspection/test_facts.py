from __future__ import annotations

import json
import shutil

import pytest
import torch
from transformers import LlamaForCausalLM

from evomerge.common.errors import CheckpointError
from evomerge.inspection.facts import read_facts
from tests.kit.models import LLAMA, LLAMA_TIED, pico, saved, to_bin

WEIGHTS = {"a": torch.ones(3, 2), "ids": torch.arange(4)}


@pytest.fixture
def path(tmp_path):
    return saved(tmp_path / "model", WEIGHTS)


def test_a_directory_with_weights_alone(path):
    facts = read_facts(path)
    assert (facts.elements, facts.dtypes, facts.files) == (6, {"float32": 6}, 1)
    assert facts.bytes == (path / "model.safetensors").stat().st_size
    assert (facts.architecture, facts.tied, facts.vocabulary) == (None, None, None)
    assert (facts.templates, facts.pixels, facts.licence) == (None, None, None)


def test_dtypes_by_how_much_is_in_them(tmp_path):
    tensors = {"a": torch.ones(5, dtype=torch.bfloat16), "b": torch.ones(2), "c": torch.ones(1)}
    assert list(read_facts(saved(tmp_path, tensors)).dtypes.items()) == [("bfloat16", 5), ("float32", 3)]


@pytest.mark.parametrize("old", [False, True], ids=["safetensors", "bin"])
@pytest.mark.parametrize(("config", "tied"), [(LLAMA, False), (LLAMA_TIED, True)], ids=["untied", "tied"])
def test_shards_and_ties_of_a_language_model(tmp_path, config, tied, old):
    pico(LlamaForCausalLM, config).save_pretrained(tmp_path, max_shard_size="30KB")
    if old:
        to_bin(tmp_path)
    facts = read_facts(tmp_path)
    assert (facts.architecture, facts.tied) == ("LlamaForCausalLM", tied)
    assert facts.files > 1
    assert facts.elements == pico(LlamaForCausalLM, config).num_parameters()


def test_a_class_without_ties(pico_suite):
    facts = read_facts(pico_suite.base)
    assert facts.architecture == "BertModel"
    assert facts.tied is None


def test_vocabularies_of_all_kinds(path):
    tokens = {"a": 0, "b": 1, "<new>": 2}
    (path / "vocab.txt").write_text("a\nb\n<new>\n")
    assert read_facts(path).vocabulary == tokens
    (path / "vocab.json").write_text(json.dumps({"a": 0, "b": 1}))
    (path / "added_tokens.json").write_text(json.dumps({"<new>": 2}))
    assert read_facts(path).vocabulary == tokens
    added = [{"content": "<new>", "id": 2}]
    for vocabulary in ({"a": 0, "b": 1}, [["a", -1.5], ["b", -2.5]]):
        content = {"model": {"vocab": vocabulary}, "added_tokens": added}
        (path / "tokenizer.json").write_text(json.dumps(content))
        assert read_facts(path).vocabulary == tokens


@pytest.mark.parametrize("text", ["{}", '{"model": {"vocab": [1]}}', '{"model": {"vocab": ["ab"]}}', "no json"])
def test_a_vocabulary_that_cannot_be_read(path, text):
    (path / "tokenizer.json").write_text(text)
    assert read_facts(path).vocabulary in (None, {"a": 0})


def test_chat_templates(path):
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": [{"name": "x", "template": "y"}]}))
    assert read_facts(path).templates == {"x": "y"}
    (path / "tokenizer_config.json").write_text(json.dumps({"chat_template": "one"}))
    assert read_facts(path).templates == {"default": "one"}
    (path / "chat_template.jinja").write_text("two")
    assert read_facts(path).templates == {"default": "two"}


def test_pixels_are_the_settings_that_change_them(path):
    settings = {"size": {"height": 4, "width": 4}, "image_mean": [0.5], "image_processor_type": "Any"}
    (path / "preprocessor_config.json").write_text(json.dumps(settings))
    assert read_facts(path).pixels == {"size": {"height": 4, "width": 4}, "image_mean": [0.5]}


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        ("---\nlicense: mit\n---\n# A model", "mit"),
        ("---\nlicense: other\nlicense_name: house\n---\n", "house"),
        ("---\ntags: [merge]\n---\n", None),
        ("# no header", None),
        ("---\n- a list\n---\n", None),
        ("---\nlicense: [broken\n---\n", None),
    ],
)
def test_licences(path, card, licence):
    (path / "README.md").write_text(card)
    assert read_facts(path).licence == licence


def test_what_is_no_model_directory(path, tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_facts(tmp_path / "nowhere")
    (path / "model.safetensors").write_bytes(b"version https://git-lfs")
    with pytest.raises(CheckpointError, match="damaged"):
        read_facts(path)
    shutil.rmtree(path)
    path.mkdir()
    with pytest.raises(CheckpointError, match="holds no weights"):
        read_facts(path)
