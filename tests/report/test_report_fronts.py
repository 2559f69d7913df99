"""The page of a search with several values: its front, drawn in pairs, in numbers, and in coefficients."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from evomerge.report import write_report, write_sweep
from evomerge.report.facts import RunFacts
from evomerge.report.fronts import clouds, maps, pictures, rows
from evomerge.runs.directory import open_run
from evomerge.selection.limits import LEAST
from evomerge.selection.statistics import Paired
from tests.kit.fronts import front, write_front
from tests.kit.pages import read
from tests.kit.reports import finish, write_run

THREE = ("reviews", "news", "mood")


def test_two_values_are_one_picture_and_a_table(tmp_path: Path) -> None:
    page = read(write_report(write_front(tmp_path / "two")))
    assert "The search found 4 models, of which none beats another in all values." in page.text
    assert "point_2 was chosen on the select items (the knee of the front)" in page.text
    labels = [value or "" for tag, name, value in page.attributes if (tag, name) == ("svg", "aria-label")]
    assert [label.split(":")[0] for label in labels[:2]] == ["news over reviews", "Candidates"]
    assert "point_2 0.725 and 0.662" in labels[0]
    assert "point_2, the winner" in page.text
    assert "cover a hypervolume of 0.2 on the select items, where all constants cover 0.1, and of 0.15" in page.text
    assert "since a point is better: front_9" in page.text
    assert "what made one better made the other worse in reviews and news (−0.50 ± 0.10)" in page.text
    assert "against each other" in page.text
    for what in (
        "From split to split",
        "Finalists on the select items",
        "Constants on the select items",
        "best so far",
    ):
        assert what not in page.text  # they are of one value


@pytest.mark.parametrize(("values", "drawn", "seen"), [(THREE, 3, 3), ((*THREE, "length"), 1, 0)])
def test_three_values_are_three_pairs_and_more_are_lines(tmp_path: Path, values, drawn, seen) -> None:
    run = write_front(tmp_path / "run", front(values))
    facts = RunFacts(open_run(run))
    assert len(pictures(facts)) == drawn
    assert len(clouds(facts)) == seen
    page = read(write_report(run))
    assert all(value in page.text for value in values)
    for _, chart in pictures(facts):
        assert "1" not in map(chart.x.tick, chart.x.ticks)
        numbered = [mark.label for mark in chart.marks if mark.label]
        assert set(numbered) == {"1", "2", "3", "4"}
        assert {mark.kind for mark in chart.marks} >= {"base", "constant", "finalist", "winner"}


def test_a_mark_stands_at_its_scores_and_its_error_reaches_one_standard_error(tmp_path: Path) -> None:
    facts = RunFacts(open_run(write_front(tmp_path / "run")))
    [(_, chart)] = pictures(facts)
    point = front().winner
    winner = next(mark for mark in chart.marks if mark.kind == "winner")
    x, y, se = (point.report["reviews"].mean or 0), (point.report["news"].mean or 0), 0.01
    assert (winner.x, winner.y) == (chart.x.at(x), pytest.approx(100 - chart.y.at(y)))
    errors = next(line for line in chart.lines if line.kind == "error")
    assert f"M{chart.x.at(x - se)} {winner.y}H{chart.x.at(x + se)}" in errors.path
    stairs = next(line for line in chart.lines if line.kind == "front")
    assert all(f"{mark.x}" in stairs.path for mark in chart.marks if mark.label)  # each of them lies on it


def test_a_base_that_is_far_away_is_left_out_of_the_pictures_that_it_would_squeeze(tmp_path: Path) -> None:
    """And what the best constant is drawn as is seen where it is a point of the front, too."""
    found = front(THREE)
    far = {name: replace(one, mean=-9.0) if name == "news" else one for name, one in found.base.report.items()}
    constant = replace(found.best_constant, report=found.points[0].report)
    apart = replace(
        found,
        base=replace(found.base, report=far),
        constants=[constant if one.name == constant.name else one for one in found.constants],
    )
    run = write_front(tmp_path / "run", apart)
    drawn = {title: [mark.kind for mark in chart.marks] for title, chart in pictures(RunFacts(open_run(run)))}
    assert {title: "base" in kinds for title, kinds in drawn.items()} == {
        "news over reviews": False,
        "mood over reviews": True,
        "mood over news": False,
    }
    assert all(kinds.index("constant") > kinds.index("finalist") for kinds in drawn.values())
    said = "The base lies so far from the others in news that pictures with it leave it out."
    assert said in read(write_report(run)).text
    assert said not in read(write_report(write_front(tmp_path / "near"))).text


def test_gains_are_told_by_two_standard_errors_whichever_way_is_better(tmp_path: Path) -> None:
    told = {row.name: [line.over.verdict for line in row.lines] for row in rows(front())}
    assert told["point_1"] == ["better", "better"]  # .05 ± .02
    assert told["point_2, the winner"] == ["same", "better"]
    assert told["point_4"] == ["same", "better"]
    assert told["base"] == ["same", "same"]
    small = {row.name: [line.over.verdict for line in row.lines] for row in rows(front(minimised=["news"]))}
    assert small["point_1"] == ["better", "worse"]
    run = write_front(tmp_path / "run", front(minimised=["news"]))
    assert "higher is better, but lower in news" in read(write_report(run)).text


def test_coefficients_stand_side_by_side(tmp_path: Path) -> None:
    found = maps(RunFacts(open_run(write_front(tmp_path / "run"))))
    assert [(grid.variable, grid.of, grid.columns) for grid in found] == [
        ("weight", "reviews", ("1", "2", "3", "4")),
        ("weight", "news", ("1", "2", "3", "4")),
    ]
    last = next(row for row in found[1].rows if row.name == "encoder.layer.1")
    assert [cell.value for cell in last.cells] == pytest.approx([0.1, 0.3, 0.5, 0.7])
    assert found[0].rows[0].cells[0].frozen  # the embeddings have no coordinate
    assert found[0].centre == 0.4


def test_a_winner_that_violates_a_constraint_is_named_before_anything_else(tmp_path: Path) -> None:
    page = read(write_report(write_front(tmp_path / "run", front(missed=0.03))))
    before = page.text[: page.text.index("The search found")]
    assert "No finalist holds all constraints on the select items" in before
    assert "news >= 0.98 * base is missed by 3.0%" in before
    assert LEAST in page.text
    assert "point_2, the winner *" in page.text
    kept = read(write_report(write_front(tmp_path / "kept", front(missed=-0.01)))).text
    assert "All points do, on both splits." in kept
    assert LEAST not in kept


def test_a_winner_that_holds_a_limit_but_not_surely_is_not_said_to_miss_it(tmp_path: Path) -> None:
    text = read(write_report(write_front(tmp_path / "run", front(missed=-0.02, lacks=0.03)))).text
    said = "news >= 0.98 * base holds, but not by 2 standard errors"
    assert f"the one that lacks least: {said}." in text
    assert f"point_1: {said} on select." in text
    assert "Fell out since they hold constraints there, but not by 2 standard errors: front_8." in text
    assert "To keep: news >= 0.98 * base, by 2 standard errors on the select items." in text
    assert "violate" not in text
    assert "missed by" not in text


def test_one_point_alone_and_unknown_numbers_are_drawn(tmp_path: Path) -> None:
    alone = front(points=2)
    unknown = {name: replace(score, se=None) for name, score in alone.points[0].report.items()}
    lone = replace(alone, points=[replace(alone.points[0], name="point_2", report=unknown)], trades=None)
    text = read(write_report(write_front(tmp_path / "alone", lone))).text
    assert "One model of those found beats all others." in text
    assert "What was traded for what" not in text


def test_a_search_that_is_not_complete_has_its_candidates(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", "objective=pareto", several=True)
    page = read(write_report(run))
    assert "Candidates: news over reviews" in page.text
    assert "so far is" not in page.text
    assert "12 candidates scored" in page.text


def test_what_is_best_among_several_searches_is_said(tmp_path: Path) -> None:
    runs = [write_front(tmp_path / "front"), finish(write_run(tmp_path / "mean"))]
    page = read(write_sweep(runs))
    assert "1 of the searches have several values: their winner is the point of the front that was chosen" in page.text
    assert len(re.findall("best log probability so far", page.text, re.IGNORECASE)) == 1


def test_searches_by_other_weights_are_not_drawn_together(tmp_path: Path) -> None:
    weighed = {"plain": [], "twice": ["objective.weights={news: 2}"]}
    given = {name: ["objective=chebyshev", *more] for name, more in weighed.items()} | {"worst": ["objective=worst"]}
    page = read(write_sweep([finish(write_run(tmp_path / name, *more)) for name, more in given.items()]))
    distance = "Best minus the largest weighted distance from the experts in log probability (Chebyshev)"
    for title in (
        f"{distance} so far",
        f"{distance}, weighed news 2, so far",
        "Best worst task’s log probability so far",
    ):
        assert title in page.text


@pytest.mark.parametrize(("kept", "select"), [(0.9, None), (0.97, 0.64)])
def test_a_model_that_keeps_too_little_has_no_score_on_select(
    kept: float, select: float | None, tmp_path: Path
) -> None:
    run = write_run(tmp_path / "run", "objective.forget=[news]", "space.bounds={weight: [-1, 0]}")
    finish(run, forgetting={"tasks": ["news"], "share": 0.95, "models": {}, "select": kept})
    optimism = RunFacts(open_run(run)).optimism
    assert (optimism["winner"].select, optimism["best constant"].select) == (select, None)


def test_a_picture_for_slides(tmp_path: Path) -> None:
    run = write_front(tmp_path / "run", front(THREE))
    write_report(run, pictures=True)
    assert {file.stem for file in (run / "report").iterdir()} == {"front", "coefficients", "tasks"}


def test_distances_from_the_experts_are_not_called_accuracy(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run", "objective=chebyshev"))
    facts = RunFacts(open_run(run))
    assert facts.normalised
    assert [(one.search, one.report, one.optimism) for one in facts.optimism.values()] == [(None, None, None)] * 3
    page = read(write_report(run))
    assert "Minus the largest weighted distance from the experts in accuracy (Chebyshev)" in page.text
    assert "minus the largest weighted distance from the experts in log probability (Chebyshev) of" in str(
        page.attributes
    )
    assert "it has fitted the few items" not in page.text


@pytest.mark.parametrize(("missed", "select"), [(0.3, None), (-0.1, 0.64)])
def test_what_a_violated_constraint_costs_is_not_called_accuracy(
    missed: float, select: float | None, tmp_path: Path
) -> None:
    limits = {"wanted": {"news": ">= 0.9"}, "select": {"news": missed}, "report": {"news": missed}}
    run = write_run(tmp_path / "run", 'objective.constraints={news: ">= 0.9"}')
    finish(run, limits=limits)
    optimism = RunFacts(open_run(run)).optimism
    assert (optimism["winner"].select, optimism["best constant"].select, optimism["gain"].select) == (
        select,
        None,
        None,
    )
    page = read(write_report(run))
    assert "One that violates a constraint is worth less than the base, by as much as it lacks." in page.text
    assert "accuracy, or less than the base where a constraint is violated, on select" in page.text
    assert "Mean accuracy, or" not in page.text


def test_a_front_of_one_point_has_no_other_point(tmp_path: Path) -> None:
    found = front(points=2)
    one = replace(found.points[1], over=dict.fromkeys(found.values, Paired(0.0, 0.02)))
    other = replace(found.points[0], over=one.over)
    alone = read(write_report(write_front(tmp_path / "alone", replace(found, points=[one]))))
    two = read(write_report(write_front(tmp_path / "two", replace(found, points=[other, one]))))
    assert "In no value is the winner" in alone.text
    assert "No other point of the front is, either" not in alone.text
    assert "No other point of the front is, either" in two.text
