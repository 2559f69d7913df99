"""A run looked at from another directory than the one in which its search was started."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from evomerge.common.paths import RECORD, record_start, started_in
from evomerge.runs.paths import from_its_start, with_paths
from tests.processes.command import evomerge

SETTINGS = {
    "model": {"suite": None, "base": "base", "experts": {"a": "a", "b": "owner/name"}, "cache": ".cache"}
    | {"trained_on": {"a": ["x.jsonl", "gone.txt"]}},
    "fitness": {"tasks": {"x": "x.jsonl", "y": {"items": "y.jsonl", "expert": "a"}}, "function": "mine.py:score"},
    "start": "constants",
}


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run directory whose search was started two directories above; this process is elsewhere."""
    for name in ("base", "a"):
        (tmp_path / "home" / name).mkdir(parents=True)
    for name in ("x.jsonl", "y.jsonl", "mine.py"):
        (tmp_path / "home" / name).write_text("")
    run = tmp_path / "home" / "runs" / "one"
    run.mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "home")
    record_start(run)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return run


def test_paths_that_are_there_are_found_and_other_names_stay(run: Path) -> None:
    settings = from_its_start(SETTINGS, run)
    assert settings["model"]["base"] == "../home/base"
    assert settings["model"]["experts"] == {"a": "../home/a", "b": "owner/name"}
    assert settings["model"]["trained_on"] == {"a": ["../home/x.jsonl", "gone.txt"]}
    assert settings["fitness"]["tasks"] == {"x": "../home/x.jsonl", "y": {"items": "../home/y.jsonl", "expert": "a"}}
    assert settings["fitness"]["function"] == "../home/mine.py:score"
    assert settings["start"] == "constants"


def test_what_lies_here_under_the_same_name_is_not_taken_for_it(run: Path) -> None:
    Path("x.jsonl").write_text("another")
    assert from_its_start(SETTINGS, run)["fitness"]["tasks"]["x"] == "../home/x.jsonl"


def test_all_of_it_may_move_and_so_may_the_run_alone(run: Path, tmp_path: Path) -> None:
    shutil.copytree(run, tmp_path / "kept" / "deep" / "one")
    assert from_its_start(SETTINGS, tmp_path / "kept" / "deep" / "one")["model"]["base"] == "../home/base"
    (tmp_path / "home").rename(tmp_path / "moved")
    assert from_its_start(SETTINGS, tmp_path / "moved" / "runs" / "one")["model"]["base"] == "../moved/base"


@pytest.mark.parametrize("content", [None, "", "[]", "{}", '{"directory": 3}'])
def test_a_run_without_a_record_is_read_as_ever(run: Path, content: str | None) -> None:
    (run / RECORD).unlink()
    if content is not None:
        (run / RECORD).write_text(content)
    assert started_in(run) == []
    assert from_its_start(SETTINGS, run) == SETTINGS


def test_from_where_it_was_started_nothing_changes(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(run.parents[1])
    assert from_its_start(SETTINGS, run) == SETTINGS


def test_only_paths_are_passed_on() -> None:
    seen: list[str] = []
    with_paths(SETTINGS, lambda text: seen.append(text) or text)
    of_models, of_tasks = ["base", "a", "owner/name", ".cache", "x.jsonl", "gone.txt"], ["x.jsonl", "y.jsonl"]
    assert sorted(seen) == sorted([*of_models, *of_tasks, "mine.py", "constants"])


@pytest.mark.slow
def test_a_run_is_evaluated_exported_and_merged_from_any_directory(own_classifiers: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    (home / "below").mkdir(parents=True)
    for name in ("base", "mood", "topic", "mood.jsonl", "topic.jsonl"):
        (home / name).symlink_to(own_classifiers / name)
    done = evomerge(
        "search", "model.base=base", "model.experts=[mood,topic]", "searcher=random", "budget=2",
        "hydra.run.dir=runs/x", "fitness.tasks={mood: mood.jsonl, topic: topic.jsonl}", cwd=home,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    log = (home / "runs" / "x" / "trials.jsonl").read_text()
    assert str(tmp_path) not in log
    printed = []
    for cwd, run in ((home, "runs/x"), (home / "below", "../runs/x")):
        done = evomerge("evaluate", run, "base", "experts", "--json", cwd=cwd)
        assert done.returncode == 0, done.stderr
        printed.append(list(json.loads(done.stdout)["models"].values()))
    assert printed[0] == printed[1]
    assert evomerge("export", "../runs/x", "--best", cwd=home / "below").returncode == 0
    assert evomerge("merge", "../runs/x/recipe.yaml", "merged", cwd=home / "below").returncode == 0
