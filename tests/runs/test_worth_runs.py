"""What a winner is worth beside its parents: in summary, run directory and page, by hand from the answers to items."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from dataclasses import replace
from html import unescape
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from evomerge.cli.evaluate import main as evaluate_command
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, LogError
from evomerge.common.progress import Silent
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.report import write_report
from evomerge.runs.beside import keep_around, read_around, read_worth
from evomerge.runs.config import check
from evomerge.runs.directory import open_run
from evomerge.runs.parents import gains_of, gains_of_worth, table_of_gains
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.runs.weighing import check_weighable, items_of_worth
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt
from evomerge.selection.around import neighbours
from evomerge.selection.evaluation import evaluate
from evomerge.selection.named import Model
from evomerge.selection.reporting import differences
from evomerge.selection.summary import OVER, OVER_EXPERTS
from evomerge.space.named import array_coefficients
from tests.kit.evaluations import remembered, settings_of, sources_of, under
from tests.kit.helpers import compose
from tests.kit.pages import read

EXPERTS = ("animals", "trees", "metals")
ENSEMBLE = "ensemble of the experts"
DATA = Path(__file__).parents[1] / "data"


@pytest.fixture(scope="module")
def place(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("worth")


@pytest.fixture(scope="module")
def asked(place: Path, pico_suite: Suite) -> list[str]:
    few = ["fitness.select_items=30", "searcher=random", "budget=2", "start=0.5"]
    return [*sources_of(pico_suite, place / "cache"), *few]


@pytest.fixture(scope="module")
def plain_run(place: Path, asked: list[str]) -> Path:
    """A run that did not ask for it."""
    assert run_search(compose(*asked), place / "run", Silent()) is not None
    return place / "run"


@pytest.fixture
def run(plain_run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(plain_run, tmp_path / "run"))


def rows_of(page: str, caption: str) -> dict[str, list[str]]:
    """The texts of the cells of the table whose caption begins so, by the first of each row."""
    table = page[page.index(f"<caption>{caption}") :].split("</table>")[0]
    body = table[table.index("<tbody>") :].split("</tr>")[:-1]
    cells = [[unescape(re.sub("<[^>]*>", "", cell)) for cell in re.split("</t[hd]>", row)[:-1]] for row in body]
    return {name.strip(): texts for name, *texts in cells}


def answers(problem: Problem, settings: dict[str, Any], run: Path) -> tuple[dict[str, Any], Problem]:
    """What winner, base, every expert and the mean of all experts get right on each report item, by task."""
    problem = under(problem, settings)
    score, ids = live_fitness(problem, problem.items["report"]), make_subsets(problem)["report"](0)
    recipe, merger = open_run(run).recipe, problem.merger
    assert recipe is not None
    space = problem.space
    put = {"winner": lambda: merger.apply(array_coefficients(recipe.coefficients, space.groups, space.rows))}
    put |= {"base": lambda: problem.become(None)}
    put |= {name: lambda name=name: problem.become(name) for name in EXPERTS}
    found, said = {}, dict[str, Any]()
    for name, become in put.items():
        become()
        found[name] = {task: rows["accuracy"] for task, rows in score(ids).results.items()}
        if name in EXPERTS:
            said[name] = problem.fitness.probabilities(problem.live.model, score.prepared, ids)
        problem.become(None)
    labels = {task: {item.id: item.label for item in problem.items["report"][task]} for task in ids}
    found[ENSEMBLE] = {
        task: np.array(
            [
                sum(said[name][task][i] for name in EXPERTS).argmax() == labels[task][item]
                for i, item in enumerate(chosen)
            ]
        )
        for task, chosen in ids.items()
    }
    return found, problem


def test_summary_and_page_have_what_is_gained_and_kept(run: Path, asked: list[str], problem: Problem) -> None:
    found, _ = answers(problem, settings_of(*asked), run)
    summary = open_run(run).summary
    assert summary is not None
    over, lost = summary.paired[OVER], summary.paired[OVER_EXPERTS]
    rows, shares = {one.task: one for one in gains_of(summary)}, []
    for task in EXPERTS:
        winner, base, expert = (found[name][task].astype(float) for name in ("winner", "base", task))
        for paired, other in ((over, base), (lost, expert)):
            assert paired.tasks[task] == pytest.approx((winner - other).mean())
            assert paired.tasks_se[task] == pytest.approx((winner - other).std(ddof=1) / np.sqrt(len(winner)))
        shares.append((winner.mean() - base.mean()) / (expert.mean() - base.mean()))
        assert rows[task].kept == pytest.approx(shares[-1])
        assert rows[task].of_expert == pytest.approx(winner.mean() / expert.mean())
    assert rows["mean over tasks"].kept == pytest.approx(np.mean(shares))
    assert rows["mean over tasks"].of_expert == pytest.approx(np.mean([rows[task].of_expert for task in EXPERTS]))
    assert over.diff == pytest.approx(np.mean([over.tasks[task] for task in EXPERTS]))
    page = read(write_report(run)).text
    assert "Beside its parents" in page
    assert "Every model on every task" not in page
    assert "Around the winner" not in page
    shown = rows_of((run / "report.html").read_text(), "What the winner gains over the base")
    assert list(shown) == ["mean over tasks", *EXPERTS]
    assert shown["trees"][1] == f"{shares[1]:.0%}"
    table = table_of_gains(summary)
    assert table is not None
    assert [f"{one:.0%}" for one in shares] == [row[2] for row in table.rows[1:]]


def test_asked_for_later_only_the_parents_are_scored(
    run: Path, asked: list[str], problem: Problem, capsys: pytest.CaptureFixture[str]
) -> None:
    """Afterwards the run is as it was, with one file more; and a third call scores nothing."""
    before = {name: (run / name).read_bytes() for name in ("trials.jsonl", "summary.json", "recipe.yaml")}
    settings = settings_of(*asked, "fitness.worth=true")
    known = remembered(settings)
    assert run_search(compose(*asked, "fitness.worth=true"), run, Reporter()) is not None
    told = capsys.readouterr()
    assert "This search is complete" in told.err
    assert "what the winner is worth beside base and experts" in told.out
    assert {name: (run / name).read_bytes() for name in before} == before
    assert len(remembered(settings) - known) == len([*EXPERTS, ENSEMBLE])
    kept = (run / "worth.json").read_bytes()
    run_search(compose(*asked, "fitness.worth=true"), run, Reporter())
    assert "scoring animals" not in capsys.readouterr().err
    assert (run / "worth.json").read_bytes() == kept

    found, _ = answers(problem, settings, run)
    beside = read_worth(open_run(run))
    assert beside is not None
    assert list(beside.result.models) == ["winner", "base", *EXPERTS, ENSEMBLE]
    write_report(run)
    page = (run / "report.html").read_text()
    matrix = rows_of(page, "Every model on every task: accuracy on 90 report items")
    for name, rows in found.items():
        means = {task: right.mean() for task, right in rows.items()}
        assert beside.result.models[name].tasks == pytest.approx(means)
        assert matrix[f"expert {name}" if name in EXPERTS else name][1:] == [f"{means[task]:.3f}" for task in EXPERTS]
    assert list(matrix)[-1] == "winner"
    single = max(EXPERTS, key=lambda name: np.mean([right.mean() for right in found[name].values()]))
    assert beside.worth.single == single
    gains = rows_of(page, "What the winner gains over the base")
    assert gains["mean over tasks"][1] == single
    differences = [found["winner"][task].astype(float) - found[ENSEMBLE][task] for task in EXPERTS]
    assert beside.worth.over_ensemble is not None
    assert beside.worth.over_ensemble.diff == pytest.approx(np.mean([each.mean() for each in differences]))
    assert gains_of_worth(beside)[0].kept == beside.worth.kept
    assert gains["animals"][3] == f"{beside.worth.tasks['animals'].of_best:.0%}"
    assert "above every expert by more than two standard errors" in page


def test_tasks_that_were_held_out_stand_beside_the_others(
    asked: list[str], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every model on them, the best expert and what the winner is beside it; but no share of a gain."""
    apart = [*asked, "fitness.held_out=[metals]", "fitness.worth=true"]
    run = place / "apart"
    summary = run_search(compose(*apart), run, Reporter())
    told = capsys.readouterr()
    assert summary is not None
    assert summary.held_out is not None
    beside = read_worth(open_run(run))
    assert beside is not None
    assert beside.held_out is not None
    assert beside.worth.held_out is not None
    assert list(beside.held_out.models) == ["winner", "base", *EXPERTS, ENSEMBLE]
    for name in ("winner", "base"):
        assert beside.held_out.models[name] == summary.held_out.report[name]
    assert beside.held_out.models["metals"] == summary.held_out.report["experts"]
    scores = {name: beside.held_out.models[name].tasks["metals"] or 0.0 for name in EXPERTS}
    one = beside.worth.held_out.tasks["metals"]
    assert (one.best, one.score) == max(scores.items(), key=lambda pair: pair[1])
    assert one.over == pytest.approx((summary.held_out.report["winner"].mean or 0.0) - one.score)
    assert (one.kept, beside.worth.held_out.kept) == (None, None)
    assert set(beside.worth.tasks) == {"animals", "trees"}
    assert "tasks that were held out have no share that is kept" in told.out
    assert re.search(r"metals \(held out\)[ │|]+0\.\d{3}", told.out)
    write_report(run)
    page = (run / "report.html").read_text()
    matrix = rows_of(page, "Every model on every task: accuracy on 90 report items, and on 90 of tasks that were held")
    assert matrix["expert trees"][-1] == f"{scores['trees']:.3f}"
    gains = rows_of(page, "What the winner gains over the base")
    assert list(gains) == ["mean over tasks", "animals", "trees", "metals (held out)"]
    assert gains["metals (held out)"][1:3] == [one.best, "–"]

    kept = (run / "worth.json").read_bytes()
    content = json.loads(kept)
    del content["held_out"]  # of an earlier version: the same command scores what is lacking
    (run / "worth.json").write_text(json.dumps(content))
    run_search(compose(*apart), run, Silent())
    assert (run / "worth.json").read_bytes() == kept
    (run / "worth.json").unlink()
    monkeypatch.chdir(place)
    evaluate_command([run.name, "--worth"])
    said = capsys.readouterr()
    assert "kept in apart/worth.json" in said.err
    assert "not in this table" not in said.err
    assert read_worth(open_run(run)) == beside
    evaluate_command([run.name, "--worth", "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["worth"]["held_out"]["tasks"]["metals"]["best"] == one.best
    assert printed["held_out"]["models"]["trees"]["tasks"]["metals"] == scores["trees"]


def test_what_is_of_another_winner_is_not_shown(run: Path, asked: list[str]) -> None:
    run_search(compose(*asked, "fitness.worth=true"), run, Silent())
    content = json.loads((run / "worth.json").read_text())
    marked = {**content, "marks": {"trees": ["it is scored with another vocabulary"]}}
    (run / "worth.json").write_text(json.dumps(marked))
    page = read(write_report(run)).text
    assert "expert trees *" in page
    assert "* expert trees: it is scored with another vocabulary" in page
    (run / "worth.json").write_text(json.dumps({**content, "of": "another"}))
    page = read(write_report(run)).text
    assert "Every model on every task" not in page
    assert f"evomerge evaluate {run} --worth scores this one" in page
    for damaged in ("{", "[]", json.dumps({"of": content["of"], "split": "report"})):
        (run / "worth.json").write_text(damaged)
        with pytest.raises(LogError, match=r"worth\.json cannot be read .*: delete it; `evomerge evaluate`"):
            write_report(run)


def test_a_stop_between_two_experts_costs_none(
    run: Path, asked: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt = Interrupt()

    class Stopping(Reporter):
        @contextmanager
        def working(self, what: str):
            interrupt.requested = interrupt.requested or "scoring trees" in what
            with super().working(what):
                yield

    elsewhere = [*asked, "fitness.worth=true", f"model.cache={tmp_path / 'cache'}"]
    assert run_search(compose(*elsewhere), run, Stopping(), interrupt) is None
    assert not (run / "worth.json").exists()
    known = remembered(settings_of(*elsewhere))
    assert run_search(compose(*elsewhere), run, Silent()) is not None
    assert len(remembered(settings_of(*elsewhere)) - known) == len(["metals", ENSEMBLE])
    assert read_worth(open_run(run)) is not None


def test_the_curve_around_a_winner_is_drawn(run: Path, asked: list[str], problem: Problem) -> None:
    opened, winner = open_run(run), Model("recipe", run / "recipe.yaml")
    models = {"any name": winner, **neighbours(winner, ["trees"])}
    result = evaluate(under(problem, settings_of(*asked)), models, "select", Silent())
    keep_around(opened, result, ["trees"])
    found = read_around(opened)
    assert found is not None
    assert [each.row for each in found[1]] == ["all weights", "trees"]
    page = read(write_report(run))
    assert "Around the winner" in page.text
    start = page.text.index("Around the winner")
    assert "on 30 select items" in page.text[start:], page.text[start : start + 400]
    for point in found[1][0].points:
        assert f"times {point.factor:g}: {point.score.mean:.4f}" in page.text
    cells = rows_of((run / "report.html").read_text(), "Minus the winner, paired")
    assert len(cells["trees"]) == len(found[1][1].points)


def test_runs_of_earlier_versions_say_nothing_of_it(run: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(DATA / "run_0_2", tmp_path / "old"))
    summary = open_run(old).summary
    assert summary is not None
    assert table_of_gains(summary) is None
    assert "Beside its parents" not in read(write_report(old)).text
    assert read_worth(open_run(old)) is None


def test_what_it_costs_is_known_before(problem: Problem) -> None:
    """Each expert on all report items, and once more for what all of them say."""
    assert items_of_worth(problem, {"report": 90}) == 90 * 2 * len(EXPERTS)
    fitness: Any = SimpleNamespace()  # which gives no probabilities
    assert items_of_worth(replace(problem, fitness=fitness), {"report": 90, "held_out": 60}) == 150 * len(EXPERTS)


@pytest.mark.parametrize("name", ["base", "experts", "winner", ENSEMBLE])
def test_an_expert_with_the_name_of_something_else_is_refused_before_the_search(
    name: str, asked: list[str], problem: Problem
) -> None:
    experts = {"animals": problem.sources.experts["animals"], name: problem.sources.experts["trees"]}
    named = replace(problem, sources=replace(problem.sources, experts=experts))
    with pytest.raises(ConfigError, match=rf"the expert {name} has a name .*leave fitness\.worth=true out, or search"):
        check_weighable(settings_of(*asked, "fitness.worth=true"), named)
    check_weighable(settings_of(*asked), named)


def test_such_an_expert_ends_a_search_and_an_evaluation_alike(plain_run: Path, pico_suite: Suite, place: Path) -> None:
    """A task's file, two experts, one of them called base."""
    paths = {name: pico_suite.path / "experts" / name for name in ("animals", "trees")}
    own = [f"model.experts={{animals: {paths['animals']}, base: {paths['trees']}}}"]
    own += [f"model.base={pico_suite.path / 'base'}", f"model.cache={place / 'cache'}", "model.device=cpu"]
    own += [f"fitness.tasks={{animals: {{items: {pico_suite.path / 'tasks' / 'animals'}, expert: animals}}}}"]
    with pytest.raises(ConfigError, match=r"fitness\.worth=true sets the merge beside .* the expert base has a name"):
        run_search(compose(*own, "fitness.worth=true"), place / "refused", Silent())
    assert not (place / "refused" / "trials.jsonl").exists()
    with pytest.raises(ConfigError, match=r"--worth sets the merge beside .* the expert base has a name"):
        evaluate_command([str(plain_run), "--worth", *own])


def test_to_forget_is_no_gain(asked: list[str]) -> None:
    forget = ["objective.forget=[trees]", "space.bounds={weight: [-1, 0]}", "fitness.worth=true"]
    with pytest.raises(ConfigError, match=r"fitness\.worth=true says what is gained .* leave it out"):
        check(settings_of(*asked, *forget))


def test_a_task_without_an_expert_has_no_share_and_all_tasks_no_mean() -> None:
    def outcome(**tasks: list[float]) -> Outcome:
        ids = {task: [f"{task}{i}" for i in range(len(row))] for task, row in tasks.items()}
        return Outcome(ids, {task: {"m": np.array(row)} for task, row in tasks.items()})

    base = outcome(a=[0, 0, 0, 1], b=[0, 1, 0, 0])
    winner = outcome(a=[0, 1, 1, 1], b=[0, 1, 1, 0])
    models = {"base": base, "best_constant": base, "winner": winner, "experts": outcome(a=[1, 1, 1, 1])}
    found = differences(models, "m", None)
    assert found[OVER].diff == pytest.approx((0.5 + 0.25) / 2)
    assert (found[OVER_EXPERTS].diff, dict(found[OVER_EXPERTS].tasks)) == (None, {"a": -0.25})
    assert OVER_EXPERTS not in differences({**models, "experts": outcome()}, "m", None)
