"""`evomerge export`: any point of a run in every form, of complete runs and of stopped ones."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from evomerge.cli.export import main
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors
from evomerge.problem import Problem
from evomerge.recipes.recipe import Recipe
from evomerge.runs.directory import open_run
from evomerge.runs.points import find_finalist, open_problem
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from tests.kit.helpers import compose

SMALL = ["fitness.items=12", "fitness.select_items=30", "fitness.report_items=30", "loss.inputs=5"]


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    cache = tmp_path_factory.mktemp("cache")
    return ["model=pico", f"model.suite={pico_suite.path}", f"model.cache={cache}", "model.device=cpu", *SMALL]


@pytest.fixture(scope="module")
def finished(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "finished"
    assert run_search(compose(*settings, "budget=23"), directory, Reporter()) is not None
    return directory


@pytest.fixture(scope="module")
def stepped(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gradient search of six steps."""
    directory = tmp_path_factory.mktemp("runs") / "stepped"
    given = ["searcher=gradient", "searcher.every=2", "searcher.steps=6", "start=0.4"]
    assert run_search(compose(*settings, *given), directory, Reporter()) is not None
    return directory


@pytest.fixture
def stopped(finished: Path, tmp_path: Path) -> Path:
    """The same search, killed in its third generation."""
    directory = tmp_path / "stopped"
    directory.mkdir()
    shutil.copy(finished / "config.yaml", directory)
    lines = (finished / "trials.jsonl").read_bytes().splitlines(keepends=True)
    last = next(i for i, line in enumerate(lines) if b'"batch":2,"index":1' in line)
    (directory / "trials.jsonl").write_bytes(b"".join(lines[: last + 1]))
    return directory


def exported(capsys: pytest.CaptureFixture, *arguments: Any) -> str:
    capsys.readouterr()
    main([str(argument) for argument in arguments])
    return capsys.readouterr().out


def values_of(recipe: Recipe, variable: str = "weight") -> np.ndarray:
    return np.array([list(row.values()) for row in recipe.coefficients[variable].values()])


def test_the_winner_is_the_run_s_own_recipe(finished: Path, capsys: pytest.CaptureFixture) -> None:
    assert exported(capsys, finished) == (finished / "recipe.yaml").read_text()
    assert exported(capsys, finished, "--as", "mergekit") == (finished / "mergekit.yaml").read_text()


def test_in_another_directory_it_has_its_heads_beside_it(finished: Path, tmp_path: Path) -> None:
    target = tmp_path / "new" / "winner.yaml"
    main([str(finished), "-o", str(target)])
    recipe = Recipe.from_yaml(target.read_text())
    assert recipe == Recipe.from_yaml((finished / "recipe.yaml").read_text())
    for path in recipe.heads.values():
        assert (target.parent / path).read_bytes() == (finished / path).read_bytes()
    main([str(finished), "--trial", "0", "-o", str(target)])  # heads that are the same are no obstacle
    assert Recipe.from_yaml(target.read_text()).heads == recipe.heads
    (target.parent / "heads" / "trees.safetensors").write_bytes(b"another")
    with pytest.raises(ConfigError, match="another head than that of this recipe"):
        main([str(finished), "-o", str(target)])


def test_a_trial_is_decoded_and_says_what_it_is(
    finished: Path, problem: Problem, capsys: pytest.CaptureFixture
) -> None:
    run = open_run(finished)
    sizes = [len(batch.points) for batch in run.batches]
    recipe = Recipe.from_yaml(exported(capsys, finished, "--trial", "2.1"))
    expected = problem.space.decode(run.batches[2].points[1])["weight"]
    np.testing.assert_array_equal(values_of(recipe), expected)
    trial = run.batches[2].trials[1]
    assert trial is not None
    assert trial.values is not None
    assert (recipe.scores["point"], recipe.scores["value"]) == ("trial 2.1", trial.values[0])
    assert (recipe.scores["split"], recipe.scores["items"], recipe.scores["metric"]) == (
        *("search", 12, "log_probability"),
    )
    assert "not on the select split" in recipe.scores["note"]
    assert not {"winner", "best_constant", "winner_vs_best_constant"} & set(recipe.scores)
    number = sum(sizes[:2]) + 1
    assert Recipe.from_yaml(exported(capsys, finished, "--trial", number)) == recipe


def test_json_has_coefficients_and_the_value(finished: Path, capsys: pytest.CaptureFixture) -> None:
    best = json.loads(exported(capsys, finished, "--best", "--as", "json"))
    values = [trial.values[0] for trial in open_run(finished).trials() if trial.values]
    assert best["value"] == max(values)
    assert best["point"].startswith("trial ")
    winner = json.loads(exported(capsys, finished, "--as", "json"))
    recipe = Recipe.from_yaml((finished / "recipe.yaml").read_text())
    assert winner["coefficients"] == recipe.coefficients
    summary = json.loads((finished / "summary.json").read_text())
    assert winner["value"] == summary["select"]["finalists"][summary["select"]["winner"]]
    assert winner["point"] == "winner"


