"""Heads: frozen class embeddings against a computation by hand, experts' own heads against the experts themselves."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.demo.finetune import save_model
from evomerge.fitness.classification import Classification
from evomerge.fitness.heads import FrozenHead, OwnHead, pool
from evomerge.models.live import load_live
from evomerge.models.pretrained import load_model
from evomerge.runs.sources import find_sources
from evomerge.runs.suite import write_head
from tests.kit.classifiers import build_classifiers, save_classifiers

POOLERS = {"without": False, "with": True}
POOLER = {"pooler.dense.weight", "pooler.dense.bias"}


@pytest.fixture(scope="module", params=POOLERS)
def family(request, pico_suite, tmp_path_factory):
    """A directory with a base, with or without pooler, and experts that are classifiers; and what is made of them."""
    path = tmp_path_factory.mktemp(request.param)
    save_classifiers(path, pico_suite, pooler=POOLERS[request.param])
    return path, build_classifiers(path, pico_suite)


@pytest.fixture
def copied(family, tmp_path):
    """The directory again, to be damaged."""
    return shutil.copytree(family[0], tmp_path / "copy")


def log_probabilities(directory, items) -> np.ndarray:
    """What the expert itself says of the items, one by one."""
    model = BertForSequenceClassification.from_pretrained(directory).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    with torch.no_grad():
        logits = torch.cat([model(**tokenizer(item.text, return_tensors="pt")).logits for item in items])
    labels = torch.tensor([item.label for item in items])
    return torch.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0].numpy()


def rewrite(directory, change) -> None:
    tensors = {name: tensor.clone() for name, tensor in load_file(directory / "model.safetensors").items()}
    save_file(change(tensors), directory / "model.safetensors", {"format": "pt"})


def own_heads(path, live, names=("animals", "trees")) -> dict[str, OwnHead]:
    merged = [name for name in live.parameters if "pooler" not in name]
    return {name: OwnHead(path / name, merged) for name in names}


# frozen heads


def test_frozen_logits_are_scaled_cosines_of_the_mean_token(pico_suite):
    live, task = load_live(pico_suite.base, device="cpu"), pico_suite.tasks["animals"]
    head, weight = FrozenHead(task.head), load_file(task.head)["weight"]
    texts = ["the ant", "some gold and zinc of the elm", "oak"]
    inputs = live.processor(texts, padding=True, return_tensors="pt")
    with torch.no_grad():
        logits = head.logits(head.module(live.model)(**inputs), inputs["attention_mask"], torch.tensor([2, 0]))
        for row, text in zip(logits, [texts[2], texts[0]], strict=True):
            mean = live.model(**live.processor(text, return_tensors="pt")).last_hidden_state[0].mean(0)
            torch.testing.assert_close(row, 20 * weight @ mean / mean.norm(), atol=1e-4, rtol=0)


def test_a_frozen_head_does_not_run_the_head_of_the_live_model(pico_suite):
    live = load_live(pico_suite.base, "AutoModelForMaskedLM", "cpu")
    head = FrozenHead(pico_suite.tasks["animals"].head)
    inputs = live.processor(["the ant"], return_tensors="pt")
    backbone = load_live(pico_suite.base, device="cpu").model
    mask, rows = inputs["attention_mask"], torch.tensor([0])
    with torch.no_grad():
        expected = head.logits(backbone(**inputs), mask, rows)
        torch.testing.assert_close(head.logits(head.module(live.model)(**inputs), mask, rows), expected)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is no frozen head .*No such file"),
        (b"nothing of the kind", "is no frozen head .*header"),
        (({"bias": torch.ones(3)}, {"pooling": "mean", "scale": "20"}), "is no frozen head .*weight"),
        (({"weight": torch.ones(3, 4)}, None), "is no frozen head .*scale"),
        (({"weight": torch.ones(3, 4)}, {"scale": "20"}), "is no frozen head .*pooling"),
        (({"weight": torch.ones(3, 4)}, {"pooling": "mean", "scale": "much"}), "is no frozen head .*much"),
        (({"weight": torch.ones(3, 4)}, {"pooling": "cls", "scale": "20"}), "cls pooling; only mean and cls_mean"),
        (({"weight": torch.ones(3)}, {"pooling": "mean", "scale": "20"}), r"is no frozen head \(weight \(3,\)"),
        (
            ({"weight": torch.ones(3, 4), "bias": torch.ones(4)}, {"pooling": "mean", "scale": "20"}),
            r"is no frozen head .*bias \(4,\)",
        ),
        (
            ({"weight": torch.ones(3, 4)}, {"pooling": "mean", "scale": "20", "normalise": "perhaps"}),
            "is no frozen head .*perhaps",
        ),
    ],
)
def test_files_that_are_no_frozen_heads(tmp_path, content, message):
    path = tmp_path / "head.safetensors"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif content is not None:
        save_file(content[0], path, content[1])
    with pytest.raises(CheckpointError, match=message):
        FrozenHead(path)


@pytest.mark.parametrize("pooling", ["mean", "cls_mean"])
def test_padding_is_no_part_of_what_is_pooled(pooling):
    hidden = torch.randn(2, 5, 4, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    pooled = pool(hidden, mask, pooling)
    assert pooled.shape == (2, 4 if pooling == "mean" else 8)
    torch.testing.assert_close(pooled[0], pool(hidden[:1], None, pooling)[0])
    torch.testing.assert_close(pooled[1], pool(hidden[1:, :3], None, pooling)[0])
    if pooling == "cls_mean":
        torch.testing.assert_close(pooled[1], torch.cat([hidden[1, 0], (hidden[1, 1] + hidden[1, 2]) / 2]))


def test_a_frozen_head_of_another_width(pico_suite, tmp_path):
    live = load_live(pico_suite.base, device="cpu")
    write_head(tmp_path / "wide.safetensors", torch.ones(3, 64))
    inputs = live.processor(["the ant"], return_tensors="pt")
    with pytest.raises(CheckpointError, match=r"wide\.safetensors has the width 64, the model 32"):
        FrozenHead(tmp_path / "wide.safetensors").logits(
            live.model(**inputs), inputs["attention_mask"], torch.tensor([0])
        )


# experts' own heads


@pytest.mark.parametrize("k", range(3))
def test_on_its_own_weights_a_head_is_the_expert(family, k):
    path, parts = family
    items = {task: chosen[:10] for task, chosen in parts.items["search"].items()}
    ids = {task: [item.id for item in chosen] for task, chosen in items.items()}
    parts.merger.apply(parts.space.constant(np.eye(3)[k]))
    outcome = parts.fitness(parts.live.model, parts.fitness.prepare(parts.live.processor, items), ids)
    parts.merger.restore()
    for number, task in enumerate(parts.space.rows):
        expected = log_probabilities(path / task, items[task])
        close = np.allclose(outcome.results[task]["log_probability"], expected, atol=1e-5)
        assert close == (number == k)  # and on the weights of another expert it is not


def test_what_is_merged_is_shared_and_all_else_is_the_experts(family):
    path, parts = family
    model, live = parts.live.model, dict(parts.live.model.named_parameters())
    has_pooler = "pooler.dense.weight" in parts.vectors.parameters
    for task in parts.space.rows:
        head = OwnHead(path / task, parts.vectors.parameters)
        view, file = head.module(model), load_file(path / task / "model.safetensors")
        own = dict(view.named_parameters())
        shared = {name for name in own if name.removeprefix("bert.") in parts.vectors.parameters}
        kept = {name.removeprefix("bert.") for name in own.keys() - shared}
        assert kept == {"classifier.weight", "classifier.bias"} | (set() if has_pooler else POOLER)
        for name, parameter in own.items():
            if name in shared:
                assert parameter is live[name.removeprefix("bert.")]
                assert parameter.data_ptr() == live[name.removeprefix("bert.")].data_ptr()
            else:
                assert torch.equal(parameter, file[name])
        assert own["classifier.weight"].shape[0] == (3 if task == "animals" else 4)


def test_a_merge_in_place_is_seen_at_once(family):
    path, parts = family
    view = OwnHead(path / "trees", parts.vectors.parameters).module(parts.live.model)
    query = view.get_parameter("bert.encoder.layer.1.attention.self.query.weight")
    before = query.clone()
    parts.merger.apply(parts.space.constant(np.ones(3)))
    assert not torch.equal(query, before)
    assert torch.equal(query, parts.live.model.encoder.layer[1].attention.self.query.weight)
    parts.merger.restore()
    assert torch.equal(query, before)


def test_one_view_for_one_model_ready_for_gradients(family):
    path, parts = family
    head = OwnHead(path / "trees", parts.vectors.parameters)
    with torch.inference_mode():
        view = head.module(parts.live.model)
    assert head.module(parts.live.model) is view
    assert not any(p.is_inference() or p.requires_grad for p in view.parameters())
    assert not any(module.training for module in view.modules())
    other = load_live(path / "base", device="cpu").model
    assert head.module(other).bert.embeddings.word_embeddings.weight is other.embeddings.word_embeddings.weight


def test_an_expert_in_another_dtype(family, copied):
    parts = family[1]
    config = json.loads((copied / "trees" / "config.json").read_text())
    (copied / "trees" / "config.json").write_text(json.dumps(config | {"dtype": "bfloat16"}))
    rewrite(copied / "trees", lambda tensors: {name: t.bfloat16() for name, t in tensors.items()})
    view = OwnHead(copied / "trees", parts.vectors.parameters).module(parts.live.model)
    assert {parameter.dtype for parameter in view.parameters()} == {torch.float32}
    view(**parts.live.processor("the elm", return_tensors="pt"))


def test_loading_a_head_is_silent_and_leaves_the_random_state(family, capsys):
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append
    transformers.utils.logging.add_handler(handler)
    path, parts = family
    state = torch.get_rng_state()
    try:
        OwnHead(path / "trees", parts.vectors.parameters).module(parts.live.model)
    finally:
        transformers.utils.logging.remove_handler(handler)
    assert records == []
    assert capsys.readouterr() == ("", "")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("lost", ["classifier.weight", "classifier.bias"])
def test_an_expert_without_a_classifier(family, copied, lost):
    rewrite(copied / "trees", lambda tensors: {name: t for name, t in tensors.items() if name != lost})
    with pytest.raises(CheckpointError, match=f"no classification head of its own \\({lost} is missing\\)"):
        OwnHead(copied / "trees", family[1].vectors.parameters).module(family[1].live.model)


def test_a_backbone_as_an_expert(family):
    with pytest.raises(CheckpointError, match=r"no classification head of its own .*give the task a frozen head"):
        OwnHead(family[0] / "base", family[1].vectors.parameters).module(family[1].live.model)


def test_an_expert_without_the_pooler_of_its_own_head(family, copied):
    parts = family[1]
    rewrite(copied / "trees", lambda tensors: {name: t for name, t in tensors.items() if "pooler" not in name})
    head = OwnHead(copied / "trees", parts.vectors.parameters)
    if "pooler.dense.weight" in parts.vectors.parameters:  # the live model's takes its place
        assert head.module(parts.live.model).bert.pooler.dense.weight is parts.live.model.pooler.dense.weight
    else:  # it would be random
        with pytest.raises(CheckpointError, match=r"\(bert\.pooler\.dense\.bias is missing\)"):
            head.module(parts.live.model)


def test_an_expert_of_another_size_or_none(family, tmp_path):
    parts = family[1]
    config = transformers.BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=8)
    save_model(BertForSequenceClassification(config), parts.live.processor, tmp_path / "small")
    with pytest.raises(CheckpointError, match="BertForSequenceClassification, which does not run on a BertModel"):
        OwnHead(tmp_path / "small", parts.vectors.parameters).module(parts.live.model)
    with pytest.raises(CheckpointError, match="There is no directory"):
        OwnHead(tmp_path / "none", parts.vectors.parameters).module(parts.live.model)


def test_a_classifier_that_does_not_run_the_pooler_of_the_base(family, tmp_path):
    """RoBERTa's backbone has a pooler, its classifier none: the merge has parameters that the head does not need."""
    tokenizer = family[1].live.processor
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = RobertaConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0, max_position_embeddings=24)
    save_model(RobertaModel(config), tokenizer, tmp_path / "base")
    save_model(RobertaForSequenceClassification(config), tokenizer, tmp_path / "expert")
    live = load_live(tmp_path / "base", device="cpu")
    assert "pooler.dense.weight" in live.parameters
    view = OwnHead(tmp_path / "expert", live.parameters).module(live.model)
    layer = "encoder.layer.0.output.dense.weight"
    assert view.base_model.get_parameter(layer) is live.model.get_parameter(layer)


