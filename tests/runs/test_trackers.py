"""Trackers show what the log holds, go on with a run that goes on, and are never in the way of a search."""

from __future__ import annotations

import importlib
import shutil
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from evomerge.cli.settings import check_settings
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.progress import Silent
from evomerge.runs.choices import load_choice
from evomerge.runs.config import plain, run_name
from evomerge.runs.directory import read_summary
from evomerge.runs.run import run_search
from evomerge.runs.trackers import following
from evomerge.runs.trackers.base import make_tracker
from evomerge.runs.trackers.following import tracking
from evomerge.runs.trackers.generations import Generations
from evomerge.search.journal import read_log
from tests.kit import wandb_like
from tests.kit.evaluations import sources_of
from tests.kit.helpers import compose
from tests.kit.reports import TASKS, finish, write_run


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Any]:
    """Puts a package with the interface of wandb on sys.path, under a name."""

    def make(name: str) -> ModuleType:
        shutil.copy(wandb_like.__file__, tmp_path / f"{name}.py")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, name, raising=False)
        found = importlib.import_module(name)
        monkeypatch.setitem(sys.modules, name, found)
        return found

    return make


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_run(tmp_path_factory.mktemp("runs") / "small", batches=1)


def track(run: Path, choice: str, **given: Any) -> None:
    settings = {"fitness": {"metric": "log_probability"}, "tracker": load_choice("tracker", choice, given)}
    with tracking(make_tracker(settings), run, settings):
        pass


