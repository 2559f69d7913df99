"""Whole searches with several values on the pico suite: from settings to a front, its files, and any of its points."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml

from evomerge.cli.evaluate import main as evaluate
from evomerge.cli.export import main as export
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.recipes.model import write_model
from evomerge.recipes.recipe import Recipe
from evomerge.report import write_report
from evomerge.report.result import Result
from evomerge.runs.directory import read_summary
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.selection.limits import LEAST
from evomerge.selection.summary import Summary
from tests.kit.helpers import compose
from tests.kit.pages import read


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return [
        *("model=pico", f"model.suite={pico_suite.path}", f"model.cache={tmp_path_factory.mktemp('cache')}"),
        *("model.device=cpu", "objective=pareto", "searcher=random", "budget=16"),
        *("fitness.items=30", "fitness.select_items=90", "fitness.report_items=120"),
    ]


@pytest.fixture(scope="module")
def run(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("front")
    assert run_search(compose(*settings), directory, Reporter()) is not None
    return directory


def summary_of(run: Path) -> Summary:
    summary = read_summary(run)
    assert summary is not None
    return summary


def test_no_point_is_dominated_and_the_recipe_is_the_one_that_was_chosen(run: Path) -> None:
    front = summary_of(run).front
    assert front is not None
    assert front.values == ["animals", "trees", "metals"]
    means = [[point.select[value].mean or 0.0 for value in front.values] for point in front.points]
    for one in means:
        assert not any(all(b >= a for a, b in zip(one, other, strict=True)) and other != one for other in means)
    assert means == sorted(means, key=lambda row: -row[0])
    assert all(point.report.keys() == set(front.values) for point in front.points)
    recipe = Recipe.from_yaml((run / "recipe.yaml").read_text())
    assert recipe.coefficients == front.winner.coefficients
    assert recipe.scores["front"]["point"] == front.chosen
    assert recipe.scores["winner"]["tasks"] == {name: score.mean for name, score in front.winner.report.items()}
    assert front.trades is not None
    assert front.trades.candidates == 16


def test_it_is_chosen_again_alike(run: Path, settings: list[str]) -> None:
    before = (run / "summary.json").read_text()
    (run / "summary.json").unlink()
    assert run_search(compose(*settings), run, Reporter()) is not None
    first, again = json.loads(before), json.loads((run / "summary.json").read_text())
    assert again["front"] == first["front"]
    assert again["report"] == first["report"]


def test_the_page_of_a_real_search(run: Path) -> None:
    page = read(write_report(run))
    assert "The front" in page.text
    assert "metals over trees" in page.text


def test_any_point_is_exported(run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    front = summary_of(run).front
    assert front is not None
    other = next(point for point in front.points if point.name != front.chosen)
    number = other.name.removeprefix("point_")
    capsys.readouterr()
    export([str(run), "--point", number])
    recipe = Recipe.from_yaml(capsys.readouterr().out)
    assert recipe.coefficients == other.coefficients
    assert (recipe.scores["point"], recipe.scores["front"]["winner"]) == (other.name, front.chosen)
    export([str(run), "--point", number, "--as", "mergekit"])
    assert yaml.safe_load(capsys.readouterr().out)["merge_method"] == "task_arithmetic"
    export([str(run), "--point", front.chosen, "-o", str(tmp_path / "recipe.yaml")])
    assert Recipe.from_yaml((tmp_path / "recipe.yaml").read_text()).scores["front"]["point"] == front.chosen
    assert (tmp_path / "heads").is_dir()
    assert Result(run).point(int(number)) == recipe
    assert Result(run).point(int(front.chosen.removeprefix("point_"))) == Result(run).recipe
    with pytest.raises(ConfigError, match=rf"has no point_99\. There are point_1 .*point_{len(front.points)}"):
        export([str(run), "--point", "99"])


def test_whoever_scores_the_run_again_is_told_what_it_stands_for(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    evaluate([str(run), "base", "--items", "30"])
    told = capsys.readouterr()
    assert "a run stands for the point of its front that was chosen, and means are over all tasks" in told.err
    assert "base" in told.out
    evaluate([str(run), "base", "--metric", "distance"])
    told = capsys.readouterr()
    assert told.out.startswith("distance of the weights from the base's; 0 is the base\n")
    assert re.search(r"base +│ +0\.0000 +│", told.out)
    assert "scoring base on 3 report items" in told.err
    with pytest.raises(ConfigError, match="says how far a model lies from the base, not how good it is"):
        evaluate([str(run), "--metric", "distance", "--worth"])


def test_a_constraint_that_nobody_holds_is_said_wherever_the_winner_is(settings: list[str], tmp_path: Path) -> None:
    more = ["objective.constraints={trees: '>= 0.99'}", "objective.choose={at_least: {animals: base}, best: metals}"]
    summary = run_search(compose(*settings, *more), tmp_path / "run", Reporter())
    assert summary is not None
    assert summary.front is not None
    assert summary.limits is not None
    assert not summary.limits.held
    assert summary.front.rule == "animals at least base, then the best metals"
    assert summary.marks["winner"][0].startswith(LEAST)
    assert any(doubt.startswith("No finalist holds all constraints") for doubt in summary.doubts)
    text = read(write_report(tmp_path / "run")).text
    assert "No finalist holds all constraints" in text
    recipe = Recipe.from_yaml((tmp_path / "run" / "recipe.yaml").read_text())
    card = (write_model(recipe, tmp_path / "run", tmp_path / "merged", reporter=Silent()) / "README.md").read_text()
    assert LEAST in card
    assert "It violates constraints on the select items: trees >= 0.99." in card
    assert "## Its place on the front" in card
