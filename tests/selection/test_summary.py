"""The content of `summary.json`: the same text as ever, and what version 0.2 wrote can be read."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import LogError
from evomerge.runs.directory import open_run
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.summary import GAIN, Selected, Summary
from tests.kit.reports import finish, write_run

ROW = {"mean": 0.5, "se": 0.1, "tasks": {"a": 0.5}, "tasks_se": {"a": 0.1}}
OF_0_2: dict[str, Any] = {
    "report": {"base": ROW, "best_constant": ROW, "winner": {**ROW, "se": None}},
    "paired": {GAIN: {"diff": 0.0, "se": None, "tasks": {"a": 0.0}, "tasks_se": {"a": None}}},
    "alike": ["base"],
    "metric": "accuracy",
    "select": {
        "winner": "best",
        "finalists": {"best": 0.7, "mean": None},
        "constant": "0.4",
        "constants": {"0.4": 0.6},
    },
    "items": {"search": 4, "select": 40, "report": 60},
    "measures": {"a": "accuracy"},
    "stop": "budget",
    "trials": 16,
    "failed": 1,
    "run": "0123456789abcdef",
    "marks": {"base": ["it runs otherwise"]},
    "warnings": ["few items"],
    "doubts": [],
    "seconds": {"merge": 0.1, "forward": 1.0, "other": 0.0},
    "versions": {"evomerge": "0.2.0"},
}


def test_the_file_is_that_of_version_0_2_with_more_in_it() -> None:
    summary = Summary.from_json(json.dumps(OF_0_2))
    again = json.loads(summary.to_json())
    assert list(again["select"])[:4] == list(OF_0_2["select"])
    again["select"] = {name: again["select"][name] for name in OF_0_2["select"]}  # which knows more now
    assert {name: again[name] for name in OF_0_2} == OF_0_2
    assert [name for name in again if name in OF_0_2] == list(OF_0_2)
    assert Summary.from_json(summary.to_json()) == summary
    assert (summary.winner.mean, summary.gain.se, summary.select.value) == (0.5, None, 0.7)
    assert summary.experts is None


def test_one_that_lacks_what_came_later_can_be_read() -> None:
    late = {"alike", "measures", "marks", "warnings", "doubts", "seconds", "versions"}
    summary = Summary.from_json(json.dumps({name: value for name, value in OF_0_2.items() if name not in late}))
    assert (summary.marks, summary.doubts, summary.measures, summary.alike) == ({}, [], {}, [])
    assert "marks" not in json.loads(summary.to_json())


def test_the_trials_of_finalists_come_back() -> None:
    trials = {"best": (2, 1), "mean": None}
    summary = Summary.from_json(json.dumps(OF_0_2))
    summary = replace(summary, select=replace(summary.select, trials=trials))
    assert Summary.from_json(summary.to_json()).select.trials == trials


def test_what_is_not_finite_is_nothing_in_the_file() -> None:
    score = Score(math.nan, math.inf, {"a": math.nan}, {"a": math.nan})
    select = Selected("best", {"best": 0.1, "mean": -math.inf}, "0.4", {"0.4": 0.6})
    summary = Summary(
        report=dict.fromkeys(("base", "best_constant", "winner"), score),
        paired={GAIN: Paired(math.nan, math.nan)},
        metric="m",
        select=select,
        items={},
        stop="budget",
        trials=1,
        failed=0,
        run=None,
    )
    again = Summary.from_json(summary.to_json())
    assert again.winner == Score(None, None, {"a": None}, {"a": None})
    assert again.select.finalists == {"best": 0.1, "mean": None}
    assert again.gain == Paired(None, None)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"report": 1}', '{"colour": "red"}'])
def test_a_damaged_one_is_named(text: str, tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"))
    (run / "summary.json").write_text(text)
    with pytest.raises(LogError, match=r"summary\.json cannot be read .*: delete it, and run"):
        open_run(run)