def test_heads_on_a_causal_language_model(family, tmp_path):
    """The live model has a head and names with a prefix; its embeddings are tied to the head."""
    tokenizer = family[1].live.processor
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}
    config = LlamaConfig(**sizes, vocab_size=len(tokenizer), pad_token_id=0, tie_word_embeddings=True, num_labels=4)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "base")
    tokenizer.save_pretrained(tmp_path / "base")
    LlamaForSequenceClassification(config).save_pretrained(tmp_path / "expert")
    live = load_live(tmp_path / "base", "AutoModelForCausalLM", "cpu")
    head = OwnHead(tmp_path / "expert", live.parameters)
    view = head.module(live.model)
    for name, parameter in view.model.named_parameters():
        assert parameter is live.model.model.get_parameter(name)
    assert torch.equal(view.score.weight, load_file(tmp_path / "expert" / "model.safetensors")["score.weight"])
    write_head(tmp_path / "frozen.safetensors", torch.ones(4, 16))
    fitness = Classification({"trees": head, "metals": FrozenHead(tmp_path / "frozen.safetensors")})
    items = {task: family[1].items["search"][task][:4] for task in ("trees", "metals")}
    ids = {task: [item.id for item in chosen] for task, chosen in items.items()}
    outcome = fitness(live.model, fitness.prepare(live.processor, items), ids)
    assert np.isfinite([metrics["log_probability"] for metrics in outcome.results.values()]).all()


