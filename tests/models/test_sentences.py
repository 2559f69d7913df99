"""Models in the layout of sentence-transformers: dense layers are merged, and embeddings are those of the library."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError
from evomerge.models.live import load_live
from evomerge.models.sentences import POOLED, sentence_embedding
from evomerge.problem import Problem
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.model import write_model
from evomerge.runs.build import build_problem
from tests.kit.evaluations import settings_of
from tests.kit.sentences import CLASSES, save_sentences

TEXTS = ["ba1 keke mood", "keke", "ba3 ba4 keke mood topic ba5"]


@pytest.fixture
def family(tmp_path: Path, pico_suite) -> Path:
    save_sentences(tmp_path, pico_suite)
    return tmp_path


def problem_of(path: Path) -> Problem:
    experts = ",".join(f"{name}: {path / name}" for name in CLASSES)
    tasks = ",".join(f"{name}: {{items: {path}/{name}.jsonl, head: {path}/{name}.safetensors}}" for name in CLASSES)
    own = [f"model.base={path / 'base'}", f"model.experts={{{experts}}}", f"fitness.tasks={{{tasks}}}"]
    return build_problem(settings_of(*own, f"model.cache={path / 'cache'}", "model.device=cpu"), Reporter())


@torch.no_grad()
def embedded(live: Any) -> torch.Tensor:
    return sentence_embedding(live.model, live.processor(TEXTS, padding=True, return_tensors="pt"))


def merged(problem: Problem, path: Path) -> Path:
    """A merged directory; the live model holds the same."""
    coefficients = problem.space.constant([0.7, -0.4])
    problem.merger.apply(coefficients)
    return write_model(make_recipe(problem, coefficients, {}, {}), path, path / "merged", reporter=Reporter())


def test_dense_layers_are_merged_and_written_to_their_folder(family):
    problem = problem_of(family)
    dense = [name for name in problem.vectors.parameters if name.startswith("2_Dense.")]
    assert dense == ["2_Dense.linear.weight", "2_Dense.linear.bias"]
    coefficients = problem.space.constant([0.7, -0.4])
    problem.merger.apply(coefficients)
    out = write_model(make_recipe(problem, coefficients, {}, {}), family, family / "merged", reporter=Reporter())
    one, two, base, found = (
        load_file(path / "2_Dense" / "model.safetensors")
        for path in (*(family / n for n in CLASSES), family / "base", out)
    )
    for key, before in base.items():
        expected = before + 0.7 * (one[key] - before) - 0.4 * (two[key] - before)
        torch.testing.assert_close(found[key], expected, rtol=0, atol=1e-6)
    assert not any(key.startswith("2_Dense") for key in load_file(out / "model.safetensors"))
    assert {file.name for file in out.iterdir()} >= {"modules.json", "1_Pooling", "2_Dense"}
    assert "2_Dense" not in (out / "README.md").read_text()
    again = load_live(out, device="cpu")
    torch.testing.assert_close(embedded(again), embedded(problem.live), rtol=0, atol=1e-6)
    assert torch.linalg.vector_norm(embedded(again), dim=1).allclose(torch.ones(len(TEXTS)))


def test_heads_read_the_embedding_that_the_modules_make(family):
    """Both tasks, though one head runs the model for both."""
    problem = problem_of(family)
    items = {name: chosen[:4] for name, chosen in problem.items["search"].items()}
    prepared = problem.fitness.prepare(problem.live.processor, items)
    ids = {name: [item.id for item in chosen] for name, chosen in items.items()}
    seen = set()
    for answers in problem.fitness.logits(problem.live.model, prepared, ids):
        for name, answer in answers.items():
            weight = load_file(family / f"{name}.safetensors")["weight"]
            texts = [items[name][i].text for i in answer.positions]
            inputs = problem.live.processor(texts, padding=True, return_tensors="pt")
            expected = 20 * sentence_embedding(problem.live.model, inputs) @ weight.T
            torch.testing.assert_close(answer.logits, expected, rtol=0, atol=1e-4)
            seen.add(name)
    assert seen == set(CLASSES)


def test_what_comes_after_a_dense_layer_makes_another_search(family):
    before = problem_of(family).contents
    file = family / "base" / "2_Dense" / "config.json"
    file.write_text(file.read_text().replace("activation.Tanh", "linear.Identity"))
    after = problem_of(family).contents
    assert {name for name in after if after[name] != before[name]} == {"modules"}


def test_an_expert_whose_dense_layer_is_not_there_is_refused_by_name(family):
    (family / "mood" / "2_Dense" / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"expert mood .* lacks 2_Dense\.linear\.weight, 2_Dense"):
        problem_of(family)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_residual": True}, "a dense module with a residual"),
        ({"activation_function": "mine.Snake"}, "activation_function is mine.Snake"),
        ({"out_features": 13}, "contradicts itself"),
    ],
)
def test_a_dense_layer_that_cannot_be_built_is_refused(family, change, message):
    file = family / "base" / "2_Dense" / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    with pytest.raises(CheckpointError, match=message):
        problem_of(family)


def test_a_pooling_that_nobody_knows_is_refused(family):
    (family / "base" / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": "median"}))
    with pytest.raises(CheckpointError, match=r"pools by median; there is cls, max"):
        problem_of(family)


@pytest.mark.parametrize("modes", [[mode] for mode in POOLED] + [["cls", "mean"]], ids="+".join)
def test_embeddings_are_those_of_the_library(tmp_path, pico_suite, modes):
    library = pytest.importorskip("sentence_transformers")
    save_sentences(tmp_path, pico_suite, modes)
    theirs = library.SentenceTransformer(str(tmp_path / "base"), device="cpu").encode(TEXTS, convert_to_tensor=True)
    torch.testing.assert_close(embedded(load_live(tmp_path / "base", device="cpu")), theirs, rtol=0, atol=1e-5)


def test_the_library_makes_of_a_merged_directory_the_embeddings_that_were_scored(family):
    library = pytest.importorskip("sentence_transformers")
    problem = problem_of(family)
    theirs = library.SentenceTransformer(str(merged(problem, family)), device="cpu").encode(TEXTS)
    torch.testing.assert_close(embedded(problem.live), torch.as_tensor(theirs), rtol=0, atol=1e-5)
