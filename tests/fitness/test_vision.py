"""Merging models of images, from settings to run directory, and against what transformers makes of a merge by hand."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import Dinov2ForImageClassification, Dinov2Model

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.fitness import classification
from evomerge.fitness.classification import Classification
from evomerge.fitness.heads import OwnHead
from evomerge.fitness.items import make_item, read_items, write_items
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.runs.suite import write_head
from tests.kit.helpers import compose
from tests.kit.vision import CLASSES, dinov2, pixels, png, save, save_family, tuned


def settings(path: Path, tmp_path: Path, **tasks: str) -> list[str]:
    tasks = {name: str(path / f"{name}.jsonl") for name in CLASSES} | tasks
    return [
        f"model.base={path / 'base'}",
        f"model.experts=[{path / 'digits'},{path / 'letters'}]",
        f"model.cache={tmp_path / 'cache'}",
        "model.device=cpu",
        f"fitness.tasks={{{', '.join(f'{name}: {items}' for name, items in tasks.items())}}}",
    ]


def assembled(path: Path, tmp_path: Path, *overrides: str, **tasks: str) -> Problem:
    return build_problem(plain(compose(*settings(path, tmp_path, **tasks), *overrides)), Reporter())


def ids_of(items) -> dict[str, list[str]]:
    return {task: [item.id for item in chosen] for task, chosen in items.items()}


def outcome(parts: Problem, split: str = "search"):
    items = parts.items[split]
    prepared = parts.fitness.prepare(parts.live.processor, items)
    return parts.fitness(parts.live.model, prepared, ids_of(items))


def probe(path: Path, **kwargs) -> Path:
    generator = torch.Generator().manual_seed(3)
    weight, bias = torch.randn(3, 32, generator=generator), torch.randn(3, generator=generator)
    write_head(path, weight, bias, pooling="cls_mean", **kwargs)
    return path


@pytest.mark.parametrize("base", [True, False])
def test_a_merge_is_what_transformers_makes_of_a_merge_by_hand(tmp_path, base):
    """Base and experts under the names of earlier years or not, own heads."""
    save_family(tmp_path, {"base": base, "digits": False, "letters": True})
    parts = assembled(tmp_path, tmp_path)
    parts.merger.apply(parts.space.constant(np.array([0.7, 0.4])))
    results = outcome(parts).results

    start = Dinov2Model.from_pretrained(tmp_path / "base").state_dict()
    experts = {name: Dinov2ForImageClassification.from_pretrained(tmp_path / name) for name in CLASSES}
    tuned = {name: expert.dinov2.state_dict() for name, expert in experts.items()}
    weights = {"digits": 0.7, "letters": 0.4}
    merged = {
        name: tensor + sum(weight * (tuned[expert][name] - tensor) for expert, weight in weights.items())
        for name, tensor in start.items()
    }
    for task, expert in experts.items():
        expert.dinov2.load_state_dict(merged)
        items = read_items(tmp_path / f"{task}.jsonl", "search")
        with torch.no_grad():
            logits = expert.eval()(torch.cat([pixels(item.image) for item in items])).logits
        labels = torch.tensor([item.label for item in items])
        expected = torch.log_softmax(logits, -1).gather(1, labels[:, None])[:, 0].numpy()
        np.testing.assert_allclose(results[task]["log_probability"], expected, atol=1e-4)
        assert results[task]["accuracy"].tolist() == (logits.argmax(-1) == labels).tolist()


@pytest.mark.parametrize("normalise", [True, False])
def test_a_linear_probe_sees_the_first_token_and_the_mean_of_the_others(vision_family, tmp_path, normalise):
    head = probe(tmp_path / "probe.safetensors", normalise=normalise, scale=3.0)
    task = f"{{items: {vision_family / 'digits.jsonl'}, head: {head}}}"
    parts = assembled(vision_family, tmp_path, digits=task)
    results = outcome(parts).results["digits"]["log_probability"]
    model, tensors = Dinov2Model.from_pretrained(vision_family / "base").eval(), load_file(head)
    for item, value in zip(parts.items["search"]["digits"], results, strict=True):
        with torch.no_grad():
            hidden = model(pixels(item.image)).last_hidden_state[0]
        features = torch.cat([hidden[0], hidden[1:].mean(0)])
        features = features / features.norm() if normalise else features
        logits = 3.0 * tensors["weight"] @ features + tensors["bias"]
        assert value == pytest.approx(float(torch.log_softmax(logits, 0)[item.label]), abs=1e-4)


@pytest.mark.parametrize("frozen", [False, True])
def test_a_complete_search(vision_family, tmp_path, frozen):
    """With experts' own heads, and with one frozen head; what it leaves behind can be used."""
    head = probe(tmp_path / "probe.safetensors", normalise=False)
    tasks = {"digits": f"{{items: {vision_family / 'digits.jsonl'}, head: {head}}}"} if frozen else {}
    given = [*settings(vision_family, tmp_path, **tasks), "space=layer", "searcher=cmaes", "budget=8", "seed=1"]
    summary = run_search(compose(*given), tmp_path / "run", Reporter())
    assert summary is not None
    assert (summary.trials, summary.failed) == (8, 0)
    assert set(summary.winner.tasks) == set(CLASSES)
    log = (tmp_path / "run" / "trials.jsonl").read_bytes()
    assert run_search(compose(*given), tmp_path / "run", Reporter()) == summary
    assert getattr(run_search(compose(*given), tmp_path / "again", Reporter()), "select", None) == summary.select
    assert (tmp_path / "again" / "trials.jsonl").read_bytes() == log
    kept = load_file(tmp_path / "run" / "heads" / "digits.safetensors")
    assert set(kept) == ({"weight", "bias"} if frozen else {"classifier.weight", "classifier.bias"})
    assert not (tmp_path / "run" / "mergekit.yaml").exists()  # the experts' files have the prefix of their class


