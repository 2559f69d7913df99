"""The part that each task plays: what is refused, and a search with a task that it never sees and one to forget."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.borrowed import _overlaid
from evomerge.cli.evaluate import main
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, LogError
from evomerge.problem import Problem
from evomerge.report.page import write_report
from evomerge.report.result import Result
from evomerge.runs.build import build_problem
from evomerge.runs.compare import run_comparison
from evomerge.runs.config import check, plain
from evomerge.runs.contestants import Compared
from evomerge.runs.directory import open_run
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import find_learning
from evomerge.runs.outputs import _marks
from evomerge.runs.points import find_finalist, find_trial
from evomerge.runs.preflight import _aims
from evomerge.runs.roles import check_names, role_notes, set_apart
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.table import gain_of, tables_of
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.searchers.greedy import Greedy
from evomerge.searchers.warm import WarmStart
from evomerge.selection.forgetting import Forgetting, Kept, doubts_of
from evomerge.selection.statistics import Score
from evomerge.selection.summary import GAIN, OVER, Summary
from evomerge.space.coefficients import make_space
from tests.kit.helpers import compose

NEGATIVE = "space.bounds={weight: [-1, 0]}"
FORGET = ("objective.forget=[trees]", "objective.keep=0.8", NEGATIVE)
TASKS = ("animals", "trees", "metals")
ALL = list(TASKS)
TREES, BELOW = {"forget": ["trees"]}, {"space": {"bounds": {"weight": [-1, 0]}}}
HELD = {"fitness": {"held_out": ["metals"]}}


@pytest.fixture(scope="module")
def usual() -> dict[str, Any]:
    return plain(compose("model=pico"))


def changed(settings: dict[str, Any], *changes: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The same settings with those of some groups in place of theirs."""
    for change in changes:
        settings = {**settings, **{group: {**settings[group], **values} for group, values in change.items()}}
    return settings


