"""Searches by gradient from settings to recipe: every loss, published settings, budgets, resuming."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.fitness.items import read_items
from evomerge.recipes.recipe import Recipe
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.search.journal import read_log
from evomerge.selection.summary import Summary
from tests.kit.helpers import compose

SMALL = ["fitness.items=12", "fitness.select_items=60", "fitness.report_items=60", "loss.inputs=5"]


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={cache}", "model.device=cpu", *SMALL]


def run(directory: Path, *overrides: str) -> Summary:
    summary = run_search(compose(*overrides), directory, Reporter())
    assert summary is not None
    return summary


def lines(directory: Path, kind: str) -> list[dict[str, Any]]:
    return [line for line in read_log(directory / "trials.jsonl") if line["kind"] == kind]


@pytest.mark.parametrize(
    "loss", ["cross_entropy", "entropy", "entropy_normalised", "entropy_marginal", "jensen_shannon"]
)
def test_every_loss_runs_to_a_recipe(settings: list[str], loss: str, tmp_path: Path, pico_suite: Suite) -> None:
    given = [f"loss={loss}", "searcher=gradient", "searcher.every=4", "space=module", "budget=18", "searcher.steps=12"]
    summary = run(tmp_path, *settings, *given)
    assert summary.stop in ("exhausted", "budget")
    assert (summary.trials, summary.failed) == (18, 0)
    assert {"constant", "step_4", "step_8", "step_12"} <= set(summary.select.finalists)
    assert Recipe.from_yaml((tmp_path / "recipe.yaml").read_text()).scores["winner"] == asdict(summary.winner)
    split = "search" if loss == "cross_entropy" else "unlabeled"
    allowed = {name: {item.id for item in read_items(task.items, split)} for name, task in pico_suite.tasks.items()}
    steps = [line for line in lines(tmp_path, "trial") if "gradient" in line]
    assert len(steps) == 12
    for line in steps:
        assert all(set(ids) <= allowed[task] and len(ids) == 5 for task, ids in line["items"].items())
        assert np.isfinite(line["gradient"]).all()


@pytest.mark.parametrize("experiment", ["adamerging", "adamerging_pp", "adarank"])
def test_published_settings(settings: list[str], experiment: str, tmp_path: Path) -> None:
    summary = run(tmp_path, f"experiment={experiment}", *settings, "budget=4", "loss.inputs=32")
    assert (summary.trials, summary.failed, summary.stop) == (4, 0, "budget")
    points = np.array([line["points"][0] for line in lines(tmp_path, "ask")])
    assert points.shape[1] > 60  # tensor-wise
    assert np.unique(points[0]).tolist() == ([0.3, 0.6] if experiment == "adarank" else [0.3])  # masks are on
    assert np.abs(np.diff(points, axis=0)).max() == pytest.approx(1e-3, rel=0.01)
    assert all(len(ids) == 32 for line in lines(tmp_path, "trial") for ids in line["items"].values())


@pytest.mark.slow
@pytest.mark.parametrize("searcher", ["gradient", "hybrid"])
def test_more_budget_goes_on_as_if_it_had_been_so_from_the_start(
    settings: list[str], searcher: str, tmp_path: Path
) -> None:
    steps = "searcher.steps=20" if searcher == "gradient" else "searcher.first.steps=5"
    given = [*settings, f"searcher={searcher}", steps, "space=layer", "start=0.4"]
    for budget in (3, 9):
        summary = run(tmp_path / "raised", *given, f"budget={budget}")
        assert summary.trials == budget
    whole = run(tmp_path / "whole", *given, "budget=9")
    names = ("trials.jsonl", "recipe.yaml")
    assert all((tmp_path / "raised" / n).read_bytes() == (tmp_path / "whole" / n).read_bytes() for n in names)
    data = (tmp_path / "whole" / "trials.jsonl").read_bytes()
    for share in (0.2, 0.55, 0.9):  # as kills leave it, on either side of the change of searchers
        cut = tmp_path / f"cut {share}"
        cut.mkdir()
        (cut / "trials.jsonl").write_bytes(data[: int(share * len(data))])
        assert run(cut, *given, "budget=9").report == whole.report
        assert (cut / "trials.jsonl").read_bytes() == data


def test_a_hybrid_keeps_what_its_first_part_found(settings: list[str], tmp_path: Path) -> None:
    given = ["searcher=hybrid", "searcher.first.steps=50", "searcher.first.every=2", "space=layer", "budget=11"]
    summary = run(tmp_path, *settings, *given)  # 6 constants, then 5 steps
    assert {"constant", "first_step_2", "first_step_4", "first_step_5"} <= set(summary.select.finalists)


@pytest.mark.parametrize("searcher", ["gradient", "hybrid"])
@pytest.mark.parametrize(("items", "inputs"), [(100, 5), (149, 5), (100, 9)])
def test_a_budget_of_items_is_never_passed(
    settings: list[str], searcher: str, items: int, inputs: int, tmp_path: Path
) -> None:
    first = "searcher.steps=60" if searcher == "gradient" else "searcher.first.steps=2"
    given = [
        f"searcher={searcher}",
        first,
        f"budget_items={items}",
        f"loss.inputs={inputs}",
        "space=layer",
        "start=1/K",
    ]
    summary = run(tmp_path, *settings, *given)
    spent = [sum(map(len, line["items"].values())) for line in lines(tmp_path, "trial")]
    assert summary.trials == len(spent) > 1
    assert sum(spent) <= items < sum(spent) + max(3 * inputs, 12)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["budget_items=14"], r"one step of the gradient costs, 15 items: raise it, or lower loss\.inputs"),
        (["budget_items=11", "loss.inputs=2"], r"one candidate costs, 12 items: raise it, or lower fitness\.items"),
        (["budget_items=5", "loss.inputs=2", "start=0.4"], r"one step of the gradient costs, 6 items"),
        (["searcher=hybrid", "budget_items=14", "start=0.4"], r"one step of the gradient costs, 15 items"),
        (["searcher=hybrid", "budget_items=11", "loss.inputs=2", "start=0.4"], r"one candidate costs, 12 items"),
    ],
)
def test_too_small_a_budget_of_items(settings: list[str], overrides: list[str], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"less than {message}"):
        run(tmp_path, *settings, "searcher=gradient", *overrides)


def test_a_budget_of_items_need_not_buy_what_is_never_asked_for(settings: list[str], tmp_path: Path) -> None:
    """From a given start a gradient scores no candidate, so it does not matter that one costs 12 items."""
    given = ["searcher=gradient", "loss.inputs=1", "start=0.4", "space=layer", "budget_items=11", "budget=9"]
    assert run(tmp_path, *settings, *given).trials == 3


def test_the_loss_is_part_of_the_search(settings: list[str], tmp_path: Path) -> None:
    """Where it is learned from; where not, another one may be named."""
    given = [*settings, "space=layer", "budget=2", "start=0.3"]
    run(tmp_path / "gradient", *given, "searcher=gradient")
    for change in ("loss=entropy", "loss.inputs=6"):
        with pytest.raises(Exception, match="belongs to another search: loss was"):
            run(tmp_path / "gradient", *given, "searcher=gradient", change)
    run(tmp_path / "random", *given, "searcher=random")
    run(tmp_path / "random", *given, "searcher=random", "loss=entropy")


def test_cautions_are_said_before_the_search(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path / "a", *settings, "searcher=random", "budget=2", "loss=entropy")
    assert "warning  the loss Entropy is not used" in capsys.readouterr().err
    run(tmp_path / "b", *settings, "searcher=gradient", "budget=8", "space=layer")
    assert "warning  searcher.steps=60, but the budget leaves 2" in capsys.readouterr().err
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["trials"] == 8


def test_times_are_estimated(settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    number = r"[\d.]+"
    cases = {
        "searcher=random": rf"about {number} s a candidate; 9 candidates take about 1 s",
        "searcher=gradient": rf"about {number} s a candidate and {number} s a step; 6 candidates and 3 steps take",
        "searcher=hybrid": rf"about {number} s a candidate and {number} s a step; 7 candidates and 2 steps take",
    }
    for searcher, expected in cases.items():
        more = ["searcher.first.steps=2"] if searcher == "searcher=hybrid" else []
        run(tmp_path / searcher, *settings, searcher, *more, "space=layer", "budget=9")
        said = capsys.readouterr().err
        assert re.search(
            rf"time  {expected}.*, choosing the winner on 60 select and 60 report items at most \d+ s", said
        )


def test_what_has_no_gradient_is_refused_before_anything_is_loaded(settings: list[str], tmp_path: Path) -> None:
    missing = ["model=directories", "model.base=nowhere", "model.experts=[nowhere]"]
    with pytest.raises(ConfigError, match="is no weighted sum of task vectors"):
        run(tmp_path, *missing, "searcher=gradient", "method=ties")
    assert not list(tmp_path.iterdir())