def test_a_damaged_expert(copied, family):
    file = copied / "trees" / "model.safetensors"
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(CheckpointError, match=r"cannot load .*trees as AutoModelForSequenceClassification"):
        OwnHead(copied / "trees", family[1].vectors.parameters).module(family[1].live.model)


def test_more_classes_in_the_config_than_in_the_weights(copied, family):
    config = json.loads((copied / "trees" / "config.json").read_text())
    del config["id2label"], config["label2id"]
    (copied / "trees" / "config.json").write_text(json.dumps(config | {"num_labels": 6}))
    with pytest.raises(CheckpointError, match=r"holds? classifier\.bias with the shape \(4,\).* asks for \(6,\)"):
        load_model(copied / "trees", "AutoModelForSequenceClassification")


def relabelled(copied: Path, **changes) -> Path:
    """The expert `trees`, whose head has four rows, with another config.json."""
    file = copied / "trees" / "config.json"
    config = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))
    return copied / "trees"


TWO = {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}}


def test_the_rows_of_a_head_decide_how_many_classes_it_has(copied, family):
    assert OwnHead(copied / "trees", ()).classes == 4
    assert OwnHead(copied / "base", ()).classes is None
    assert OwnHead(relabelled(copied, num_labels=4, **TWO), ()).classes == 4  # two names of an earlier head are left
    load_model(copied / "trees", "AutoModelForSequenceClassification")  # transformers takes the number, too
    with pytest.raises(
        CheckpointError, match=r"head has 4 classes, the rows of classifier\.\w+, and .* 2 names .*no, yes"
    ):
        _ = OwnHead(relabelled(copied, num_labels=None, **TWO), ()).classes


def test_names_of_classes_are_held_against_the_rows(copied):
    def tasks(*names: str):
        given = {"trees": {"items": "trees.jsonl", "classes": list(names)}}
        model = {
            "name": "own",
            "suite": None,
            "base": str(copied / "base"),
            "experts": {"trees": str(copied / "trees")},
        }
        return find_sources(model, given).tasks["trees"].classes

    own = json.loads((copied / "trees" / "config.json").read_text())["id2label"]
    assert tasks(*own.values()) == tuple(own.values())
    relabelled(copied, num_labels=4, **TWO)
    assert tasks("a", "b", "c", "d") == ("a", "b", "c", "d")
    with pytest.raises(ConfigError, match=r"classes has 2 names, but the expert's own head has 4 rows"):
        tasks("no", "yes")
    relabelled(copied, num_labels=None, **TWO)
    with pytest.raises(CheckpointError, match="Write 4 names into id2label"):
        tasks("a", "b", "c", "d")