def checked(settings: dict[str, Any]) -> None:
    check(settings)
    check_names(settings, TASKS)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ([{"fitness": {"held_out": "trees"}}], r"fitness\.held_out is trees; write a list of tasks: '.*=\[mood\]'"),
        ([{"fitness": {"held_out": ["tree"]}}], "fitness.held_out: Unknown task 'tree': did you mean 'trees'"),
        ([{"fitness": {"held_out": ALL}}], "names all tasks, so nothing is left to search by"),
        ([HELD, {"objective": {"weights": {"metals": 2}}}], r"weights names the task metals, which is held out"),
        ([HELD, {"objective": {"forget": ["metals"]}}, BELOW], r"forget names the task metals, which is held out"),
        ([{"objective": {"forget": "trees"}}], r"objective\.forget is trees; write a list"),
        ([{"objective": {"forget": ["tree"]}}, BELOW], "objective.forget: Unknown task 'tree': did you mean 'trees'"),
        ([{"objective": TREES}], r"needs negative weights, .*write 'space\.bounds=\{weight: \[-1, 0\]\}'"),
        ([{"objective": {"forget": ALL}}, BELOW], "nothing says what is to be kept"),
        ([HELD, {"objective": {"forget": ["trees", "animals"]}}, BELOW], "nothing says what is to be kept"),
        ([{"objective": {"keep": 0}}], r"objective\.keep=0 is no share"),
        ([{"objective": {"keep": 1.5}}], r"objective\.keep=1\.5 is no share"),
        ([{"objective": {**TREES, "aggregate": "worst"}}, BELOW], r"leave out objective\.aggregate"),
        ([{"objective": {**TREES, "normalised": True}}, BELOW], r"leave out objective\.aggregate and objective\.norm"),
        ([{"objective": TREES, "fitness": {"rotate": True}}, BELOW], r"forget needs base .*fitness\.rotate=true"),
        ([{"objective": {"normalised": True}, "fitness": {"rotate": True}}], r"objective\.normalised needs base and"),
        ([{"objective": {"normalised": True}, "fitness": {"grow": 0.5}}], r"with fitness\.grow those change"),
        ([{"objective": {"weights": {"trees": -1}}}], "finite numbers, none negative"),
        ([{"objective": {"weights": {"trees": math.nan}}}], "finite numbers, none negative"),
    ],
)
def test_what_contradicts_itself_is_refused(usual: dict[str, Any], changes: list[Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        checked(changed(usual, *changes))


def test_bounds_that_add_are_said_where_they_were_asked_for(usual: dict[str, Any]) -> None:
    added = changed(usual, {"objective": TREES, "space": {"bounds": {"weight": [0, 1]}}})
    checked(added)
    assert "takes no task vector away" in role_notes(added)[0]
    assert role_notes(changed(usual, {"objective": TREES}, BELOW)) == role_notes(usual) == []
    assert "write objective.forget=[task] as well" in role_notes(changed(usual, {"objective": {"keep": 0.9}}))[0]


def test_setting_apart_loses_no_report_item() -> None:
    items: Any = {split: {task: [f"{split} {task}"] for task in "abc"} for split in ("search", "select", "report")}
    assert set_apart(items, ()) == items
    apart = set_apart(items, ("b",))
    assert [list(apart[split]) for split in ("search", "select", "report")] == [["a", "c"]] * 3
    assert apart["held_out"] == {"b": ["report b"]}


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    small = ["fitness.items=30", "fitness.select_items=60", "fitness.report_items=60", "budget=9", "space=model"]
    return ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={cache}", "model.device=cpu", *small]


@pytest.fixture(scope="module")
def run(sources: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A search that never sees metals and is to forget trees, so that animals are its control."""
    path = tmp_path_factory.mktemp("run")
    config = compose(*sources, *FORGET, "fitness.held_out=[metals]", "searcher=random")
    assert run_search(config, path, Reporter()) is not None
    return path


def test_a_search_never_sees_what_is_held_out(run: Path) -> None:
    opened = open_run(run)
    assert opened.summary is not None
    assert all(set(trial.items) == {"animals", "trees"} for trial in opened.trials())
    assert set(opened.identity["items"]) == {"animals", "trees"}
    assert set(opened.summary.base.tasks) == {"animals", "trees"}
    found = opened.summary.held_out
    assert found is not None
    assert opened.summary.items["held_out"] == 60
    assert list(found.report) == ["base", "experts", "best_constant", "winner"]
    assert all(list(row.tasks) == ["metals"] for row in found.report.values())
    for other, name in ((GAIN, "best_constant"), (OVER, "base")):
        assert found.paired[other].diff == pytest.approx(found.report["winner"].mean - found.report[name].mean)
    text = opened.summary.to_json()
    assert Summary.from_json(text).to_json() == text


def test_candidates_are_ranked_by_what_they_forget_and_keep(run: Path) -> None:
    """Values, from the results in the log."""
    opened = open_run(run)
    assert all(point.max() <= 0 for batch in opened.batches for point in batch.points)
    trials = list(opened.trials())
    floors = {round(t.violations[0] + t.scores["animals"]["accuracy"], 9) for t in trials}
    assert len(floors) == 1  # 80 % of what the base has on the same items
    keeping, losing = ([t for t in trials if (t.violations[0] <= 0) == keeps] for keeps in (True, False))
    assert keeping
    assert losing
    assert [t.values for t in keeping] == [(pytest.approx(-t.scores["trees"]["log_probability"]),) for t in keeping]
    assert len({round(t.values[0] + t.violations[0], 9) for t in losing}) == 1  # what the base is worth


def test_both_numbers_are_reported(run: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    summary = open_run(run).summary
    assert summary is not None
    assert summary.forgetting is not None
    models = summary.forgetting.models
    assert set(models) == {"base", "experts", "best_constant", "winner"}
    for name, row in summary.report.items():
        assert models[name].forget.mean == pytest.approx(row.tasks["trees"])
        assert models[name].control.mean == pytest.approx(row.tasks["animals"])
        assert row.mean == pytest.approx(-row.tasks["trees"])
        assert models[name].kept == pytest.approx(row.tasks["animals"] / summary.base.tasks["animals"])
    assert summary.gain.diff == pytest.approx(models["best_constant"].forget.mean - models["winner"].forget.mean)
    assert (summary.forgetting.select or 0.0) >= 0.8  # the base is among the finalists
    constants = list(map(float, summary.select.constants))
    assert constants == pytest.approx([round(-1 + 0.05 * i, 2) for i in range(21)])
    report, apart = tables_of(summary)
    assert report.columns[:4] == ["", "to forget ± se", "control ± se", "kept ± se"]
    assert "lower is better on what is to be forgotten (trees)" in report.title
    assert apart.title.startswith("held out: the search never saw these; accuracy on 60")
    assert "held out: the search never saw these" in str(Result(run))
    page = write_report(run).read_text()
    assert "Forgotten and kept" in page
    assert "is the published protocol: one weight for trees, 0 for all others" in page
    assert "constant of trees" in page
    assert "Held out: the search never saw these tasks" in page
    assert "negated accuracy of trees" in page
    monkeypatch.chdir(run.parent)
    main([run.name, "base", "--json"])
    again = json.loads(capsys.readouterr().out)
    assert again["forgetting"]["models"][run.name]["kept"] == models["winner"].kept
    main([run.name, "--split", "held_out"])
    captured = capsys.readouterr()
    assert captured.out.startswith("accuracy on 60 items of tasks that were held out: the search never saw these")
    with pytest.raises(ConfigError, match="the aim is to lose"):
        main([run.name, "--worth"])


def test_constants_take_away_the_experts_of_what_is_to_be_forgotten_alone(run: Path) -> None:
    """The published protocol: the base minus a share of one task vector."""
    opened = open_run(run)
    assert opened.summary is not None
    assert opened.summary.forgetting is not None
    assert opened.summary.forgetting.negated == ["trees"]
    assert opened.coordinates == ["weight/model/animals", "weight/model/trees", "weight/model/metals"]
    tried = [[0.0, -weight, 0.0] for weight in (1.0, 0.8, 0.6, 0.4, 0.2)]
    np.testing.assert_allclose(opened.batches[0].points, tried)
    constant = opened.summary.select.constant
    assert f"constant {constant} of trees" in opened.summary.select.finalists
    settings, held = opened.settings, {"weight/*/animals": 0, "weight/*/metals": 0}
    problem = build_problem({**settings, "space": {**settings["space"], "frozen": held}}, Reporter())
    weights = {"animals": 0, "trees": float(constant), "metals": 0}
    point = problem.space.start({"weight": float(constant)})
    np.testing.assert_array_equal(problem.space.decode(point)["weight"], [list(weights.values())])
    alone = live_fitness(problem, problem.items["report"])
    problem.merger.apply(problem.space.decode(point))
    outcome = alone(make_subsets(problem)["report"](0))
    scores = {task: row["accuracy"] for task, row in outcome.scores().items()}
    assert opened.summary.best_constant.tasks == pytest.approx(scores)
    assert f"({constant} of trees)" in gain_of(opened.summary)
    mark = f"it takes away trees alone, with the weight {constant}; all others have 0"
    assert mark in opened.summary.marks["best_constant"]
    found = find_finalist(opened, build_problem(settings, Reporter()), f"constant {constant} of trees")
    assert found.x.tolist() == list(weights.values())


@pytest.mark.parametrize(
    ("tasks", "rows", "negated"),
    [
        (["trees"], ["animals", "trees", "metals"], ("trees",)),
        (["trees", "metals"], ["animals", "trees", "metals"], ("trees", "metals")),
        (["trees"], ["common", "animals", "trees", "metals"], ("trees",)),
        (["trees"], ["trees", "trees.1", "metals", "metals.1"], ("trees", "trees.1")),
        (["trees"], ["unified"], ()),  # none is an expert's, so a constant is of all
        (["trees"], ["trees"], ()),
        ([], ["animals", "trees", "metals"], ()),
    ],
)
def test_rows_that_constants_take_away(run: Path, tasks: list[str], rows: list[str], negated: tuple[str]) -> None:
    problem = build_problem(open_run(run).settings, Reporter())
    space = make_space("model", problem.vectors.parameters, rows, problem.space.variables)
    other = replace(problem, space=space, goal=replace(problem.goal, forget=tuple(tasks)))
    assert other.negated == negated
    wanted = [[-0.5 if row in (negated or rows) else 0.0 for row in rows]]
    np.testing.assert_array_equal(other.constant(-0.5)["weight"], wanted)


@pytest.mark.parametrize(
    ("more", "negated"),
    [
        ({"sharing": "shared"}, ()),
        ({"tied": ["weight/*/trees", "weight/*/metals"]}, ("trees",)),  # each is a coordinate of its own
        ({"tied": ["weight/*"]}, ()),
        ({"tied": [{"trees": 1.0, "metals": 0.5}]}, ()),
        ({"frozen": {"weight/*/trees": -0.2}}, ("trees",)),
    ],
)
def test_rows_that_are_tied_with_others_are_taken_away_with_them(
    run: Path, more: dict[str, Any], negated: tuple[str]
) -> None:
    problem = build_problem(open_run(run).settings, Reporter())
    space = make_space("layer", problem.vectors.parameters, problem.space.rows, problem.space.variables, **more)
    other = replace(problem, space=space, goal=replace(problem.goal, forget=("trees",)))
    assert other.negated == negated
    assert ("ties them with others" in str(_aims(other))) == (not negated)
    (mark,) = _marks(other, None, "-1.0").get("best_constant", [""])[-1:]
    held = "it has -1.0 for trees and 0 for all others, also where the space holds other weights"
    assert (held in mark) == ("frozen" in more)


def test_a_run_that_began_with_all_experts_taken_away_is_read_and_complete_but_does_not_go_on(
    sources: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Runs of earlier versions: their constants were of all experts, and their logs say nothing of rows."""
    config, old = compose(*sources, *FORGET, "searcher=random", "budget=6"), tmp_path / "old"
    with monkeypatch.context() as earlier:
        earlier.setattr(Problem, "negated", ())
        found = run_search(config, old, Reporter())
    assert found is not None
    before = (old / "trials.jsonl").read_bytes()
    capsys.readouterr()
    assert run_search(config, old, Reporter()) == found
    assert "This search is complete" in capsys.readouterr().err
    opened = open_run(old)
    np.testing.assert_allclose(opened.batches[0].points, [[-weight] * 3 for weight in (1.0, 0.8, 0.6, 0.4, 0.2)])
    assert "has one weight for all" in write_report(old).read_text()
    found = find_finalist(opened, build_problem(opened.settings, Reporter()), "constant")
    assert found.x.tolist() in opened.batches[0].points.tolist()
    with pytest.raises(LogError, match=r"began with constants that take all experts away.*hydra\.run\.dir"):
        run_search(compose(*sources, *FORGET, "searcher=random", "budget=8"), old, Reporter())
    assert (old / "trials.jsonl").read_bytes() == before


def test_a_constant_that_the_space_does_not_have_is_marked(sources: list[str], tmp_path: Path) -> None:
    held = "space.frozen={weight/*/metals: 0.9}"
    summary = run_search(compose(*sources, "searcher=random", held), tmp_path / "held", Reporter())
    assert summary is not None
    (mark,) = summary.marks["best_constant"]
    assert mark.startswith("it is a merge that this space does not have: it has the same weight where the space holds")


def test_a_winner_that_keeps_too_little_is_told() -> None:
    score = Score(0.5, 0.1)
    fine, poor = Kept(score, score, 0.97, 0.01), Kept(score, score, 0.9, 0.01)
    assert doubts_of(None) == doubts_of(Forgetting(["a"], 0.95, {"winner": fine}, 0.96)) == []
    (on_select,) = doubts_of(Forgetting(["a"], 0.95, {"winner": fine}, 0.91))
    assert "No finalist keeps 0.95 of the base's control score on the select items" in on_select
    assert "keeps 0.91" in on_select
    (on_report,) = doubts_of(Forgetting(["a"], 0.95, {"winner": poor}, 0.96))
    assert "On the report items the winner keeps 0.9 of the base's control score" in on_report


def test_a_share_that_is_kept_to_the_last_bit_but_one_is_kept() -> None:
    score = Score(0.5, 0.1)
    kept = 1 + (12 / 20 - 15 / 20) / (15 / 20)  # 12 of 15 that the base has right
    assert kept < 0.8
    assert doubts_of(Forgetting(["a"], 0.8, {"winner": Kept(score, score, kept, 0.0)}, kept)) == []


def test_greedy_selection_takes_experts_away(run: Path) -> None:
    opened = open_run(run)
    space = build_problem(opened.settings, Reporter()).space
    seen: list[Any] = []
    WarmStart(space, lambda start: Greedy(space, seen.append(start) or start, 1), -1)
    assert (seen[0] < 0).all()


def test_a_recipe_of_a_trial_says_what_its_value_is(run: Path) -> None:
    opened = open_run(run)
    said = find_trial(opened, "0.0").about["objective"]
    assert said == "minus the mean of trees, keeping 0.8 of the others"


def test_a_name_that_evaluate_is_given_is_not_passed_over() -> None:
    own = {"fitness": {"tasks": {"a": "a.jsonl"}, "held_out": ["b"]}, "objective": {"forget": ["b"]}}
    given = {"fitness": {"held_out": ["c"]}, "objective": {"forget": None}}
    assert _overlaid(own, given, [])["fitness"]["held_out"] == []
    assert _overlaid(own, given, ["fitness.held_out"])["fitness"]["held_out"] == ["c"]


def test_a_finished_run_resumes_to_the_same_log(run: Path, sources: list[str]) -> None:
    before = {name: (run / name).read_bytes() for name in ("trials.jsonl", "summary.json", "recipe.yaml")}
    config = compose(*sources, *FORGET, "fitness.held_out=[metals]", "searcher=random")
    (run / "summary.json").unlink()
    assert run_search(config, run, Reporter()) is not None
    assert {name: (run / name).read_bytes() for name in before} == before


def test_nothing_is_learned_from_what_is_held_out_nor_what_is_to_be_forgotten(
    sources: list[str], tmp_path: Path
) -> None:
    settings = plain(compose(*sources, "fitness.held_out=[metals]", "searcher=gradient", "loss=entropy"))
    problem = build_problem(settings, Reporter())
    assert set(find_learning(problem, settings, Reporter()).items) == {"animals", "trees"}
    usual = plain(compose(*sources))
    assert "held_out" not in json.dumps(search_identity(build_problem(usual, Reporter()), usual))
    with pytest.raises(ConfigError, match="forget has no gradient"):
        run_search(compose(*sources, *FORGET, "searcher=gradient"), tmp_path / "gradient", Reporter())
    with pytest.raises(ConfigError, match="forget takes them away"):
        run_comparison(plain(compose(*sources, *FORGET)), Compared(None, (0.4,)), tmp_path / "compared", Reporter())
