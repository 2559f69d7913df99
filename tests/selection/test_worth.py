"""What a merge is worth, by hand: from scores and from paired differences to it."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from evomerge.fitness.base import Outcome
from evomerge.runs.parents import table_of_worth
from evomerge.selection.comparison import Comparison
from evomerge.selection.evaluation import compare
from evomerge.selection.statistics import Score
from evomerge.selection.worth import worth_of

RESULTS = {
    "merge": {"a": [1, 1, 1, 0, 1, 1, 1, 1], "b": [1, 1, 0, 0, 1, 0, 0, 0]},
    "base": {"a": [0, 0, 1, 0, 0, 0, 1, 0], "b": [0, 0, 0, 0, 1, 0, 0, 0]},
    "one": {"a": [1, 0, 1, 0, 0, 0, 1, 0], "b": [0, 0, 0, 0, 1, 0, 0, 0]},
    "two": {"a": [0, 0, 0, 0, 0, 0, 0, 0], "b": [1, 1, 0, 0, 1, 0, 1, 1]},
}


def compared(scale: float = 1.0, shift: float = 0.0) -> Comparison:
    """Scores of that form on eight items of two tasks."""

    def outcome(rows: dict[str, list[int]]) -> Outcome:
        ids = {task: [f"{task}{i}" for i in range(len(row))] for task, row in rows.items()}
        return Outcome(ids, {t: {"m": scale * np.array(row, float) + shift} for t, row in rows.items()})

    models, paired = compare({name: outcome(rows) for name, rows in RESULTS.items()}, ["a", "b"], "m", None)
    return Comparison("report", "m", {}, 16, models, paired, {}, {})


def test_a_merge_beside_its_parents() -> None:
    found = worth_of(compared(), ["one", "two"])
    assert found.merge == "merge"
    a, b = found.tasks["a"], found.tasks["b"]
    assert (a.best, a.base, a.merge, a.score, b.best, b.score) == ("one", 0.25, 0.875, 0.375, "two", 0.625)
    assert a.kept == pytest.approx((0.875 - 0.25) / (0.375 - 0.25))
    assert b.kept == pytest.approx((0.375 - 0.125) / (0.625 - 0.125))
    assert found.kept == pytest.approx((5 + 0.5) / 2)
    assert (a.of_best, b.of_best) == (0.875 / 0.375, 0.375 / 0.625)
    assert (a.over, b.over) == (0.5, -0.25)
    differences = np.array(RESULTS["merge"]["a"]) - np.array(RESULTS["one"]["a"])
    assert a.se == pytest.approx(differences.std(ddof=1) / np.sqrt(8))
    assert (a.passes, b.passes) == (True, False)
    assert found.single == "two"
    assert found.over_single.diff == pytest.approx((0.875 + 0.375 - 0 - 0.625) / 2)
    assert found.over_base.diff == pytest.approx((0.875 + 0.375 - 0.25 - 0.125) / 2)


def test_the_share_that_is_kept_is_the_same_for_losses() -> None:
    """Where 0 lies, and how long a unit is, means nothing to it."""
    plain, moved = worth_of(compared(), ["one", "two"]), worth_of(compared(3.0, -10.0), ["one", "two"])
    assert [one.kept for one in moved.tasks.values()] == pytest.approx([one.kept for one in plain.tasks.values()])
    assert [one.passes for one in moved.tasks.values()] == [one.passes for one in plain.tasks.values()]
    assert [one.of_best for one in moved.tasks.values()] == [None, None]  # of losses it means nothing
    columns = ["of its\nscore" in table_of_worth(one).columns for one in (plain, moved)]
    assert columns == [True, False]


def test_an_expert_that_gains_nothing_has_no_share() -> None:
    found = worth_of(compared(), ["two"])
    assert found.tasks["a"].kept is None
    assert found.kept == found.tasks["b"].kept


def test_models_side_by_side_are_read_as_they_were_written() -> None:
    found = replace(compared(), marks={"one": ["it is another"]}, errors={"three": "no memory"})
    found = replace(found, models={**found.models, "three": Score(None, None)})
    assert Comparison.from_plain(json.loads(found.to_json(worth={"more": 1}))) == found
    for damaged in ({}, {"models": []}, {"models": {"a": {"mean": 1.0, "unknown": 2}}, "paired": {}}):
        with pytest.raises(ValueError, match="it holds no models side by side"):
            Comparison.from_plain(damaged)
