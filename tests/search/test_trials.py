"""The trial log: what was written comes back, other searches, other machines, numbers that are not finite, budgets."""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.common.errors import LogError, ReplayMismatch
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget, fixed
from evomerge.searchers.base import Searcher
from evomerge.trials import Batch, Trial
from tests.kit.helpers import box
from tests.kit.searching import SEARCHERS
from tests.processes.small_search import NAMES, Evaluator, play

A, B = {"cpu": "A", "numpy": "2"}, {"cpu": "B", "numpy": "2"}
IDENTITY = {"base": "sha", "seed": 3}


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the log goes; without waiting for the disk, since thousands of crashes are simulated here."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "run" / "trials.jsonl"


def small(path: Path, name: str = "random", trials: int = 20) -> bytes:
    """Play a search to its end, or resume it, and return what its log holds."""
    play(path, name, trials, machine=A)
    return path.read_bytes()


def seal(records: Sequence[Mapping[str, Any]]) -> bytes:
    """Write records with checksums that are right, as somebody would who falsifies a log with care."""
    checksum, lines = 0, []
    for record in records:
        body = json.dumps(record, separators=(",", ":"))[:-1].encode()
        checksum = zlib.crc32(body, checksum)
        lines.append(body + b',"crc":"%08x"}\n' % checksum)
    return b"".join(lines)


def refused(path: Path, data: bytes, error: type[LogError] = LogError, machine: Mapping[str, Any] = A) -> str:
    """Assert that a search will not go on with this log and leaves it as it is; return what it says."""
    path.write_bytes(data)
    with pytest.raises(error) as caught:
        play(path, "random", 40, machine=machine)
    assert path.read_bytes() == data
    return str(caught.value)


