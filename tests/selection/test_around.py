"""The value around a merge, by hand: what is sharp, what is higher, and what changes nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.cli.around import show_around
from evomerge.cli.progress import Reporter
from evomerge.selection.around import ALL, FACTORS, Around, around_of, neighbours
from evomerge.selection.comparison import Comparison
from evomerge.selection.forgetting import Forgetting, Kept
from evomerge.selection.named import Model
from evomerge.selection.statistics import Paired, Score

WINNER = Model("recipe", Path("recipe.yaml"))


def compared(values: dict[float, tuple[float | None, float]], row: str = "a") -> Comparison:
    """Scores of a winner and of its neighbours: by factor the difference to it, and its standard error."""
    names = {name: values[model.factor] for name, model in neighbours(WINNER, [row]).items()}
    models = {"runs/x": Score(0.5, 0.02)}
    models |= {name: Score(None if diff is None else 0.5 + diff, 0.02) for name, (diff, _) in names.items()}
    paired = {name: Paired(diff, None if diff is None else se) for name, (diff, se) in names.items()}
    return Comparison("select", "accuracy", {"t": "accuracy"}, 60, models, paired, {}, {})


def around(**changes: tuple[float | None, float]) -> list[Around]:
    values = {factor: changes.get(f"f{factor * 10:.0f}", (-0.01, 0.01)) for factor in FACTORS}
    return around_of(compared(values), ["a"])


def test_the_neighbours_of_a_recipe() -> None:
    found = neighbours(WINNER, ["a", "b"])
    assert len(found) == 3 * len(FACTORS)
    assert (found[f"{ALL} times 0.5"].factor, found[f"{ALL} times 0.5"].row) == (0.5, None)
    assert (found["b times 1.5"].factor, found["b times 1.5"].row) == (1.5, "b")


def test_a_flat_top_a_sharp_peak_and_a_slope() -> None:
    whole, row = around(f5=(-0.2, 0.01), f15=(None, 0.0))
    assert (whole.row, row.row) == (ALL, "a")
    assert [point.factor for point in whole.points] == sorted((*FACTORS, 1.0))
    assert (whole.lower, whole.higher, whole.level) == ([], [], False)  # far away it may lose
    both, one = around(f9=(-0.05, 0.01), f12=(-0.021, 0.01))[0], around(f8=(-0.05, 0.01), f9=(-0.05, 0.01))[0]
    assert (both.lower, both.sharp) == ([0.9, 1.2], True)
    assert (one.lower, one.sharp) == ([0.8, 0.9], False)
    assert around(f13=(0.03, 0.01))[0].higher == [1.3]
    assert around_of(compared(dict.fromkeys(FACTORS, (0.0, 0.0))), ["a"])[0].level


def test_what_forgets_more_and_keeps_too_little_is_no_better() -> None:
    result, score = compared(dict.fromkeys(FACTORS, (0.05, 0.01))), Score(0.5, 0.02)
    kept = {name: 0.9 if name.endswith("1.5") else 0.96 for name in result.models}
    models = {name: Kept(score, score, share, 0.01) for name, share in kept.items()}
    whole, row = around_of(replace(result, forgetting=Forgetting(["t"], 0.95, models)), ["a"])
    assert whole.higher == row.higher == [factor for factor in FACTORS if factor != 1.5]


def test_what_changes_the_other_tasks_alone_is_no_level(capsys: pytest.CaptureFixture[str]) -> None:
    """As where nothing more can be forgotten: the score of that is 0 throughout, and what is kept falls."""
    result, score = compared(dict.fromkeys(FACTORS, (0.0, 0.0))), Score(0.5, 0.02)
    same = {name: Kept(score, score, 1.0, 0.01) for name in result.models}
    assert around_of(replace(result, forgetting=Forgetting(["t"], 0.95, same)), ["a"])[0].level
    falls = {**same, f"{ALL} times 1.3": Kept(score, score, 0.96, 0.01), f"{ALL} times 1.5": Kept(score, score, 0.8, 0)}
    result = replace(result, forgetting=Forgetting(["t"], 0.95, falls))
    whole, row = around_of(result, ["a"])
    assert (whole.level, row.level) == (False, True)
    assert [point.kept for point in whole.points][-3:] == [1.0, 0.96, 0.8]
    show_around([whole], result, Reporter())
    out = " ".join(capsys.readouterr().out.split())
    assert "no factor changes" not in out
    assert "times 1.5, it keeps too little of the base's score on the other tasks" in out


@pytest.mark.parametrize("se", [math.nan, None])
def test_one_item_of_a_task_leaves_the_error_unknown(se: float | None, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared(dict.fromkeys(FACTORS, (-0.00001, 0.0)))
    result = replace(result, paired={name: Paired(one.diff, se) for name, one in result.paired.items()})
    found = around_of(result, ["a"])
    assert {point.errors for point in found[0].points} == {None}
    show_around(found, result, Reporter())
    out = " ".join(capsys.readouterr().out.split())
    assert "+0.0000 ± unknown" in out
    assert "whether it is a sharp peak is not known: times 0.8, times 0.9, times 1.1, times 1.2, the difference" in out
    for wrong in ("no sharp peak", "-0.0000", "nan"):
        assert wrong not in out


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({factor: (-0.01, 0.01) for factor in FACTORS}, "no sharp peak: from times 0.8 to times 1.2"),
        ({factor: (-0.05, 0.01) for factor in FACTORS}, "a sharp peak: times 0.8, times 0.9, times 1.1, times 1.2"),
        (
            {factor: (-0.05 * (factor < 1), 0.01) for factor in FACTORS},
            "it falls off on one side: times 0.8, times 0.9",
        ),
        ({factor: (0.05, 0.01) for factor in FACTORS}, "the search has not reached the top in this direction"),
        (dict.fromkeys(FACTORS, (0.0, 0.0)), "no factor changes a single result"),
        (
            dict.fromkeys(FACTORS, (None, 0.0)),
            "peak is not known: times 0.8, times 0.9, times 1.1, times 1.2, it has no",
        ),
    ],
)
def test_what_is_said(values: dict, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    result = compared(values)
    show_around(around_of(result, ["a"]), result, Reporter())
    out = capsys.readouterr().out
    assert said in out
    assert "runs/x with all its weights scaled; accuracy on 60 select items" in out
    assert "times 0.5" in out
