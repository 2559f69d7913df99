"""Searches whose values are estimates of all search items: what the log holds, what it costs, and who is refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, LogError
from evomerge.common.progress import Silent
from evomerge.fitness.base import Outcome
from evomerge.fitness.classification import Classification
from evomerge.fitness.estimates import Answers, Estimate
from evomerge.problem import Problem
from evomerge.report import write_report
from evomerge.runs.build import build_problem
from evomerge.runs.config import check
from evomerge.runs.estimates import check_estimated, estimated
from evomerge.runs.run import run_search
from evomerge.runs.sampled import sampling_identity
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import live_fitness
from evomerge.search.journal import read_log
from evomerge.selection.judge import Judge
from evomerge.selection.summary import Summary
from tests.kit.evaluations import settings_of, sources_of
from tests.kit.helpers import compose

FEW = ("space=model", "fitness.select_items=12", "fitness.report_items=12", "fitness.metric=accuracy", "budget=14")
FORM = ("fitness.estimate=gmp-irt", "fitness.estimate_from=[0.3,0.8]", "fitness.items=24", "fitness.rotate=true")


@pytest.fixture(scope="module")
def sources(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [*sources_of(pico_suite, tmp_path_factory.mktemp("cache")), *FEW]


@pytest.fixture(scope="module")
def finished(sources: Sequence[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Summary]:
    directory = tmp_path_factory.mktemp("run")
    summary = run_search(compose(*sources, *FORM), directory, Reporter())
    assert summary is not None
    return directory, summary


def answers_of(problem: Problem) -> Answers:
    """What base, rows and constants answer, each put into the live model by its weights."""
    ids = {task: [item.id for item in items] for task, items in problem.items["search"].items()}
    score, rows = live_fitness(problem, problem.items["search"]), {}
    names, space = list(problem.space.rows), problem.space
    weights = {"base": [0.0] * len(names)} | {row: [float(row == one) for one in names] for row in names}
    for name, each in (weights | {"constant 0.3": [0.3] * len(names), "constant 0.8": [0.8] * len(names)}).items():
        coefficients = {**space.constant(1.0), "weight": np.tile(each, (len(space.groups), 1))}
        problem.merger.apply(coefficients)
        rows[name] = np.concatenate([metrics["accuracy"] for metrics in score(ids).results.values()])
    problem.become(None)
    return Answers(ids, rows, names)


def test_values_are_estimates_and_the_log_has_what_was_scored(
    sources: Sequence[str], finished: tuple[Path, Summary]
) -> None:
    problem = build_problem(settings_of(*sources, *FORM), Silent())
    estimate = Estimate("gmp-irt", "accuracy", answers_of(problem))
    trials = [line for line in read_log(finished[0] / "trials.jsonl") if line["kind"] == "trial"]
    for trial in trials:
        rows = {task: {"accuracy": np.array(row["accuracy"])} for task, row in trial["results"].items()}
        outcome = Outcome(trial["items"], rows)
        assert {task: row["accuracy"] for task, row in trial["scores"].items()} == pytest.approx(
            {task: row["accuracy"] for task, row in outcome.scores().items()}
        )
        expected = np.mean([row["accuracy"] for row in estimate(outcome).scores().values()])
        assert trial["values"] == pytest.approx([expected], abs=1e-6)
        assert sum(map(len, trial["items"].values())) == 24
    assert any(abs(t["values"][0] - np.mean([r["accuracy"] for r in t["scores"].values()])) > 1e-3 for t in trials)


def test_what_it_cost_is_said_and_how_far_estimates_are_off(
    sources: Sequence[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], finished: tuple[Path, Summary]
) -> None:
    directory, summary = finished
    every = sum(map(len, build_problem(settings_of(*sources, *FORM), Silent()).items["search"].values()))
    cost = 6 * every  # base, three experts, two constants
    assert (summary.responses, summary.noise) == (cost, None)
    text = write_report(directory).read_text()
    assert f"Values are estimates on all (gmp-irt) by what base and experts say of all: {cost:,} item" in text
    run_search(compose(*sources, *FORM, f"budget_items={cost + 25}"), tmp_path / "one", Reporter())
    said = " ".join("".join(capsys.readouterr()).split())
    assert "values are estimates on all search items (gmp-irt), from the answers of base and experts, which " in said
    assert "estimates by gmp-irt of 6 models, each left out of the fit, from 20 samples of 24 items are off by" in said
    warned = [text for text in summary.warnings if "leave fitness.estimate out" in text]
    assert len(warned) == (float(said.split("off by ")[1][:6]) > float(said.split("off by ")[2][:6]))
    with pytest.raises(ConfigError, match=rf"after the {cost} that fitness\.estimate=gmp-irt takes"):
        run_search(compose(*sources, *FORM, f"budget_items={cost + 23}"), tmp_path / "two", Reporter())


@pytest.mark.parametrize("worse", [True, False])
def test_who_estimates_worse_than_by_means_is_warned(
    worse: bool, problem: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where a model answers all items alike, the mean of any sample is right. Where all models answer each item alike,
    the others say what is not in the sample."""
    ids = {task: [item.id for item in items] for task, items in problem.items["search"].items()}

    def on_search(model: Any) -> Outcome:
        alike = {task: np.full(len(each), float(model != "base")) for task, each in ids.items()}
        rows = alike if worse else {task: np.arange(len(each)) % 2.0 for task, each in ids.items()}
        return Outcome(ids, {task: {"accuracy": row} for task, row in rows.items()})

    sampling, goal = replace(problem.sampling, search=24, estimate="p-irt"), replace(problem.goal, metric="accuracy")
    asked, said, judge = (
        replace(problem, sampling=sampling, goal=goal, warnings=[]),
        list[str](),
        SimpleNamespace(on_search=on_search),
    )
    monkeypatch.setattr(Silent, "say", lambda self, text: said.append(text.removeprefix("note: ")))
    estimated(asked, cast(Judge, judge), Silent())
    assert "estimates by p-irt of 4 models, each left out of the fit, from 20 samples of 24 items" in said[0]
    assert asked.warnings == ([f"{said[0]}: leave fitness.estimate out"] if worse else [])