numbers = st.floats(allow_nan=False, allow_infinity=False)
tables = st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), st.lists(numbers, max_size=3)))
trials = st.builds(
    Trial,
    batch=st.just(0),
    index=st.just(0),
    status=st.sampled_from(["ok", "failed", "censored"]),
    values=st.none() | st.lists(numbers, min_size=1, max_size=2).map(tuple),
    violations=st.lists(numbers, max_size=2).map(tuple),
    scores=st.dictionaries(st.text(max_size=5), st.dictionaries(st.text(max_size=5), numbers)),
    items=st.dictionaries(st.text(max_size=5), st.lists(st.text(max_size=5), max_size=3)),
    results=tables,
    error=st.none() | st.text() | st.just('","crc":"00000000"}\n{'),
    gradient=st.none() | st.lists(numbers, max_size=3),
    weights=st.dictionaries(st.text(max_size=5), st.lists(st.integers(1, 99), max_size=3), max_size=2),
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(trial=trials, points=st.lists(st.lists(numbers, min_size=2, max_size=2), min_size=1, max_size=3))
def test_what_was_written_comes_back_to_the_last_bit(path: Path, trial: Trial, points: list[list[float]]) -> None:
    path.unlink(missing_ok=True)
    batch = Batch(0, np.array(points))
    with TrialLog(path, IDENTITY, A) as log:
        first = log.begin(log.ask(batch))
        log.append(trial)
        assert first.trials[0] == trial
        spent = log.trials, log.items
    data = path.read_bytes()
    with TrialLog(path, IDENTITY, A) as log:
        again = log.begin(log.ask(batch))
        assert again.trials[0] == trial
        assert again.points.tobytes() == batch.points.tobytes()
        assert again.missing == list(range(1, len(points)))
        assert (log.trials, log.items) == spent == (1, trial.spent)
    assert path.read_bytes() == data


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(share=st.floats(0, 1))
@pytest.mark.parametrize("name", NAMES)
def test_a_crash_anywhere_for_every_searcher(path: Path, name: str, share: float) -> None:
    path.unlink(missing_ok=True)
    whole = small(path, name)
    path.write_bytes(whole[: round(share * len(whole))])
    assert small(path, name) == whole


def test_falsified_logs_are_refused(path: Path) -> None:
    small(path)
    records = list(read_log(path))
    assert "does not begin with a header" in refused(path, seal(records[1:]))
    assert "`trial` where `ask` was expected" in refused(path, seal([records[0], records[-1]]))
    assert "has format 99" in refused(path, seal([{**records[0], "format": 99}]))


@pytest.mark.parametrize("torn", [b"", b'{"kind":"tri'], ids=["whole", "torn"])
def test_another_search_is_refused(path: Path, torn: bytes) -> None:
    identity = {**IDENTITY, "items": {"a": "1" * 300}}
    with TrialLog(path, identity, A) as log:
        log.begin(log.ask(Batch(0, np.zeros((1, 2)))))
    data = path.read_bytes() + torn
    path.write_bytes(data)
    other = {"base": "sha", "seed": 4, "items": {"a": "2" * 300}, "start": "1/K"}
    with pytest.raises(LogError, match="belongs to another search") as caught, TrialLog(path, other, A):
        pass
    message = str(caught.value)
    assert "seed was 3, is 4" in message
    assert 'start was null, is "1/K"' in message
    assert 'items was {"a": "111' in message
    assert "base" not in message.partition("another search")[2]
    assert "hydra.run.dir=" in message
    assert len(message) < 1000
    assert path.read_bytes() == data
    with TrialLog(path, identity, A):  # the refusal gave the lock back
        pass


class Moved:
    """A searcher as it is on another machine: every coordinate that it asks for lies a little beside."""

    def __init__(self, searcher: Searcher, by: float) -> None:
        self._searcher, self._by = searcher, by
        self.needs, self.stop, self.incumbents = searcher.needs, searcher.stop, searcher.incumbents

    def ask(self) -> Batch:
        batch = self._searcher.ask()
        return Batch(batch.index, batch.points + self._by)

    def tell(self, batch: Batch) -> None:
        self._searcher.tell(batch)


def moved(path: Path, by: float, budget: int, machine: Mapping[str, Any], evaluate: Any = None) -> bytes:
    with TrialLog(path, {"searcher": "cmaes"}, machine) as log:
        search(Moved(SEARCHERS["cmaes"](box(4), 3), by), evaluate or Evaluator(), log, Budget(budget))
    return path.read_bytes()


def shifted(records: list[dict[str, Any]], ask: int, change: Callable[[float], float]) -> bytes:
    """The log with coordinate 2 of point 1 of one ask changed, and sealed."""
    copies = json.loads(json.dumps(records))
    line = [record for record in copies if record["kind"] == "ask"][ask]
    line["points"][1][2] = change(line["points"][1][2])
    return seal(copies)


def test_a_drift_of_one_ulp_on_the_same_machine_is_an_error(path: Path) -> None:
    small(path)
    records = list(read_log(path))
    for direction in (-math.inf, math.inf):
        message = refused(path, shifted(records, 2, lambda x: math.nextafter(x, direction)), ReplayMismatch)  # noqa: B023
        assert "Coordinate 2 of point 1 in generation 2 of" in message
        assert "np.float64" not in message
    records[1]["points"] = [point[:3] for point in records[1]["points"]]
    assert "asks for (8, 4) numbers in generation 0" in refused(path, seal(records), ReplayMismatch)


def test_a_small_drift_on_another_machine_is_a_warning(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    moved(path, 0.0, 20, A)  # the third generation is not complete
    before, seen = path.read_bytes(), []

    def evaluate(batch: Batch, missing: Sequence[int]) -> Any:
        seen.append((batch.index, batch.points.copy()))
        return Evaluator()(batch, missing)

    after = moved(path, 1e-7, 32, B, evaluate)
    assert "another kind of machine (cpu differ from the log)" in caplog.text
    assert "Re-asked points of generation 0 differ from the logged ones by up to 1.0e-07." in caplog.text
    assert after.startswith(before)
    records = [json.loads(line) for line in after.splitlines()]
    headers = [i for i, record in enumerate(records) if record["kind"] == "header"]
    assert headers == [0, before.count(b"\n")]
    assert [records[i]["fingerprint"] for i in headers] == [A, B]
    assert records[headers[1] - 1]["kind"] == "trial"  # it moved within a generation
    asked = {record["batch"]: record["points"] for record in records if record["kind"] == "ask"}
    for index, points in seen:  # candidates are built from the logged points
        assert points.tolist() == asked[index]
    assert moved(path, 1e-7, 32, B) == after
    assert moved(path, 1e-7, 24, B) == after


def test_a_large_drift_on_another_machine_is_an_error(path: Path) -> None:
    before = moved(path, 0.0, 20, A)
    with pytest.raises(ReplayMismatch, match=r"Coordinate \d of point \d in generation 0"):
        moved(path, 2e-6, 40, B)
    assert path.read_bytes() == before
    assert moved(path, 0.0, 24, A).startswith(before)  # and the first machine still goes on


def test_a_log_that_moved_there_and_back_goes_on(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From A to B and back: what A asked is held to the bit, what B asked to the tolerance."""
    for by, budget, machine in ((0.0, 10, A), (1e-8, 26, B), (0.0, 42, A)):
        data = moved(path, by, budget, machine)
    records = list(read_log(path))
    assert [record["fingerprint"] for record in records if record["kind"] == "header"] == [A, B, A]
    caplog.clear()
    assert moved(path, 0.0, 42, A) == data
    assert "another kind" not in caplog.text
    batches = [record["batch"] for record in records if record["kind"] == "ask"]
    moves = [i for i, record in enumerate(records) if record["kind"] == "header"]
    on_b = [record["batch"] for record in records[moves[1] : moves[2]] if record["kind"] == "ask"]
    assert 0 < len(on_b) < len(batches)
    for batch in on_b:
        assert f"Re-asked points of generation {batch} differ" in caplog.text
    assert caplog.text.count("Re-asked points") == len(on_b)
    drifted = shifted(records, batches[-1], lambda x: math.nextafter(x, 2.0))
    path.write_bytes(drifted)
    with pytest.raises(ReplayMismatch, match=f"generation {batches[-1]}"):
        moved(path, 0.0, 42, A)
    assert moved(path, 1e-8, 60, B).startswith(drifted)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, np.float64("nan")], ids=str)
def test_what_is_not_finite_never_reaches_the_file(path: Path, bad: float) -> None:
    """And what the searcher is told is what a replay will tell it."""
    batch = Batch(0, np.zeros((3, 2)))
    whole = {"t": {"m": [bad, 1.0]}}
    with TrialLog(path, IDENTITY, A) as log:
        told = log.begin(log.ask(batch))
        log.append(Trial(0, 0, "ok", (bad,)))
        log.append(Trial(0, 1, "ok", (1.0,), (bad,), {"t": {"m": bad}}, {"t": ["a", "b"]}, whole))
        log.append(Trial(0, 2, "failed", None, error="RuntimeError: no luck"))

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} in the log")

    lines = [json.loads(line, parse_constant=refuse) for line in path.read_text().splitlines()]
    assert lines[2]["values"] is None
    assert lines[2]["status"] == "failed"
    assert "not finite" in lines[2]["error"]
    assert lines[3]["status"] == "ok"
    assert lines[3]["results"] == {"t": {"m": [None, 1.0]}}
    with TrialLog(path, IDENTITY, A) as log:
        again = log.begin(log.ask(batch))
    assert again.trials == told.trials
    assert told.values.tolist() == [-math.inf, 1.0, -math.inf]


def test_a_trial_of_another_batch_is_refused(path: Path) -> None:
    with TrialLog(path, IDENTITY, A) as log:
        with pytest.raises(LogError, match="trial of batch 0 came while batch None"):
            log.append(Trial(0, 0, "ok", (1.0,)))
        log.begin(log.ask(Batch(0, np.zeros((2, 2)))))
        with pytest.raises(LogError, match="trial of batch 1 came while batch 0"):
            log.append(Trial(1, 0, "ok", (1.0,)))


@pytest.mark.parametrize("name", [*NAMES, "random-lag", "warm-hybrid-lag"])
def test_a_budget_is_exact_and_can_be_raised(path: Path, name: str) -> None:
    whole = small(path, name, 30)
    scored = min(30, whole.count(b'"trial"'))
    path.unlink()
    for budget in (1, 2, 11, 12, 23, 30):
        data = small(path, name, budget)
        assert data.count(b'"kind":"trial"') == min(budget, scored)
        assert whole.startswith(data)
        assert small(path, name, budget) == data
    assert data == whole
    for lower in (29, 10, 1):  # harmless
        assert small(path, name, lower) == whole


def test_a_last_batch_that_stays_incomplete_is_never_told(path: Path) -> None:
    small(path, trials=19)  # batches of 8
    kinds = [record["kind"] for record in read_log(path)]
    assert kinds.count("ask") == 3
    assert kinds.count("tell") == 2
    assert kinds[-3:] == ["trial"] * 3


@pytest.mark.parametrize(("items", "scored"), [(2, 1), (3, 1), (16, 8), (17, 8), (41, 20), (1000, 24)])
def test_a_budget_of_items_is_exact(path: Path, items: int, scored: int) -> None:
    """A candidate of the small search is scored on two items, a failed one too."""
    for _ in range(2):
        with TrialLog(path, IDENTITY, A) as log:
            budget = Budget(24, items, fixed(2))
            search(SEARCHERS["random"](box(4), 3), Evaluator(), log, budget)
            assert log.trials == scored
            assert log.items == 2 * scored <= items
