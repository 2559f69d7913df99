"""Tables of a front, its points by number, and what their recipes say."""

from __future__ import annotations

from pathlib import Path

import pytest

from evomerge.cli.pace import Pace
from evomerge.common.errors import ConfigError
from evomerge.runs.directory import open_run, read_summary
from evomerge.runs.fronts import find_point, front_lines, front_tables, gains_of, point_scores, recipe_scores
from evomerge.runs.points import find_trial
from evomerge.runs.table import gain_of, tables_of
from evomerge.runs.trackers.generations import Generations
from evomerge.search.journal import read_log
from evomerge.selection.limits import said_of
from evomerge.selection.summary import Summary
from tests.kit.fronts import front, write_front
from tests.kit.reports import finish, write_run


@pytest.fixture
def summary(tmp_path: Path) -> Summary:
    found = read_summary(write_front(tmp_path / "run", front(missed=0.03)))
    assert found is not None
    return found


def test_the_tables_show_each_point_in_each_value(summary: Summary) -> None:
    scores, gains = front_tables(summary)
    assert [row[0] for row in scores.rows] == [
        "base",
        "experts, each on its own task",
        "best constant 0.4",
        "point_1",
        "point_2, the winner",
        "point_3",
        "point_4",
    ]
    assert scores.columns == ["", "reviews", "news"]
    assert scores.rows[4][1:] == ["0.7250 ± 0.0100", "0.6625 ± 0.0100"]
    assert gains.rows[1] == ["point_2, the winner", "+0.0250 ± 0.0200", "+0.0750 ± 0.0200"]
    said = "news >= 0.98 * base is missed by 3.0%"
    assert scores.notes[0] == f"point_1: {said} on select; {said} on report"
    assert tables_of(summary)[:2] == [scores, gains]
    assert tables_of(summary)[2].notes[-1].startswith("the winner is point_2 of the front; means over all tasks")
    assert any(note.startswith("* winner: it violates constraints") for note in tables_of(summary)[2].notes)


def test_the_lines_say_how_the_winner_was_chosen(summary: Summary) -> None:
    lines = front_lines(summary)
    assert lines[0].startswith("the winner is point_2, by the knee of the front; `evomerge export RUN --point 1`")
    assert lines[1].startswith("hypervolume 0.15 on report, 0.2 on select, where all constants cover 0.1")
    assert lines[2] == "of the finalists fell out 1 since a point is better"
    assert lines[3].startswith("over 40 candidates, what made one better made the other worse in reviews and news")
    assert (
        gain_of(summary)
        == gains_of(front())
        == ("winner (point_2) - best constant 0.4: reviews +0.0250 ± 0.0200, news +0.0750 ± 0.0200 (paired)")
    )


def test_one_value_has_no_front(tmp_path: Path) -> None:
    run = finish(write_run(tmp_path / "run"))
    summary = read_summary(run)
    assert summary is not None
    assert front_tables(summary) == front_lines(summary) == []
    with pytest.raises(ConfigError, match="has one value, and so no front"):
        find_point(open_run(run), "1")
    with pytest.raises(ConfigError, match="is not complete, so it has no front yet"):
        find_point(open_run(write_run(tmp_path / "open")), "1")


def test_points_are_found_by_number_and_unknown_ones_refused_with_the_list(tmp_path: Path) -> None:
    run = open_run(write_front(tmp_path / "run"))
    assert find_point(run, "3") == find_point(run, "point_3") == front().points[2]
    for name in ("5", "0", "point_x", "best", ""):
        with pytest.raises(ConfigError, match=r"has no point_.*There are point_1 \(reviews 0.8000, news 0.6000\); poi"):
            find_point(run, name)


def test_a_recipe_says_which_point_it_is(summary: Summary) -> None:
    point = front(missed=0.03).points[2]
    scores = recipe_scores(summary, point)
    assert scores["front"]["point"] == scores["point"] == "point_3"
    assert (scores["front"]["of"], scores["front"]["winner"], scores["split"]) == (4, "point_2", "report")
    assert scores["front"]["violations"]["select"] == {"news": 0.03}
    value = scores["front"]["values"]["reviews"]
    assert (value["mean"], value["better"]) == (pytest.approx(0.65), "higher")
    assert value["best_constant"]["mean"] == pytest.approx(0.8 - 0.27)
    assert value["point_vs_best_constant"] == {"diff": pytest.approx(0.0), "se": 0.02}


def test_a_recipe_says_how_surely_a_limit_had_to_hold(tmp_path: Path) -> None:
    found = front(missed=-0.02, lacks=0.03)
    summary = read_summary(write_front(tmp_path / "run", found))
    assert summary is not None
    assert "\n".join(front_lines(summary)).count("1 since they hold constraints, but not by 2 standard errors") == 1
    scores = point_scores(summary, found.points[2])
    assert scores["violations"] == {"select": {"news": -0.02}, "report": {"news": -0.02}}
    assert (scores["sure"], scores["unsure"]) == (2.0, ["news"])
    assert recipe_scores(summary, found.points[2])["front"] == scores


def test_what_is_missed_of_a_limit_of_zero_is_no_share() -> None:
    wanted = {"a": ">= 0", "b": "<= 0.5", "c": ">= -0.0"}
    said = "a >= 0 is missed by 0.5, b <= 0.5 is missed by 50.0%, c >= -0.0 is missed by 1.25"
    assert said_of(wanted, {"a": 0.5, "b": 0.5, "c": 1.25}) == said


def test_minimised_values_of_a_trial_have_their_names_and_the_sign_of_their_scores(tmp_path: Path) -> None:
    given = {"good": ["reviews"], "gone": {"tasks": ["news"], "minimise": True}}
    settings = "objective.values={good: [reviews], gone: {tasks: [news], minimise: true}}"
    run = open_run(write_run(tmp_path / "run", "objective=pareto", settings, tasks=("reviews", "news"), several=True))
    run.identity["objective"] = {
        "metric": "log_probability",
        "aggregate": "pareto",
        "values": [*map(list, given.items())],
    }
    trials = [trial for batch in run.batches for trial in batch.trials if trial and trial.values]
    (good, gone), *_ = [trial.values for trial in trials if trial.values]
    assert find_trial(run, "0").about["values"] == {"good": good, "gone": -gone}
    pace = Pace(trials, 100, lambda: 60.0, given)
    best = [max(each) for each in zip(*(trial.values or () for trial in trials), strict=True)]
    assert str(pace).startswith(f"best of each good {best[0]:.4f}, gone {-best[1]:.4f}  ")
    generations = Generations("log_probability", given)
    told = [numbers for line in read_log(run.path / "trials.jsonl") if (numbers := generations.take(line))]
    assert (told[-1]["best/good"], told[-1]["best/gone"]) == (best[0], -best[1])
