"""A run of version 0.2, as its directory lies in `tests/data/run_0_2`, is a run of today's search in every verb."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from evomerge.cli import evaluate, export, merge, report
from evomerge.common.errors import ConfigError, LogError
from evomerge.common.machine import fingerprint
from evomerge.common.progress import Silent
from evomerge.recipes.recipe import Recipe
from evomerge.report.result import Result as open_result
from evomerge.runs.config import check
from evomerge.runs.directory import open_run
from evomerge.runs.earlier import check_begun, identity_today, in_todays_words
from evomerge.runs.outputs import run_digest
from evomerge.runs.run import run_search
from evomerge.runs.suite import Suite
from evomerge.search.journal import Journal, read_log
from tests.kit.helpers import compose

HELD = Path(__file__).parents[1] / "data" / "run_0_2"
SEARCH = (
    *("experiment=smoke", "space=model", "model.device=cpu", "model.suite=suite", "searcher.popsize=4"),
    *("fitness.items=24", "fitness.select_items=30", "fitness.report_items=30", "method=ties_frozen"),
)
TIES = {"_target_": "evomerge.transforms.ties.TrimElect", "density": 0.2}


@pytest.fixture(scope="module")
def today(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The same search by this version, from its beginning; and the directory in which both are started."""
    path = tmp_path_factory.mktemp("earlier")
    (path / "suite").symlink_to(pico_suite.path)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        run_search(compose(*SEARCH, "budget=14"), path / "runs" / "today", Silent())
        yield path


