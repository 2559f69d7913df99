"""What a gradient learns from: which items, what the experts say of them, and settings that make no sense."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from evomerge.cli.progress import Reporter
from evomerge.common.errors import CheckpointError, ConfigError, SuiteError
from evomerge.fitness.classification import Classification
from evomerge.fitness.items import UNLABELED, make_item, read_items
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import plain
from evomerge.runs.learning import check_learning, find_learning
from evomerge.runs.sources import make_heads
from tests.kit.evaluations import under
from tests.kit.helpers import compose


def settings_of(*overrides: str) -> dict[str, Any]:
    return plain(compose("model=pico", *overrides))


@pytest.fixture
def clean(problem: Problem) -> Iterator[Problem]:
    yield problem
    problem.become(None)


def state(problem: Problem) -> dict[str, torch.Tensor]:
    return {name: parameter.clone() for name, parameter in problem.live.model.named_parameters()}


def ids(items: dict[str, Any]) -> set[str]:
    return {item.id for chosen in items.values() for item in chosen}


def contents(items: dict[str, Any]) -> set[str]:
    return {item.content for chosen in items.values() for item in chosen}


@pytest.mark.parametrize("loss", ["entropy", "entropy_normalised", "entropy_marginal", "jensen_shannon"])
def test_losses_without_labels_learn_from_unlabeled_items(clean: Problem, tmp_path: Path, loss: str) -> None:
    learning = find_learning(clean, settings_of(f"loss={loss}", f"model.cache={tmp_path}"), Reporter())
    for name, task in clean.sources.tasks.items():
        assert [item.id for item in learning.items[name]] == [i.id for i in read_items(task.items, "unlabeled")]
    for split in ("search", "select", "report"):
        assert not contents(learning.items) & contents(clean.items[split])
    assert bool(learning.teachers) == (loss == "jensen_shannon")


def test_cross_entropy_learns_from_search_items(clean: Problem) -> None:
    learning = find_learning(clean, settings_of(), Reporter())
    assert learning.items == clean.items["search"]
    assert learning.inputs == 16


@pytest.fixture
def own(own_classifiers: Path, tmp_path: Path) -> list[str]:
    """Settings of a user with two classifiers and a directory of items for one of them, a file for the other."""
    mood = tmp_path / "items"
    mood.mkdir()
    for split in ("search", "select", "report"):
        rows = [{"text": i.text, "label": i.label} for i in read_items(own_classifiers / "mood.jsonl", split)]
        (mood / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    experts = ",".join(str(own_classifiers / name) for name in ("mood", "topic"))
    return [
        "model=directories",
        f"model.base={own_classifiers / 'base'}",
        f"model.experts=[{experts}]",
        f"model.cache={tmp_path / 'cache'}",
        "model.device=cpu",
        f"fitness.tasks={{mood: {{items: {mood}, classes: [bad, good]}}, topic: {own_classifiers / 'topic.jsonl'}}}",
        "loss=entropy",
    ]


def unlabeled(own: list[str], *rows: dict[str, Any]) -> None:
    path = Path(own[5].split("items: ")[1].split(",")[0]) / "unlabeled.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_tasks_without_unlabeled_items_lend_their_search_items(own: list[str]) -> None:
    settings = plain(compose(*own))
    problem = build_problem(settings, Reporter())
    learning = find_learning(problem, settings, Reporter())
    assert ids(learning.items) == ids(problem.items["search"])
    assert {item.label for chosen in learning.items.values() for item in chosen} == {UNLABELED}
    assert {item.label for chosen in problem.items["search"].values() for item in chosen} == {0, 1, 2}


def test_unlabeled_items_of_one_task_only_and_their_labels(own: list[str]) -> None:
    """Labels that such a file has are neither needed nor looked at, be they names or numbers."""
    unlabeled(own, {"text": "ba ke", "label": "good"}, {"text": "do su", "label": 0}, {"text": "mi ra"})
    settings = plain(compose(*own))
    problem = build_problem(settings, Reporter())
    learning = find_learning(problem, settings, Reporter())
    assert [(item.text, item.label) for item in learning.items["mood"]] == [("ba ke", -1), ("do su", -1), ("mi ra", -1)]
    assert ids({"topic": learning.items["topic"]}) == ids({"topic": problem.items["search"]["topic"]})


def test_unlabeled_items_of_the_select_split_are_refused(own: list[str]) -> None:
    settings = plain(compose(*own))
    problem = build_problem(settings, Reporter())
    known = problem.items["select"]["mood"][0]
    unlabeled(own, {"text": "ba ke"}, {"text": known.text})
    with pytest.raises(
        SuiteError, match="unlabeled items of task 'mood' and select items of task 'mood' share 1 texts"
    ):
        find_learning(problem, settings, Reporter())


def test_experts_are_asked_once(clean: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, before = settings_of("loss=jensen_shannon", f"model.cache={tmp_path}"), state(clean)
    learning = find_learning(under(clean, settings), settings, Reporter())
    assert all(torch.equal(before[name], now) for name, now in state(clean).items())  # the base is back
    for task, said in learning.teachers.items():
        clean.become(task)  # the expert has the name of its task here
        chosen = [item.id for item in learning.items[task]]
        with torch.no_grad():
            for answers in learning.fitness.logits(clean.live.model, learning.prepared, {task: chosen}):
                for place, row in zip(answers[task].positions, answers[task].logits.softmax(-1), strict=True):
                    torch.testing.assert_close(said[chosen[place]], row)
        assert said.keys() == set(chosen)

    def never(*_: object) -> None:
        raise AssertionError("an expert was asked again")

    monkeypatch.setattr(Problem, "become", never)
    again = find_learning(under(clean, settings), settings, Reporter()).teachers
    assert all(torch.equal(again[task][i], row) for task, said in learning.teachers.items() for i, row in said.items())
    shorter = settings | {"fitness": settings["fitness"] | {"max_length": 5}}
    with pytest.raises(AssertionError, match="asked again"):  # they are, where the inputs are cut
        find_learning(under(clean, shorter), shorter, Reporter())


def test_a_damaged_file_of_answers_is_made_again(clean: Problem, tmp_path: Path, caplog) -> None:
    settings = settings_of("loss=jensen_shannon", f"model.cache={tmp_path}")
    first = find_learning(under(clean, settings), settings, Reporter()).teachers
    (file,) = (tmp_path / "teachers").glob("*.safetensors")
    whole = file.read_bytes()
    for damage in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        file.write_bytes(damage)
        caplog.clear()
        with caplog.at_level(logging.WARNING):
            again = find_learning(under(clean, settings), settings, Reporter()).teachers
        assert "is damaged: the experts are asked again" in caplog.text
        assert file.read_bytes() == whole
        assert all(torch.equal(again[task][i], row) for task, said in first.items() for i, row in said.items())


def test_an_expert_that_gives_no_numbers(clean: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings, before = settings_of("loss=jensen_shannon", f"model.cache={tmp_path}"), state(clean)
    become = Problem.become

    def broken(self: Problem, expert: str | None) -> None:
        become(self, expert)
        if expert == "trees":
            next(iter(self.live.model.parameters())).fill_(torch.nan)

    monkeypatch.setattr(Problem, "become", broken)
    with pytest.raises(CheckpointError, match="The expert trees gives no number on 60 of 60 inputs"):
        find_learning(under(clean, settings), settings, Reporter())
    assert all(torch.equal(before[name], now) for name, now in state(clean).items())
    assert not list((tmp_path / "teachers").glob("*.safetensors"))


def test_a_task_without_an_expert_has_no_teacher(clean: Problem, tmp_path: Path) -> None:
    tasks = {
        name: replace(task, expert=None if name == "trees" else name) for name, task in clean.sources.tasks.items()
    }
    orphan = replace(clean, sources=replace(clean.sources, tasks=tasks))
    with pytest.raises(ConfigError, match=r"trees has none: write fitness\.tasks\.trees\.expert="):
        find_learning(orphan, settings_of("loss=jensen_shannon", f"model.cache={tmp_path}"), Reporter())


@pytest.mark.parametrize(("inputs", "size"), [(1, 32), (33, 32), (16, 8)])
def test_a_joint_loss_needs_its_inputs_in_one_batch(clean: Problem, inputs: int, size: int) -> None:
    parts = replace(clean, fitness=Classification(make_heads(clean.sources, clean.vectors.parameters), size))
    with pytest.raises(ConfigError, match=r"loss\.inputs=\d+, but loss\.marginal compares the inputs"):
        find_learning(parts, settings_of("loss=entropy_marginal", f"loss.inputs={inputs}"), Reporter())
    find_learning(parts, settings_of("loss=entropy", f"loss.inputs={inputs}"), Reporter())


def test_items_without_labels_cannot_be_learned_from_by_labels(clean: Problem) -> None:
    items = {**clean.items, "search": {**clean.items["search"], "trees": [make_item("ba ke")]}}
    with pytest.raises(ConfigError, match="trees has an item without a label"):
        find_learning(replace(clean, items=items), settings_of(), Reporter())


@pytest.mark.parametrize("searcher", ["gradient", "hybrid"])
@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("method=ties", r"The method ties is no weighted sum.*method=ties_frozen"),
        ("method=dare_ties", r"The method dare_ties is no weighted sum"),
        ("method=average", r"write method=linear space\.sum=1, which is the same average"),
        ("fitness=custom", r"gives none: write fitness=classification, or a searcher by values"),
    ],
)
def test_what_has_no_gradient_is_refused_before_models_are_loaded(searcher: str, override: str, message: str) -> None:
    more = ["fitness.function=tests.kit.user_fitness:score"] if override == "fitness=custom" else []

    def check(*overrides: str) -> None:
        settings = settings_of(*overrides)
        check_learning(settings, make_fitness(settings["fitness"]))

    with pytest.raises(ConfigError, match=message):
        check(f"searcher={searcher}", override, *more)
    check("searcher=cmaes", override, *more)
    check(f"searcher={searcher}", "method=ties_frozen")
