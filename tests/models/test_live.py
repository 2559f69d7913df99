from __future__ import annotations

import json
import logging
import random
import shutil

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoModel, LlamaConfig, LlamaForCausalLM
from transformers.image_processing_base import ImageProcessingMixin

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.fitness.images import decode_image
from evomerge.models.live import load_live
from evomerge.models.pretrained import load_model, rename_keys, takes_images
from tests.kit.vision import dinov2, png, processor


@pytest.fixture
def base(pico_suite, tmp_path):
    """A copy of the base, to be changed."""
    return shutil.copytree(pico_suite.base, tmp_path / "base")


@pytest.fixture
def records():
    """What transformers logs."""
    found: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = found.append
    transformers.utils.logging.add_handler(handler)
    yield found
    transformers.utils.logging.remove_handler(handler)


def states():
    return torch.get_rng_state().tolist(), repr(np.random.get_state()), random.getstate()  # noqa: NPY002


def configure(path, **changes) -> None:
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(config | changes))


def test_a_model_in_eval_mode_without_gradients(pico_suite):
    live = load_live(pico_suite.base, device="cpu")
    assert not any(module.training for module in live.model.modules())
    assert not any(p.requires_grad or p.is_inference() for p in live.model.parameters())
    assert live.parameters == {name: tuple(p.shape) for name, p in live.model.named_parameters()}
    assert live.parameters["embeddings.word_embeddings.weight"] == (len(live.processor), 32)
    assert (live.model.base_model_prefix, live.tied) == ("bert", {})
    assert live.processor.convert_ids_to_tokens(live.processor("the ant")["input_ids"])[1:3] == ["the", "ant"]


def test_global_random_states_stay_as_they_are(pico_suite):
    before = states()
    load_live(pico_suite.base, device="cpu")  # its pooler is in no file, so transformers draws it
    assert states() == before
    with pytest.raises(CheckpointError):
        load_live(pico_suite.path, device="cpu")
    assert states() == before


def test_loading_is_silent_and_what_transformers_prints_comes_back(pico_suite, records, capsys):
    load_live(pico_suite.base, device="cpu")
    assert records == []
    assert capsys.readouterr() == ("", "")
    AutoModel.from_pretrained(pico_suite.base)
    assert "LOAD REPORT" in records[0].getMessage()
    assert "Loading weights" in capsys.readouterr().err


def test_settings_of_transformers_come_back_after_a_failure_too(tmp_path):
    bars, verbosity = transformers.utils.logging.is_progress_bar_enabled, transformers.utils.logging.get_verbosity
    before = bars(), verbosity()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_info()
    try:
        with pytest.raises(CheckpointError):
            load_live(tmp_path, device="cpu")
        assert (bars(), verbosity()) == (False, logging.INFO)
    finally:
        transformers.utils.logging.set_verbosity(before[1])
        transformers.utils.logging.enable_progress_bar()
    assert (bars(), verbosity()) == before


def test_what_no_file_holds_is_named(pico_suite):
    model, missing = load_model(pico_suite.base, "AutoModel")
    assert missing == ["pooler.dense.bias", "pooler.dense.weight"]
    assert model.pooler is not None
    assert load_model(pico_suite.base, "AutoModelForSequenceClassification")[1] == [
        *(f"bert.{name}" for name in missing),
        "classifier.bias",
        "classifier.weight",
    ]


def test_the_dtype_is_that_of_the_files(pico_suite, tmp_path):
    model = AutoModel.from_pretrained(pico_suite.base).bfloat16()
    model.save_pretrained(tmp_path)
    assert load_model(tmp_path, "AutoModel")[0].dtype == torch.bfloat16
    assert load_model(tmp_path, "AutoModel", torch.float32)[0].dtype == torch.float32


def test_tied_parameters_appear_once(pico_suite, tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=60, tie_word_embeddings=True)).save_pretrained(tmp_path)
    shutil.copy(pico_suite.base / "tokenizer.json", tmp_path)
    shutil.copy(pico_suite.base / "tokenizer_config.json", tmp_path)
    live = load_live(tmp_path, "AutoModelForCausalLM", "cpu")
    assert live.tied == {"lm_head.weight": "model.embed_tokens.weight"}
    assert "model.embed_tokens.weight" in live.parameters
    assert "lm_head.weight" not in live.parameters
    assert live.model.lm_head.weight is live.model.model.embed_tokens.weight


@pytest.mark.parametrize("auto_class", ["AutoModelForCausalLMs", "BertModel", "AutoTokenizer", "os"])
def test_classes_that_are_not_there(pico_suite, auto_class):
    with pytest.raises(ConfigError, match=f"transformers has no class {auto_class}: write model.auto_class=AutoModel,"):
        load_live(pico_suite.base, auto_class)


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_devices_that_are_not_there(pico_suite, device):
    with pytest.raises(ConfigError, match=rf"model\.device={device} cannot be used here: .*Write model\.device=cpu"):
        load_live(pico_suite.base, device=device)


def test_a_class_that_the_architecture_does_not_have(pico_suite):
    with pytest.raises(CheckpointError, match=r"cannot load .*base as AutoModelForImageClassification: Unrecognized"):
        load_live(pico_suite.base, "AutoModelForImageClassification")