@pytest.fixture
def old(today: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The run of 0.2 beside it. The models were trained on another machine, where they may have other last digits: the
    hashes of those that are here stand in its files.
    """
    path, now = today / "runs" / "old", next(read_log(today / "runs" / "today" / "trials.jsonl"))["identity"]
    shutil.copytree(HELD, path)
    header, *records = read_log(path / "trials.jsonl")
    before, recipe = header["identity"], (path / "recipe.yaml").read_text()
    pairs = zip([["", before["base"]], *before["experts"]], [["", now["base"]], *now["experts"]], strict=True)
    for (_, theirs), (_, ours) in pairs:
        recipe = recipe.replace(theirs, ours)
    (path / "recipe.yaml").write_text(recipe)
    header["identity"] |= {name: now[name] for name in ("base", "experts", "heads", "files", "items")}
    (path / "trials.jsonl").unlink()
    journal = Journal(path / "trials.jsonl")
    journal.open()
    for record in (header, *records):
        journal.append(record)
    journal.close()
    monkeypatch.chdir(today)
    yield path
    shutil.rmtree(path)


def test_the_words_of_an_identity() -> None:
    (header, *_) = read_log(HELD / "trials.jsonl")
    now = in_todays_words(header["identity"])
    assert now["method"] == {"_target_": "evomerge.merging.methods.Linear"}
    assert now["transform"] == [TIES]
    assert {name: now[name] for name in now if name not in ("method", "transform")} == {
        name: value for name, value in header["identity"].items() if name != "method"
    }
    assert in_todays_words(now) == now


def test_how_many_points_of_a_front_are_handed_over_counts_where_there_is_one() -> None:
    (header, *_) = read_log(HELD / "trials.jsonl")
    tpe = {"_target_": "evomerge.searchers.tpe.Tpe", "keep": 5}
    mine = {"_target_": "mine.Random", "keep": 5, "incumbents": 7}
    given = header["identity"] | {"searcher": {**tpe, "incumbents": 7}}
    assert identity_today(given)["searcher"] == tpe
    assert identity_today(given | {"searcher": mine})["searcher"] == mine
    for objective in ({"aggregate": "pareto"}, {"aggregate": "mean", "values": [["a", ["x"]], ["b", ["y"]]]}):
        assert identity_today(given | {"objective": objective})["searcher"] == {**tpe, "incumbents": 7}


def test_the_words_of_settings() -> None:
    fitness = {"_target_": "evomerge.fitness.lm_eval.LmEval", "tasks": {"a": {"task": "evomerge.methods.Linear"}}}
    hybrid = {"_target_": "evomerge.searchers.hybrid.Hybrid", "first": {"_target_": "evomerge.searchers.tpe.Tpe"}}
    given: dict[str, Any] = {"method": {"_target_": "evomerge.methods.Ties", "normalize": True}, "searcher": hybrid}
    found = in_todays_words({**given, "fitness": fitness, "loss": None})
    added = {"elect": "sum", "over": "tensor", "scale": 1.0}
    assert found["method"] == {"_target_": "evomerge.merging.methods.Ties", "normalize": True, **added}
    assert found["searcher"] == hybrid
    assert found["fitness"] == {**fitness, "_target_": "evomerge.fitness.lm_eval.harness.LmEval"}
    assert in_todays_words(found) == found
    assert in_todays_words({"method": {"_target_": "mine.methods.Linear", "transform": None}}) == {
        "method": {"_target_": "mine.methods.Linear"}
    }


def test_a_run_with_other_masks_is_reported_and_nothing_else(old: Path) -> None:
    dare = {"_target_": "evomerge.methods.DareTies", "seed": 0, "normalize": False, "transform": None}
    header, *records = read_log(old / "trials.jsonl")
    header["identity"]["method"] = dare
    settings = yaml.safe_load((old / "config.yaml").read_text())
    (old / "config.yaml").write_text(yaml.safe_dump({**settings, "method": dare}))
    (old / "trials.jsonl").unlink()
    journal = Journal(old / "trials.jsonl")
    journal.open()
    for record in (header, *records):
        journal.append(record)
    journal.close()
    report.main([str(old)])
    assert (old / "report.html").is_file()
    refused = r"random masks of dare_ties came from another generator.*pip install 'evomerge<0\.3'"
    with pytest.raises(LogError, match=rf"The run {old} is of an earlier version\. .*{refused}"):
        run_search(compose(*SEARCH[:-1], "method=dare_ties", "budget=14"), old, Silent())
    with pytest.raises(ConfigError, match=refused):
        open_result(old).problem  # noqa: B018
    with pytest.raises(ConfigError, match=refused):
        check(open_run(old).settings)


def test_it_goes_on_as_if_nothing_had_happened(old: Path, today: Path) -> None:
    before = (old / "trials.jsonl").read_bytes()
    summary = run_search(compose(*SEARCH, "budget=14"), old, Silent())
    assert summary is not None
    after = (old / "trials.jsonl").read_bytes()
    assert after.startswith(before)
    written, fresh = (list(read_log(run / "trials.jsonl")) for run in (old, today / "runs" / "today"))
    kinds = [record["kind"] for record in written if record["kind"] != "header"]
    assert kinds == [record["kind"] for record in fresh if record["kind"] != "header"]
    if written[0]["fingerprint"] == fingerprint() and len(before) == len((HELD / "trials.jsonl").read_bytes()):
        same = [record for record in written if record["kind"] != "header"]
        assert same == [record for record in fresh if record["kind"] != "header"]


def test_what_is_complete_stays_complete(old: Path) -> None:
    """The summary holds a hash of the identity in the words of its day."""
    (header, *_) = read_log(old / "trials.jsonl")
    settings = open_run(old).settings
    then, now = header["identity"], in_todays_words(header["identity"])
    assert run_digest(old, now, settings, []) == run_digest(old, then, settings, [])
    assert run_digest(old, {**now, "seed": 2}, settings, []) != run_digest(old, then, settings, [])


def test_another_search_is_still_refused(old: Path) -> None:
    with pytest.raises(LogError, match=r"belongs to another search: transform was .*0\.2.*, is .*0\.3"):
        run_search(compose(*SEARCH, "method.transform.density=0.3", "budget=14"), old, Silent())


def test_it_is_read_reported_exported_evaluated_and_merged(
    old: Path, today: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = open_run(old)
    assert (run.settings["method"], run.settings["transform"]) == (
        {"_target_": "evomerge.merging.methods.Linear"},
        [TIES],
    )
    assert run.recipe is not None
    assert (run.recipe.method, run.recipe.transform) == ({"name": "linear"}, [{"name": "ties", "density": 0.2}])
    report.main([str(old)])
    assert "ties" in (old / "report.html").read_text()
    capsys.readouterr()
    for arguments in ([], ["--best"], ["--finalist", "unfinished"], ["--trial", "0.3"]):
        export.main([str(old), *arguments])
        recipe = Recipe.from_yaml(capsys.readouterr().out)
        assert (recipe.method, recipe.transform) == (run.recipe.method, run.recipe.transform)
        assert recipe.experts.keys() == {"animals", "trees", "metals"}
    evaluate.main([str(old), "base", "--split", "report", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert len(found["models"]) == 2
    (old / "recipe.yaml").write_text((old / "recipe.yaml").read_text().replace("heads: {", "heads: {} # {"))
    merge.main([str(old / "recipe.yaml"), str(old / "merged")])
    mine = Recipe.from_yaml((today / "runs" / "today" / "recipe.yaml").read_text())
    again = Recipe.from_yaml((old / "recipe.yaml").read_text())
    (old / "again.yaml").write_text(Recipe(**{**vars(mine), "coefficients": again.coefficients, "heads": {}}).to_yaml())
    merge.main([str(old / "again.yaml"), str(old / "again")])
    one, two = (load_file(old / name / "model.safetensors") for name in ("merged", "again"))
    assert one.keys() == two.keys()
    assert all((one[name] == two[name]).all() for name in one)


def test_a_search_leaves_a_comparison_alone(tmp_path: Path) -> None:
    (tmp_path / "comparison.jsonl").write_text("")
    with pytest.raises(LogError, match="holds a comparison of methods: name another directory for the search"):
        check_begun(tmp_path)


@pytest.mark.parametrize("searcher", ["nsga2", "mocma"])
def test_a_run_that_began_around_its_start_goes_on_so(today: Path, searcher: str, tmp_path: Path) -> None:
    """Its log knows no `searcher.first`, and the same command now asks for another first generation."""
    said = list[str]()

    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    sizes = ["fitness.items=9", "fitness.select_items=9", "fitness.report_items=30"]
    command = ["experiment=smoke", "model.suite=suite", "objective=pareto", f"searcher={searcher}", *sizes, "start=0.4"]
    run = tmp_path / "run"
    run_search(compose(*command, "searcher.popsize=4", "searcher.first=start", "budget=6"), run, Silent())
    before = (run / "trials.jsonl").read_bytes()
    assert "first" not in next(read_log(run / "trials.jsonl"))["identity"]["searcher"]
    run_search(compose(*command, "searcher.popsize=4", "budget=9"), run, Told())
    assert (run / "trials.jsonl").read_bytes().startswith(before)
    assert any("goes on so: searcher.first=start" in text for text in said)
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["searcher"]["first"] == "start"
    export.main([str(run), "--finalist", "front_1", "-o", str(tmp_path / "one.yaml")])  # it replays the log
    assert Recipe.from_yaml((tmp_path / "one.yaml").read_text(encoding="utf-8")).experts
    run_search(compose(*command, "searcher.popsize=4", "budget=5"), tmp_path / "new", Told())
    assert next(read_log(tmp_path / "new" / "trials.jsonl"))["identity"]["searcher"]["first"] == "experts"


def test_a_run_that_began_with_the_kinship_of_weights_goes_on_so(today: Path, tmp_path: Path) -> None:
    """Its log knows no `searcher.akin`, and the same command now asks for that of models."""
    sizes = ["fitness.items=9", "fitness.select_items=9", "fitness.report_items=30"]
    command = ["experiment=smoke", "model.suite=suite", "space=model", "searcher=topk", "start=1", *sizes]
    run, new = tmp_path / "run", tmp_path / "new"
    run_search(compose(*command, "searcher.akin=weights", "budget=4"), run, Silent())
    before = (run / "trials.jsonl").read_bytes()
    run_search(compose(*command, "budget=5"), run, Silent())
    assert (run / "trials.jsonl").read_bytes().startswith(before)
    assert "akin" not in next(read_log(run / "trials.jsonl"))["identity"]["searcher"]
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["searcher"]["akin"] == "weights"
    for budget in (4, 5):  # goes on, and asks for the same
        run_search(compose(*command, f"budget={budget}"), new, Silent())
    assert next(read_log(new / "trials.jsonl"))["identity"]["searcher"]["akin"] == "task_vectors"
    export.main([str(new), "-o", str(tmp_path / "one.yaml")])


@pytest.mark.parametrize(("transform", "setting"), [("opcm", {"tables": "projected"}), ("iso_cts", {"zeros": False})])
def test_a_run_that_began_with_another_form_of_a_transform_goes_on_so(
    today: Path, transform: str, setting: dict[str, Any], tmp_path: Path
) -> None:
    """Its log, its settings and its recipe do not name the setting that came later."""
    ((name, value),) = setting.items()
    run, said = tmp_path / "run", list[str]()

    class Told(Silent):
        def say(self, text: str) -> None:
            said.append(text)

    sizes = ["fitness.items=6", "fitness.select_items=6", "fitness.report_items=9", "start=0.4", "searcher.popsize=3"]
    command = ["experiment=smoke", "model.suite=suite", "space=model", *sizes, f"transform={transform}"]
    run_search(compose(*command, f"transform.{transform}.{name}={str(value).lower()}", "budget=3"), run, Silent())
    header, *records = read_log(run / "trials.jsonl")
    (step,) = header["identity"]["transform"]
    assert step.pop(name) == value
    (run / "trials.jsonl").unlink()
    journal = Journal(run / "trials.jsonl")
    journal.open()
    for record in (header, *records):
        journal.append(record)
    journal.close()
    settings = yaml.safe_load((run / "config.yaml").read_text())
    assert settings["transform"][0].pop(name) == value
    (run / "config.yaml").write_text(yaml.safe_dump(settings))
    recipe = yaml.safe_load((run / "recipe.yaml").read_text())
    assert recipe["transform"][0].pop(name) == value
    assert Recipe.from_yaml(yaml.safe_dump(recipe)).transform[0][name] == value
    before = (run / "trials.jsonl").read_bytes()
    assert open_run(run).settings["transform"] == open_run(run).identity["transform"] == [{**step, name: value}]
    run_search(compose(*command, "budget=5"), run, Told())
    assert (run / "trials.jsonl").read_bytes().startswith(before)
    assert any(f"another form of a transform, and goes on so: {name}={str(value).lower()}" in text for text in said)
    assert open_run(run).settings["transform"] == [{**step, name: value}]
    assert open_run(run).recipe.transform[0][name] == value  # pyright: ignore[reportOptionalMemberAccess]
