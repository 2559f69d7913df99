"""A report is drawn of whatever numbers a run has: none, one, all alike, huge, or unknown."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from evomerge.report import write_report, write_sweep
from tests.kit.pages import read
from tests.kit.reports import finish, write_run

SCORES: dict[str, Callable[[int], float]] = {
    "zero": lambda number: 0.0,
    "alike": lambda number: 0.25,
    "negative": lambda number: -3.0 - number,
    "alike and negative": lambda number: -0.5,
    "tiny": lambda number: 1e-300 * number,
    "nearly alike": lambda number: 1.0 + number * 2.0**-52,
    "huge": lambda number: 1e300 * (number - 5),
    "not a number": lambda number: float("nan"),
    "infinite": lambda number: float("inf"),
    "one in two": lambda number: number if number % 2 else float("nan"),
}
RUNS: dict[str, dict[str, Any]] = {
    "several": {},
    "one trial": {"batches": 1, "size": 1},
    "one task": {"tasks": ("reviews",)},
    "one item": {"items": 1},
    "steps": {"steps": 3},
    "only steps": {"batches": 0, "steps": 1},
}


def summary_of(score: float | None, se: float | None, tasks: tuple[str, ...]) -> dict[str, Any]:
    """Entries of a summary in which every model has the same score."""
    row = {"mean": score, "se": se, "tasks": dict.fromkeys(tasks, score), "tasks_se": dict.fromkeys(tasks, se)}
    diff = None if score is None else 0.0
    paired = {"diff": diff, "se": se, "tasks": dict.fromkeys(tasks, diff), "tasks_se": dict.fromkeys(tasks, se)}
    known = 0.0 if score is None else score
    select = {"winner": "best", "finalists": {"best": known, "mean": known, "constant 0.4": None}}
    select |= {"constant": "0.4", "constants": {"0.4": known}}
    return {
        "report": dict.fromkeys(("base", "experts", "best_constant", "winner"), row),
        "paired": {"winner_vs_best_constant": paired},
        "select": select,
    }


@pytest.mark.parametrize("score", SCORES)
@pytest.mark.parametrize("run", RUNS)
def test_whatever_the_candidates_scored_there_is_a_page(run: str, score: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", score=SCORES[score], **RUNS[run])
    page = read(write_report(path))
    assert max(map(len, page.text.split())) < 100  # no number of three hundred digits
    write_sweep([path], tmp_path / "sweep.html", again=False)


@pytest.mark.parametrize(
    ("score", "se", "tasks"),
    [
        (score, se, ("reviews", "news")[: 1 + number % 2])  # one task, two tasks, in turns
        for number, (score, se) in enumerate(product([0.0, 1.0, -2.5, -1e300, 1e300, 1e-12, None], [0.0, 0.01, None]))
    ],
    ids=str,
)
def test_whatever_the_models_scored_there_is_a_page(
    tasks: tuple[str, ...], score: float | None, se: float | None, tmp_path: Path
) -> None:
    path = write_run(tmp_path / "run", tasks=tasks, score=lambda number: score or 0.0)
    finish(path, **summary_of(score, se, tasks))
    page = read(write_report(path))
    assert ("is not known" in page.text) == (score is None)
    write_sweep([path, path], tmp_path / "sweep.html", again=False)


@pytest.mark.parametrize("score", ["alike", "tiny", "nearly alike", "huge", "infinite", "one in two"])
def test_whatever_the_candidates_scored_there_are_pictures(score: str, tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", score=SCORES[score], steps=2)
    known = score not in ("not a number", "infinite")
    if known:
        finish(path, **summary_of(SCORES[score](1), 0.0, ("reviews", "news")))
    write_report(path, pictures=True)
    pictures = {file.name for file in (path / "report").glob("*.png")}
    assert pictures == ({"convergence.png", "coefficients.png", "tasks.png"} if known else set())


def test_all_candidates_failed_and_there_is_a_page(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", batches=2, errors=dict.fromkeys(range(1, 9), "ValueError: 7 of 8 are bad"))
    page = read(write_report(path))
    assert "All 8 candidates so far have failed" in page.text
    assert "ValueError: 7 of 8 are bad” (8 times)" in page.text


def test_a_run_without_a_trial_has_a_page(tmp_path: Path) -> None:
    path = write_run(tmp_path / "run", batches=0)
    assert "has not scored a candidate yet" in read(write_report(path)).text
    assert json.loads((path / "trials.jsonl").read_text().splitlines()[-1])["kind"] == "ask"
