"""Races in a whole search: settings, what is said and kept, and a run that is cut off within a generation."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Silent
from evomerge.problem import Problem
from evomerge.report.page import write_report
from evomerge.runs.build import make_searcher
from evomerge.runs.config import check, plain
from evomerge.runs.directory import open_run
from evomerge.runs.identity import search_identity
from evomerge.runs.points import best_trial, find_trial
from evomerge.runs.run import run_search
from evomerge.search.stopping import Interrupt
from evomerge.searchers.random import Random
from evomerge.selection.summary import Summary
from tests.kit.evaluations import sources_of
from tests.kit.helpers import box, compose


class Told(Silent):
    """Remembers what is said."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


class Soon(Interrupt):
    """Is asked to stop when somebody has looked so many times."""

    def __init__(self, looks: int) -> None:
        self._looks = looks
        super().__init__()

    @property
    def requested(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        self._looks -= 1
        return self._looks < 0

    @requested.setter
    def requested(self, value: bool) -> None:
        """It cannot be asked otherwise."""


def test_a_raced_search_says_what_it_saved_and_goes_on_where_it_was_cut(pico_suite: Any, tmp_path: Path) -> None:
    settings = [*sources_of(pico_suite, tmp_path / "cache"), "racing.alpha=0.3", "fitness.items=75", "budget=15"]
    assert run_search(compose(*settings), tmp_path / "run", Silent(), Soon(40)) is None
    assert (tmp_path / "run" / "units.jsonl").read_text().count("\n") >= 7  # of a generation that had not ended
    told = Told()
    summary: Any = run_search(compose(*settings), tmp_path / "run", told)
    assert [line for line in told.said if "races  a candidate is dropped after 18, 37 or 56 of 75 items" in line]
    assert [line for line in told.said if line.startswith(f"races dropped {summary.raced.dropped} of 15 candidates")]
    run = open_run(tmp_path / "run")
    trials = list(run.trials())
    dropped = [trial for trial in trials if trial.status == "censored"]
    assert len(dropped) == summary.raced.dropped > 0
    assert summary.raced.spent == sum(trial.spent for trial in trials) < summary.raced.without == 15 * 75
    assert summary.failed == 0
    assert Summary.from_json((tmp_path / "run" / "summary.json").read_text()).raced == summary.raced
    page = write_report(tmp_path / "run").read_text()
    assert page.count('class="mark censored"') == 1 + len(dropped)  # and one in the legend
    assert "Races dropped" in page
    best = best_trial(run)
    assert best.value == max(trial.values[0] for trial in trials if trial.full)
    assert find_trial(run, f"{dropped[0].batch}.{dropped[0].index}").value is None
    assert not (tmp_path / "run" / "units.jsonl").exists()

    log = tmp_path / "run" / "trials.jsonl"
    whole = log.read_bytes()
    lines = whole.splitlines(keepends=True)
    log.write_bytes(b"".join(lines[:-5]))
    (tmp_path / "run" / "summary.json").unlink()
    again = run_search(compose(*settings), tmp_path / "run", Silent())
    assert log.read_bytes() == whole
    assert dataclasses.replace(summary, seconds={}) == dataclasses.replace(again, seconds={})
    assert json.loads(lines[0])["identity"]["racing"] == [0.3, 3]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("racing.alpha=0", r"racing\.alpha=0.0 is no share .* write a number between 0 and 1, such as 0\.1"),
        ("racing.alpha=1.5", r"racing\.alpha=1.5 is no share"),
        ("racing.alpha=0.1 racing.looks=0", r"racing\.looks=0: .* write 1 or more"),
        ("racing.alpha=0.1 searcher.lag=3", r"searcher\.lag=3 asks for new ones before .* write searcher\.lag=0"),
        (
            "racing.halving=true searcher.lag=3",
            r"racing\.halving drops .* write searcher\.lag=0, or leave racing\.halving",
        ),
        ("racing.halving=true racing.alpha=0.1", r"by evidence, and racing\.halving=true by ranks alone: write one"),
        ("racing.halving=true searcher=tpe", r"with searcher\.batch=1 there is none: write searcher\.batch=8"),
        ("racing.alpha=0.1 searcher=hybrid searcher.second.lag=2", r"write searcher\.second\.lag=0"),
    ],
)
def test_settings_that_are_no_race_are_refused(given: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(plain(compose("model=pico", *given.split())))


class Ahead(Random):
    """Asks ahead, which its settings do not say."""

    def __init__(self, **given: Any) -> None:
        super().__init__(**given)
        self.lag = 2


@pytest.mark.parametrize("given", ["racing.alpha=0.1", "racing.halving=true", "fitness.sampling=adaptive"])
def test_a_searcher_of_somebodys_own_that_asks_ahead_is_refused(given: str) -> None:
    settings = plain(compose("model=pico", given))
    settings["searcher"] = {"_target_": f"{Ahead.__module__}.{Ahead.__qualname__}"}
    with pytest.raises(ConfigError, match=f"Ahead asks 2 batches ahead, and {given.split('=')[0]}"):
        make_searcher(settings, box(2))
    settings["searcher"] = plain(compose("model=pico", "searcher=hybrid", given))["searcher"]
    settings["searcher"]["second"] = {"_target_": f"{Ahead.__module__}.{Ahead.__qualname__}", "_partial_": True}
    with pytest.raises(ConfigError, match="asks 2 batches ahead"):  # though its turn comes later
        make_searcher(settings, box(2))


def test_how_often_a_race_looks_makes_another_search(pico_suite: Any, problem: Problem, tmp_path: Path) -> None:
    found = [
        search_identity(problem, plain(compose(*sources_of(pico_suite, tmp_path), *given)))
        for given in ([], ["racing.looks=5"], ["racing.alpha=0.1"], ["racing.alpha=0.1", "racing.looks=5"])
    ]
    assert found[0] == found[1]
    assert "racing" not in found[0]
    assert found[1] != found[2] != found[3]