def test_a_directory_that_is_not_there(tmp_path):
    with pytest.raises(CheckpointError, match=f"There is no directory {tmp_path}/none: name a model directory"):
        load_live(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="There is no directory"):
        load_live(tmp_path / "file")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", "{oops", "is no valid JSON"),
        ("config.json", "{}", "Unrecognized model"),
        ("config.json", None, "config.json"),
        ("model.safetensors", "", "header"),
        ("model.safetensors", None, "no file named model.safetensors"),
    ],
)
def test_files_that_are_damaged_or_missing(base, file, content, message):
    (base / file).unlink() if content is None else (base / file).write_text(content)
    with pytest.raises(
        CheckpointError,
        match=rf"(cannot load {base} as AutoModel: .*{message}.* It must be a dir|{base}.*{message}.*again)",
    ):
        load_live(base, device="cpu")


def test_weights_that_are_cut_off(base):
    content = (base / "model.safetensors").read_bytes()
    (base / "model.safetensors").write_bytes(content[:-100])
    with pytest.raises(CheckpointError, match=r"cannot load .*incomplete metadata"):
        load_live(base, device="cpu")


def test_a_config_of_the_wrong_type(base):
    configure(base, hidden_size="wide")
    with pytest.raises(CheckpointError, match=r"cannot load .*hidden_size"):
        load_live(base, device="cpu")


def test_a_config_of_other_weights(base):
    configure(base, intermediate_size=48)
    message = (
        r"intermediate\.dense\.bias with the shape \(64,\), its config\.json asks for \(48,\)\. Put the config\.json"
    )
    with pytest.raises(CheckpointError, match=message):
        load_live(base, device="cpu")


@pytest.mark.parametrize("left", [[], ["tokenizer_config.json"]])
def test_a_base_without_a_tokenizer(base, left):
    """Left alone, transformers makes a tokenizer to which every word is unknown."""
    for file in base.glob("tokenizer*"):
        if file.name not in left:
            file.unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer that transformers can load: .*Save the base's tokenizer"):
        load_live(base, device="cpu")


def test_a_tokenizer_that_is_damaged(base):
    (base / "tokenizer.json").write_text("{oops")
    with pytest.raises(CheckpointError, match="has no tokenizer that transformers can load: Expecting property name"):
        load_live(base, device="cpu")


def test_a_tokenizer_of_earlier_years(base):
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "ant"]
    for file in base.glob("tokenizer*"):
        file.unlink()
    (base / "vocab.txt").write_text("\n".join(words))
    assert load_live(base, device="cpu").processor("the ant")["input_ids"] == [2, 5, 6, 3]


# images


def test_a_base_of_images(vision_family, records, capsys):
    before = states()
    live = load_live(vision_family / "base", device="cpu")
    assert states() == before
    assert takes_images(live.model)
    assert isinstance(live.processor, ImageProcessingMixin)
    assert (live.model.base_model_prefix, live.parameters["embeddings.cls_token"]) == ("dinov2", (1, 1, 16))
    image = decode_image(png(0))
    expected = processor()(images=[image], return_tensors="pt")["pixel_values"]
    assert torch.equal(live.processor(images=[image], return_tensors="pt")["pixel_values"], expected)
    assert (records, capsys.readouterr()) == ([], ("", ""))


def test_a_base_of_texts_takes_no_images(base):
    assert not takes_images(load_live(base, device="cpu").model)


def test_a_base_of_images_without_its_processor(tmp_path):
    dinov2().save_pretrained(tmp_path)
    message = r"no image processor that transformers can load: .*Save the base's beside its weights: AutoImageProcessor"
    with pytest.raises(CheckpointError, match=message):
        load_live(tmp_path, device="cpu")
    (tmp_path / "preprocessor_config.json").write_text("{oops")
    with pytest.raises(CheckpointError, match=message):
        load_live(tmp_path, device="cpu")


def test_a_base_of_images_without_pillow(vision_family, monkeypatch):
    monkeypatch.setattr("evomerge.models.pretrained.is_vision_available", lambda: False)
    with pytest.raises(ConfigError, match=r"a model of images, which need Pillow, .*pip install 'evomerge\[vision\]'"):
        load_live(vision_family / "base", device="cpu")


def test_keys_are_renamed_as_transformers_does(base):
    keys = ["encoder.layer.0.attention.attention.query.weight", "dinov2.encoder.layer.1.attention.output.dense.bias"]
    names = ["encoder.layer.0.attention.q_proj.weight", "dinov2.encoder.layer.1.attention.o_proj.bias"]
    assert rename_keys(dinov2(), keys) == rename_keys(dinov2(), keys[::-1]) == dict(zip(keys, names, strict=True))
    assert rename_keys(dinov2(), names) == {name: name for name in names}
    fused = "encoder.layer.0.mlp.weights_in.bias"
    assert rename_keys(dinov2(), [fused]) == {fused: None}
    live = load_live(base, device="cpu")
    assert live.rename(live.parameters) == {name: name for name in live.parameters}
    assert live.rename(["LayerNorm.gamma"]) == {"LayerNorm.gamma": "LayerNorm.weight"}