def test_the_finalists_are_those_of_the_selection(finished: Path) -> None:
    """Every name in the summary can be had, and the winner among them is the recipe, bit for bit."""
    run = open_run(finished)
    opened = open_problem(run, Reporter())
    assert run.summary is not None
    assert run.recipe is not None
    selected = run.summary.select
    for name, value in selected.finalists.items():
        point = find_finalist(run, opened, name)
        assert (point.value, point.about["split"], point.about["items"]) == (value, "select", selected.seen[name])
        if name == selected.winner:
            np.testing.assert_array_equal(opened.space.decode(point.x)["weight"], values_of(run.recipe))
    with pytest.raises(ConfigError, match="Unknown finalist 'bets': did you mean 'best'"):
        find_finalist(run, opened, "bets")


def test_a_stopped_run_has_no_winner_but_all_else(stopped: Path, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(ConfigError, match=r"not complete, so it has no winner yet. Write --best"):
        main([str(stopped)])
    best = Recipe.from_yaml(exported(capsys, stopped, "--best"))
    assert best.heads == {}
    again = Recipe.from_yaml(exported(capsys, stopped, "--finalist", "best"))
    assert again.scores["value"] is None
    scored = {t.index: t.values[0] for t in open_run(stopped).batches[0].trials if t is not None and t.values}
    assert best.scores["value"] >= max(scored.values())
    yaml_text = exported(capsys, stopped, "--trial", "0.0", "--as", "mergekit")
    assert yaml.safe_load(yaml_text)["merge_method"] == "task_arithmetic"
    for name, message in {
        "2.2": "2.2 of the run .* has no result yet",
        "77": r"has no trial '77'.*It has \d+ trials, counted from 0, the last is 2\.",
        "9.9": r"has no trial '9.9'",
        "best": "write BATCH.INDEX",
        "step_1": "0 of them are steps",
    }.items():
        with pytest.raises(ConfigError, match=message):
            main([str(stopped), "--trial", name])


def test_heads_are_written_for_a_run_that_has_none_yet(stopped: Path, tmp_path: Path) -> None:
    main([str(stopped), "--best", "-o", str(tmp_path / "best.yaml")])
    recipe = Recipe.from_yaml((tmp_path / "best.yaml").read_text())
    assert set(recipe.heads) == {"animals", "trees", "metals"}
    assert all((tmp_path / path).is_file() for path in recipe.heads.values())


def test_steps_of_a_gradient_are_trials(stepped: Path, problem: Problem, capsys: pytest.CaptureFixture) -> None:
    recipe = Recipe.from_yaml(exported(capsys, stepped, "--trial", "step_4"))
    assert Recipe.from_yaml(exported(capsys, stepped, "--trial", "4")) == recipe  # nothing came before the steps
    point = open_run(stepped).batches[4].points[0]
    np.testing.assert_array_equal(values_of(recipe), problem.space.decode(point)["weight"])
    assert recipe.scores["metric"] == "cross_entropy"
    assert recipe.scores["value"] < 0
    assert recipe.scores["split"] == "the inputs of this step"
    finalist = Recipe.from_yaml(exported(capsys, stepped, "--finalist", "step_4"))
    assert finalist.coefficients == recipe.coefficients
    assert (finalist.scores["split"], finalist.scores["metric"]) == ("select", "accuracy")
    with pytest.raises(ConfigError, match=r"steps along a gradient.*--finalist step_40"):
        main([str(stepped), "--best"])


def test_sources_that_are_gone_or_changed_are_named(finished: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(finished, copy)
    config = (copy / "config.yaml").read_text()

    def refused(text: str, message: str) -> None:
        (copy / "config.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            main([str(copy), "--trial", "0"])
        main([str(copy), "--as", "json", "-o", str(tmp_path / "winner.json")])  # the winner needs no sources

    refused(config.replace("granularity: layer", "granularity: module"), "the coefficient space of the run .* changed")
    data = yaml.safe_load(config)
    data["model"] |= {"name": None, "builder": None, "suite": str(tmp_path / "nowhere")}
    refused(yaml.safe_dump(data), "sources of the run .* are not there as they were.*recipe.yaml.*nowhere")


def test_files_of_the_run_are_not_overwritten(finished: Path, tmp_path: Path) -> None:
    for name in ("recipe.yaml", "trials.jsonl"):
        before = (finished / name).read_bytes()
        with pytest.raises(ConfigError, match="belongs to the run"):
            main([str(finished), "--trial", "0", "-o", str(finished / name)])
        assert (finished / name).read_bytes() == before
    with pytest.raises(ConfigError, match="is a directory"):
        main([str(finished), "-o", str(tmp_path)])


def test_flags_that_exclude_each_other(finished: Path, capsys: pytest.CaptureFixture) -> None:
    for flags in (["--best", "--trial", "1"], ["--materialise", "x", "--as", "json"], ["--as", "yaml"]):
        with pytest.raises(SystemExit) as stopped_with:
            main([str(finished), *flags])
        assert stopped_with.value.code == 2
    capsys.readouterr()


def test_a_directory_without_a_log_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no run directory"):
        main([str(tmp_path)])


def test_materialise_from_the_command_line(
    finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture, problem: Problem
) -> None:
    exported(capsys, finished, "--trial", "1.0", "--materialise", tmp_path / "experts")
    document = yaml.safe_load((tmp_path / "experts" / "mergekit.yaml").read_text())
    assert [row["model"] for row in document["models"]] == [
        str(tmp_path / "experts" / name) for name in problem.experts
    ]
    written = read_tensors(weight_files(tmp_path / "experts" / "trees"))
    original = read_tensors(weight_files(Path(document["base_model"]).parent / "experts" / "trees"))
    assert all(torch.allclose(written[key], original[key], atol=1e-6) for key in written)