@pytest.mark.parametrize("legacy", [True, False])
def test_mergekit_is_given_the_names_of_the_files(tmp_path, legacy):
    base = dinov2()
    save(base, tmp_path / "base", legacy)
    for k, name in enumerate(CLASSES):
        expert = dinov2()
        expert.load_state_dict(base.state_dict())
        save(tuned(expert, k + 1), tmp_path / name, legacy)
        probe(tmp_path / f"{name}.safetensors")
        (tmp_path / f"{name}.jsonl").write_text(
            "".join(json.dumps({"image": f"{i}.png", "label": i % 3}) + "\n" for i in range(20 * k, 20 * k + 20))
        )
    for i in range(40):
        (tmp_path / f"{i}.png").write_bytes(png(i, (5, 5)))
    tasks = {name: f"{{items: {tmp_path / name}.jsonl, head: {tmp_path / name}.safetensors}}" for name in CLASSES}
    given = [*settings(tmp_path, tmp_path, **tasks), "space=tensor", "searcher=random", "budget=3"]
    assert run_search(compose(*given), tmp_path / "run", Reporter()) is not None
    written = yaml.safe_load((tmp_path / "run" / "mergekit.yaml").read_text())
    filters = {row.get("filter") for row in written["models"][0]["parameters"]["weight"]}
    keys = set(load_file(tmp_path / "base" / "model.safetensors"))
    assert any(key in filters or any(f and f in key for f in filters) for key in keys if "attention" in key)
    assert all(any(f in key for key in keys) for f in filters if f and "attention" in f)


def test_gradients_flow_through_logits_after_a_score(vision_family, tmp_path):
    """Of a merge, for own and frozen heads, and with the batches that a score under inference mode has kept."""
    head = probe(tmp_path / "probe.safetensors", normalise=False)
    parts = assembled(vision_family, tmp_path, digits=f"{{items: {vision_family / 'digits.jsonl'}, head: {head}}}")
    parts.merger.apply(parts.space.constant(np.array([0.5, 0.5])))
    items = {task: chosen[:6] for task, chosen in parts.items["search"].items()}
    ids = ids_of(items)
    prepared = parts.fitness.prepare(parts.live.processor, items)
    scored = parts.fitness(parts.live.model, prepared, ids)
    model = parts.live.model.requires_grad_(True)
    loss = torch.tensor(0.0)
    for answers in parts.fitness.logits(model, prepared, ids):
        for answer in answers.values():
            loss = loss + torch.nn.functional.cross_entropy(answer.logits, answer.labels, reduction="sum")
    loss.backward()
    total = sum(rows["log_probability"].sum() for rows in scored.results.values())
    assert loss.item() == pytest.approx(-total, rel=1e-5)
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum()]
    assert without == ["embeddings.mask_token"]
    again = parts.fitness(model, prepared, ids)
    for task, rows in scored.results.items():
        np.testing.assert_array_equal(again.results[task]["log_probability"], rows["log_probability"])


def test_batches_beyond_the_room_are_made_anew(vision_family, tmp_path, monkeypatch):
    parts = assembled(vision_family, tmp_path, "fitness.batch_size=4")
    expected = outcome(parts)
    made: list[int] = []
    make = classification._batch
    monkeypatch.setattr(classification, "_batch", lambda *args: made.append(1) or make(*args))
    items = parts.items["search"]
    ids = ids_of(items)
    for room, times in ((10**9, 1), (3 * 4 * 4 * 3 * 28 * 28, 2)):
        monkeypatch.setattr(classification, "ROOM", room)
        prepared = parts.fitness.prepare(parts.live.processor, items)
        made.clear()
        for _ in range(2):
            found = parts.fitness(parts.live.model, prepared, ids)
            for task, rows in expected.results.items():
                np.testing.assert_array_equal(found.results[task]["log_probability"], rows["log_probability"])
        assert len(made) == times * sum(-(-len(chosen) // 4) for chosen in items.values())


def test_pixels_have_the_dtype_of_the_model(vision_family, tmp_path):
    parts = assembled(vision_family, tmp_path)
    expected = outcome(parts).results["digits"]["log_probability"]
    parts.live.model.to(torch.bfloat16)
    items = {"digits": parts.items["search"]["digits"]}
    fitness = Classification({"digits": OwnHead(vision_family / "digits", list(parts.vectors.parameters))})
    found = fitness(parts.live.model, fitness.prepare(parts.live.processor, items), ids_of(items))
    np.testing.assert_allclose(found.results["digits"]["log_probability"], expected, atol=0.2)


def test_texts_with_a_base_of_images_are_refused_before_anything_is_merged(vision_family, tmp_path):
    write_items(tmp_path / "texts.jsonl", [make_item(f"text {i}", i % 3) for i in range(40)])
    with pytest.raises(ConfigError, match="The task digits holds texts, but the base is a model of images"):
        assembled(vision_family, tmp_path, digits=str(tmp_path / "texts.jsonl"))
    assert not (tmp_path / "cache").exists()


def test_images_with_a_base_of_texts_are_refused_before_anything_is_merged(own_classifiers, vision_family, tmp_path):
    given = [
        f"model.base={own_classifiers / 'base'}",
        f"model.experts=[{own_classifiers / 'mood'}]",
        f"model.cache={tmp_path / 'cache'}",
        "model.device=cpu",
        f"fitness.tasks={{mood: {vision_family / 'digits.jsonl'}}}",
    ]
    with pytest.raises(ConfigError, match="The task mood holds images, but the base is a model of texts"):
        build_problem(plain(compose(*given)), Reporter())
    assert not (tmp_path / "cache").exists()