@pytest.mark.parametrize("how", [(), ("evaluator=processes", "evaluator.workers=1")])
def test_a_search_that_was_cut_off_goes_on_to_the_same_bytes(
    how: tuple[str, ...], sources: Sequence[str], finished: tuple[Path, Summary], tmp_path: Path
) -> None:
    whole = (finished[0] / "trials.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "trials.jsonl").write_bytes(b"".join(lines[: len(lines) // 2]))
    cache = f"model.cache={tmp_path / 'cache'}"  # what base and experts answer is asked anew
    again = run_search(compose(*sources, *FORM, cache, *how), tmp_path, Reporter())
    assert again is not None
    assert replace(again, seconds=finished[1].seconds) == finished[1]
    assert (tmp_path / "trials.jsonl").read_bytes() == whole


def test_a_log_of_other_estimates_is_refused(sources: Sequence[str], finished: tuple[Path, Summary]) -> None:
    problem, log = build_problem(settings_of(*sources, *FORM), Silent()), finished[0] / "trials.jsonl"
    answers = answers_of(problem)
    check_estimated(problem, Estimate("gmp-irt", "accuracy", answers), log)
    other = Answers(answers.ids, {name: 1 - row for name, row in answers.rows.items()}, answers.experts)
    with pytest.raises(LogError, match=r"candidate 0 of generation 0 is no estimate by what .* Go on where"):
        check_estimated(problem, Estimate("gmp-irt", "accuracy", other), log)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["fitness.estimate=irt"], r"fitness\.estimate: Unknown choice 'irt': did you mean"),
        (["fitness.estimate_from=[0.3]", "fitness.estimate=null"], "fitness.estimate, which is null"),
        (["fitness.estimate_from=[.nan]"], r"write a list of constants, such as \[0\.3, 0\.6\]"),
        (["fitness.estimate_from=0.3"], r"write a list of constants, such as \[0\.3, 0\.6\]"),
        (["racing.alpha=0.1"], "a race drops it before: leave racing.alpha out"),
        (["objective.normalised=true"], "objective.normalised needs others as well"),
        (["objective=pareto", "searcher=random"], "this objective needs others as well"),
        (["objective.constraints={trees: '>= 0.9 * base'}"], "objective.constraints needs others as well"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(given: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        check(settings_of("model=pico", "fitness.estimate=p-irt", *given))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["fitness.metric=log_probability"],
            r"log_probability of base is neither 1 nor 0 for \d+ items: write fitness\.me",
        ),
        (
            ["fitness.estimate_from=[0.3,9]"],
            r"fitness\.estimate_from has 9, and no candidate has a weight outside of \[0, 1\.5\]: write const",
        ),
        (["fitness.items=null"], "nothing to estimate, as a candidate is scored on up to all"),
        (["searcher=gradient", "start=0.4"], "this search takes steps of a gradient alone: leave it out"),
        (
            ["transform=unified", "searcher=random"],
            r"of those of several experts, and here is one row: write fitness\.estimate=p-irt",
        ),
    ],
)
def test_what_cannot_be_estimated_is_refused(
    given: list[str], message: str, sources: Sequence[str], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        run_search(compose(*sources, *FORM, "fitness.estimate=mp-irt", *given), tmp_path, Silent())


def test_a_fitness_that_may_answer_otherwise_the_next_time_is_refused(
    sources: Sequence[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Classification, "pure", False)
    with pytest.raises(ConfigError, match="they may answer something else when the search is resumed"):
        run_search(compose(*sources, *FORM), tmp_path, Silent())


def test_other_constants_make_another_search(sources: Sequence[str]) -> None:
    settings = [
        settings_of(*sources, *FORM, f"fitness.estimate_from={given}") for given in ("[0.3,0.8]", "[0.3]", "[]")
    ]
    found = [sampling_identity(one, None)["estimate"] for one in settings]
    assert found == [["gmp-irt", 0.3, 0.8], ["gmp-irt", 0.3], ["gmp-irt"]]


def test_what_is_refused_is_refused_before_base_and_experts_are_scored(
    sources: Sequence[str], finished: tuple[Path, Summary], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LiveFitness, "__call__", lambda self, ids: pytest.fail("it was scored"))
    mine = [*sources, f"model.cache={tmp_path / 'cache'}", *FORM]
    with pytest.raises(ConfigError, match=r"raise it, or leave fitness\.estimate=gmp-irt out"):
        run_search(compose(*mine, "budget_items=1000"), tmp_path / "run", Silent())
    with pytest.raises(LogError, match="belongs to another search: estimate was"):
        run_search(compose(*mine, "fitness.estimate=p-irt"), finished[0], Silent())


def test_an_expert_may_be_called_base(problem: Problem) -> None:
    space, asked = replace(problem.space, rows=["base", *problem.space.rows[1:]]), list[Any]()

    def on_search(model: Any) -> Outcome:
        asked.append(model)
        ids = {task: [item.id for item in items] for task, items in problem.items["search"].items()}
        return Outcome(ids, {task: {"accuracy": np.arange(len(each)) % 2.0} for task, each in ids.items()})

    sampling = replace(problem.sampling, search=24, estimate="gp-irt")
    goal = replace(problem.goal, metric="accuracy")
    judge: Any = SimpleNamespace(on_search=on_search)
    assert estimated(replace(problem, space=space, sampling=sampling, goal=goal), judge, Silent()) is not None
    assert [one if isinstance(one, str) else one["weight"][0].tolist() for one in asked] == [
        "base",
        *np.eye(len(space.rows)).tolist(),
    ]
