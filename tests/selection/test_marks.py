"""Rows that run under another configuration than their name says, from the summary of a search to the model card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from evomerge.cli.progress import Reporter
from evomerge.cli.scores import show
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.report import write_report
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.run import run_search
from evomerge.selection.evaluation import Model, evaluate
from evomerge.selection.marks import marks_of
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.task_vectors.test_family_notes import put

SAID = "task mood is scored under the configuration of expert mood, whose head it has: layer_norm_eps is 0.5 there and"


@pytest.fixture(scope="module")
def place(own_classifiers, tmp_path_factory) -> Path:
    """The directory of a user, with one expert of another configuration."""
    path = shutil.copytree(own_classifiers, tmp_path_factory.mktemp("marks") / "user")
    put(path / "mood" / "config.json", layer_norm_eps=0.5)
    return path


def overrides(place: Path, *more: str) -> list[str]:
    return [
        f"model.base={place}/base",
        f"model.experts=[{place}/mood,{place}/topic]",
        f"model.cache={place}/cache",
        "model.device=cpu",
        f"fitness.tasks={{mood: {{items: {place}/mood.jsonl}}, topic: {{items: {place}/topic.jsonl}}}}",
        "fitness.items=8",
        "budget=2",
        "searcher=random",
        "start=0.4",
        *more,
    ]


def test_an_own_head_runs_under_its_experts_configuration(place):
    """What is marked is so, and what is not marked is the expert itself."""
    settings = plain(compose(*overrides(place)))
    problem = build_problem(settings, Reporter())
    assert sum(text.startswith(SAID) for text in problem.warnings) == 1
    assert any(text.startswith("expert mood was made for another configuration") for text in problem.warnings)
    marks = marks_of(problem)
    assert [text.startswith(SAID) for text in marks.of_merge()] == [True]
    assert marks.of_experts() == []  # each runs as it does by itself
    assert [re.sub(":.*", "", text) for text in marks.of_expert("mood")] == [
        "expert mood is scored under the base's configuration on topic"
    ]
    assert [text.startswith(SAID) for text in marks.of_expert("topic")] == [True]
    tokens = torch.arange(4, 12)[None]
    alone = AutoModelForSequenceClassification.from_pretrained(place / "mood").eval()(tokens).logits
    head = problem.fitness._heads["mood"]  # type: ignore[attr-defined]
    problem.become("mood")
    torch.testing.assert_close(head.module(problem.live.model)(tokens).logits, alone, rtol=0, atol=1e-5)


def test_from_the_summary_to_the_card(place, capsys, monkeypatch):
    monkeypatch.chdir(place)
    summary = run_search(compose(*overrides(place)), place / "run", Reporter())
    assert summary is not None
    assert list(summary.marks) == ["base", "best_constant", "winner"]
    said = capsys.readouterr().out
    assert "│ winner *" in said
    assert "│ experts, each on its own task │" in said
    assert said.count(f"* base, best constant, winner: {SAID}") == 1
    assert json.loads((place / "run" / "summary.json").read_text())["marks"] == summary.marks
    page = write_report(place / "run").read_text()
    assert f"* base, best constant, winner: {SAID}" in page
    assert "winner *" in page
    recipe = Recipe.from_yaml((place / "run" / "recipe.yaml").read_text())
    assert recipe.scores["marks"] == summary.marks
    write_model(recipe, place / "run", place / "merged", reporter=Reporter())
    assert "warning: expert mood was made for another configuration" in "".join(capsys.readouterr())
    card = (place / "merged" / "README.md").read_text()
    assert (
        "- expert mood was made for another configuration than the base: layer_norm_eps is 0.5 there and 1e-12" in card
    )
    assert "| winner * |" in card
    assert f"\\* base, best constant, winner: {SAID}" in card


def test_the_table_of_evaluate(place, capsys):
    settings = plain(compose(*overrides(place)))
    models = {
        "base": Model("base"),
        "experts": Model("experts"),
        "mood": Model("expert", "mood"),
        "topic": Model("directory", place / "topic"),
    }
    show(evaluate(under(build_problem(settings, Reporter()), settings), models, "select", Reporter()), Reporter())
    said = capsys.readouterr().out
    assert f"* base, topic: {SAID}" in said
    assert "* mood: expert mood is scored under the base's configuration on topic: layer_norm_eps is 0.5 there" in said
    assert re.search(r"│ experts, each on its own task +│", said)
    assert re.search(r"│ base \* +│", said)


def test_a_family_of_one_configuration_has_no_marks(own_classifiers, capsys):
    settings = plain(compose(*overrides(own_classifiers)))
    problem = build_problem(settings, Reporter())
    marks = marks_of(problem)
    assert [
        marks.of_merge(),
        marks.of_experts(),
        marks.of_expert("mood"),
        marks.of_directory(own_classifiers / "topic"),
    ] == [[]] * 4