def test_the_numbers_of_generations_are_those_of_the_log(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", batches=3, steps=2, errors={6: "no"})
    generations, found = Generations("log_probability"), []
    trials = []
    for line in read_log(run / "trials.jsonl"):
        if line["kind"] == "trial":
            trials.append(line)
        if numbers := generations.take(line):
            found.append(numbers)
    assert generations.trials == len(trials) == 14
    for i, numbers in enumerate(found):
        mine = [line for line in trials if line["batch"] == i]
        so_far = [line for line in trials if line["batch"] <= i]
        assert numbers["items"] == sum(len(ids) for line in so_far for ids in line["items"].values())
        assert numbers["failed"] == sum(line["status"] == "failed" for line in so_far)
        by_value = [line for line in so_far if line["values"] and "gradient" not in line]
        best = max(by_value, key=lambda line: line["values"][0])
        assert numbers["best"] == best["values"][0]
        for task in TASKS:
            assert numbers[f"best/{task}"] == best["scores"][task]["log_probability"]
        values = [line["values"][0] for line in mine if line["values"]]
        if i < 3:
            assert numbers["generation/best"] == max(values)
            assert numbers["generation/mean"] == pytest.approx(np.mean(values))
            assert "loss" not in numbers
        else:
            assert numbers["loss"] == pytest.approx(-np.mean(values))
            assert "generation/best" not in numbers


def test_a_generation_of_which_a_race_dropped_some_has_no_mean() -> None:
    generations = Generations("accuracy")
    for index, status in enumerate(["ok", "censored", "ok"]):
        generations.take(
            {"kind": "trial", "batch": 0, "index": index, "status": status, "values": [index], "violations": []}
        )
    found = generations.take({"kind": "tell", "batch": 0})
    assert found is not None
    assert (found["generation/best"], found["dropped"]) == (2, 1)
    assert "generation/mean" not in found


def test_a_run_that_goes_on_is_the_same_run_of_wandb(tmp_path: Path, package: Callable[[str], Any]) -> None:
    wandb, run = package("wandb"), write_run(tmp_path / "run", batches=4)
    log = (run / "trials.jsonl").read_bytes()
    told = [i for i, line in enumerate(log.splitlines()) if b'"kind":"tell"' in line]
    (run / "trials.jsonl").write_bytes(b"\n".join(log.splitlines()[: told[1] + 3]) + b'\n{"kind":"trial","ba')  # killed
    track(run, "wandb", project="mine")
    (one,) = wandb.RUNS.values()
    assert [step for step, _ in one.rows] == [0, 1]
    assert (one.about["project"], one.about["name"], one.summary) == ("mine", "run", {})
    (run / "trials.jsonl").write_bytes(log)
    finish(run)
    track(run, "wandb")
    track(run, "wandb")
    assert list(wandb.RUNS.values()) == [one]
    assert [step for step, _ in one.rows] == [0, 1, 2, 3]
    assert one.summary["report/winner"] == pytest.approx(0.63)
    assert one.summary["report/gain"] == pytest.approx(0.03)
    assert one.finished == 3
    track(shutil.copytree(run, tmp_path / "other"), "wandb")
    assert len(wandb.RUNS) == 2  # another directory is another run


def test_a_search_is_shown_with_its_end(
    pico_suite, tmp_path: Path, package: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    wandb, directory = package("wandb"), tmp_path / "run"
    monkeypatch.setattr(following, "EVERY", 0.01)
    few = ["fitness.items=12", "fitness.select_items=30", "fitness.report_items=30", "budget=7"]
    config = compose(*sources_of(pico_suite, tmp_path / "cache"), *few, "tracker=wandb")
    summary = run_search(config, directory, Silent())
    assert summary is not None
    (one,) = wandb.RUNS.values()
    assert one.summary["report/winner"] == summary.winner.mean
    assert [numbers["items"] for _, numbers in one.rows] == [6 * 12]  # the seventh candidate begins a generation
    assert one.about["config"]["budget"] == 7


def test_trackio_is_sent_nothing_twice(tmp_path: Path, package: Callable[[str], Any]) -> None:
    trackio, run = package("trackio"), write_run(tmp_path / "run", batches=4)
    log = (run / "trials.jsonl").read_bytes()
    (run / "trials.jsonl").write_bytes(b"\n".join(log.splitlines()[:14]) + b"\n")
    track(run, "trackio")
    (run / "trials.jsonl").write_bytes(log)
    for _ in range(2):
        track(finish(run), "trackio")
    (one,) = trackio.RUNS.values()
    *generations, (step, end) = one.rows
    assert [step for step, _ in generations] == [0, 1, 2, 3]
    assert (step, end["report/winner"]) == (3, pytest.approx(0.63))
    (run / "trackio.json").write_text("{")  # damaged: it is sent all again
    trackio.RUNS.clear()
    track(run, "trackio")
    (again,) = trackio.RUNS.values()
    assert again.rows == one.rows


@pytest.mark.parametrize("where", ["init", "log", "finish"])
@pytest.mark.parametrize("how", ["raises", "exits", "hangs"])
def test_a_tracker_can_stop_no_search(
    where: str,
    how: str,
    small: Path,
    package: Callable[[str], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fails() -> None:
        if how == "hangs":
            assert let_go.wait(60)
        raise SystemExit(3) if how == "exits" else ConnectionError("no route\nto host")

    let_go = threading.Event()
    monkeypatch.setattr(following, "PATIENCE", 0.05 if how == "hangs" else 10)
    package("wandb").TROUBLE[where] = fails
    track(small, "wandb")
    (said,) = [record.getMessage() for record in caplog.records]
    assert said.startswith("The tracker has not ended" if how == "hangs" else "The tracker has failed")
    assert ("(ConnectionError: no route)" in said) == (how == "raises")
    let_go.set()
    for thread in threading.enumerate():
        if thread.name == "evomerge tracker":
            thread.join(10)


def test_a_package_that_is_missing_is_refused_before_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name in ("tensorboard", "wandb", "trackio"):
        with pytest.raises(ConfigError, match=rf"tracker={name} needs {name}.*pip install 'evomerge\[{name}\]'"):
            make_tracker({"tracker": load_choice("tracker", name)})
    with pytest.raises(ConfigError, match="needs wandb"):
        run_search(compose("model.base=nowhere", "model.experts=[a]", "tracker=wandb"), tmp_path, Silent())


def test_what_is_no_tracker_is_refused() -> None:
    settings = {"tracker": {"_target_": "collections.OrderedDict"}}
    with pytest.raises(ConfigError, match="is no tracker: it lacks open, log, close"):
        make_tracker(settings)
    assert make_tracker({"tracker": None}) is make_tracker({}) is make_tracker(plain(compose("tracker=none"))) is None


def test_a_tracker_makes_no_other_run() -> None:
    choices = {"model": "pico", "method": "linear", "space": "layer", "searcher": "cmaes"}
    assert run_name(choices, ["tracker=wandb", "tracker.project=mine"]) == run_name(choices, [])
    with pytest.raises(EvomergeError, match="would share one directory"):
        check_settings(["-m", "model=pico", "tracker=wandb,tensorboard"])
    with pytest.raises(EvomergeError, match="tracker=null is none of none, tensorboard, trackio, wandb"):
        check_settings(["model=pico", "tracker=null"])


def test_tensorboard_shows_a_run_that_goes_on_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = write_run(tmp_path / "run", batches=4)
    log = (run / "trials.jsonl").read_bytes()
    (run / "trials.jsonl").write_bytes(b"\n".join(log.splitlines()[:12]) + b"\n")
    track(run, "tensorboard")
    (run / "trials.jsonl").write_bytes(log)
    track(finish(run), "tensorboard")
    assert len(list((run / "tensorboard").iterdir())) == 2
    found = EventAccumulator(str(run / "tensorboard")).Reload()
    assert [event.step for event in found.Scalars("best")] == [0, 1, 2, 3]
    summary = read_summary(run)
    assert summary is not None
    assert summary.winner.mean is not None
    (event,) = found.Scalars("report/winner")
    assert event.value == pytest.approx(summary.winner.mean)
    assert "log_probability" in str(found.Tensors("settings/text_summary"))
