"""Searches that cannot tell their candidates apart say so, at their end, in their summary and on their page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import EvomergeError
from evomerge.report import write_report
from evomerge.runs.run import run_search
from evomerge.search.stopping import HOPELESS
from evomerge.selection.doubts import of_search, of_selection
from evomerge.selection.summary import Selected
from evomerge.trials import Batch, Trial
from tests.kit.helpers import compose
from tests.kit.pages import read
from tests.kit.reports import finish, write_run


def batch(index: int, values: list[float | None], gradients: list[list[float]] | None = None, **more: Any) -> Batch:
    """A batch of points that differ; None is a failed one."""
    points = np.arange(2.0 * len(values)).reshape(-1, 2) + index
    trials = [
        Trial(index, i, "failed", None, error=f"ValueError: {i} of 9")
        if value is None
        else Trial(index, i, "ok", (value,), gradient=gradients[i] if gradients else None, **more)
        for i, value in enumerate(values)
    ]
    return Batch(index, points, list(trials), gradient=gradients is not None)


def results(value: float) -> dict[str, Any]:
    return {"items": {"a": ["1", "2"]}, "results": {"a": {"m": [value, 1 - value]}}}


def test_candidates_that_scored_alike() -> None:
    (said,) = of_search([batch(0, [0.5, 0.5]), batch(1, [0.5, None])])
    assert said.startswith("All 3 candidates scored 0.5, so which of them won is an accident. Take more search items")
    assert of_search([batch(0, [0.5, 0.5]), batch(1, [0.5 + 1e-16 * 2])]) == []  # nearly is not alike
    assert of_search([batch(0, [0.5])]) == []  # a single one cannot differ
    assert of_search([]) == []
    assert of_search([batch(0, [0.0, 0.0])])[0].startswith("All 2 candidates scored 0,")


def test_candidates_that_are_alike_on_every_item_make_one_look_at_the_fitness() -> None:
    assert (
        "does the fitness look at the model" in of_search([batch(i, [0.5, 0.5], **results(1.0)) for i in range(3)])[0]
    )
    apart = [batch(0, [0.5, 0.5], **results(1.0)), batch(1, [0.5], **results(0.0))]
    assert "finer metric" in of_search(apart)[0]
    rotated = [batch(0, [0.5], **results(1.0)), batch(1, [0.5], **{**results(1.0), "items": {"a": ["3", "4"]}})]
    assert "finer metric" in of_search(rotated)[0]


def test_a_gradient_that_is_nowhere_and_kinds_of_candidates_that_all_failed() -> None:
    flat = batch(1, [-0.7], [[0.0, 0.0]])
    assert "The gradient was 0 in all 2 steps" in of_search([flat, flat])[0]
    assert of_search([flat, batch(2, [-0.7], [[0.0, 1e-9]])]) == []
    failed = [batch(i, [None], [[0.0, 0.0]]) for i in (1, 2)]
    values = batch(0, [0.1, 0.2])
    assert of_search([values, *failed]) == [
        "All 2 steps of the gradient failed, so the winner comes from the other candidates alone. Most often: "
        "“ValueError: 0 of 9”."
    ]
    assert of_search([batch(0, [None, None]), batch(1, [-0.7], [[0.1, 0.0]])])[0].startswith(
        "All 2 candidates by value"
    )


def selection(
    finalists: Mapping[str, float | None], constants: Mapping[str, float | None], alike: tuple[str, ...] = ()
) -> tuple[Selected, list[str]]:
    winner, constant = next(iter(finalists)), next(iter(constants))
    return Selected(winner, finalists, constant, constants), list(alike)


def test_finalists_and_constants_that_scored_alike() -> None:
    apart = {"0.1": 0.2, "0.2": 0.3}
    assert of_selection(*selection({"best": 0.5, "mean": 0.4}, apart)) == []
    assert of_selection(*selection({"best": 0.5}, {"0.1": 0.2})) == []
    (said,) = of_selection(*selection({"best": 0.5, "mean": 0.5, "constant 0.1": 0.5}, apart))
    assert said.startswith("All 3 finalists scored 0.5 on the select items, so the winner, best, is only the first")
    (said,) = of_selection(*selection({"best": 0.5, "mean": 0.4}, dict.fromkeys(apart, 0.0)))
    assert said.startswith("All 2 constants scored 0 on the select items, so the best one, 0.1,")


def test_a_winner_that_is_no_different_from_another_model() -> None:
    apart = ({"best": 0.5, "mean": 0.4}, {"0.1": 0.2, "0.2": 0.3})
    assert of_selection(*selection(*apart, ("base",))) == [
        "On every single report item the winner has the same result as the base."
    ]
    assert "as the base, and as the best constant." in of_selection(*selection(*apart, ("base", "best_constant")))[0]
    itself = ({"constant 0.1": 0.5, "mean": 0.4}, apart[1])  # of course it is
    assert of_selection(*selection(*itself, ("best_constant",))) == []


def test_a_page_says_it_of_runs_that_have_not_ended_and_of_earlier_versions(tmp_path: Path) -> None:
    said = "so which of them won is an accident"
    running = write_run(tmp_path / "running", score=lambda number: 0.25)
    assert said in read(write_report(running)).text
    assert said in read(write_report(finish(running))).text
    assert said not in read(write_report(finish(write_run(tmp_path / "other")))).text


@pytest.fixture(scope="module")
def few(pico_suite: Any, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    sizes = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=6", "fitness=custom"]
    return ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={cache}", "model.device=cpu", *sizes]


def test_a_fitness_that_does_not_look_at_the_model(
    few: list[str], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    (tmp_path / "mine.py").write_text(
        "def score(model, processor, items):\n"
        "    return {task: [float(len(item.text)) for item in chosen] for task, chosen in items.items()}\n"
    )
    given = [f"fitness.function={tmp_path}/mine.py:score", "budget=8", "searcher=random"]
    summary = run_search(compose(*few, *given), tmp_path / "run", Reporter())
    assert summary is not None
    doubts = summary.doubts
    who = [text.split(" scored")[0] for text in doubts[:3]]
    assert who == ["All 8 candidates", f"All {len(summary.select.finalists)} finalists", "All 15 constants"]
    assert "does the fitness look at the model" in doubts[0]
    assert doubts[3].startswith("On every single report item the winner has the same result as the base, and as the")
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["doubts"] == doubts
    shown = " ".join("".join(capfd.readouterr()).split())
    page = read(write_report(tmp_path / "run")).text
    assert all(f"note: {text}" in shown and text in page for text in doubts)


def test_a_search_of_failures_ends_early_names_them_and_stays_so(few: list[str], tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "seen = []\n"
        "def score(model, processor, items):\n"
        "    seen.append(sum(parameter.sum().item() for parameter in model.parameters()))\n"
        "    if seen[-1] != seen[0]:\n"
        "        raise RuntimeError(f'no merge, please, not {len(seen)} of them')\n"
        "    return {task: [1.0] * len(chosen) for task, chosen in items.items()}\n"
    )
    given = [f"fitness.function={tmp_path}/mine.py:score", "budget=60", "searcher=random", "searcher.batch=4"]
    run = tmp_path / "run"
    for budget in (60, 60, 80):
        with pytest.raises(EvomergeError, match=r"All 10 candidates failed.*\(10 times\): RuntimeError: no") as error:
            run_search(compose(*few, *given, f"budget={budget}"), run, Reporter())
    assert "search in another run directory (hydra.run.dir=runs/another)" in str(error.value)
    assert HOPELESS <= 14  # six constants, and two batches
    assert "The search ended early, because every candidate failed" in read(write_report(run)).text
    (tmp_path / "mine.py").write_text(
        "def score(model, processor, items):\n"
        "    return {task: [1.0] * len(chosen) for task, chosen in items.items()}\n"
    )
    assert run_search(compose(*few, *given, "budget=2"), tmp_path / "another", Reporter()) is not None
