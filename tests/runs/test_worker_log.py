"""What workers did is written as it happens, by whoever goes on with a run, and read back whatever a kill left."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.events import Event
from evomerge.runs.worker_log import WORKERS, WorkerLog, read_sessions

EVENTS = [
    Event("started", 0, 10.5),
    Event("begun", 0, 11.0),
    Event("ended", 0, 12.25, merge=0.25, forward=0.5, items=30),
    Event("lost", 1, 13.0, why="it was killed by signal 9 – “no” memory"),
    Event("retired", 1, 14.0, why="it died three times"),
    Event("stopped", 0, 15.0),
]


def write(path: Path, workers: int = 2) -> None:
    log = WorkerLog(path, workers)
    with log.searching():
        for event in EVENTS:
            log(event)


def test_each_call_of_a_search_is_a_session(tmp_path: Path) -> None:
    path = tmp_path / WORKERS
    write(path)
    write(path, workers=3)
    first, second = read_sessions(path)
    assert first.events == second.events == EVENTS
    assert (first.workers, second.workers) == (2, 3)
    for session in (first, second):
        assert session.asks is not None
        assert session.told is not None
        assert session.at <= session.asks <= session.told
    assert first.told is not None
    assert first.told <= second.at


def test_what_is_shown_is_told_first(tmp_path: Path) -> None:
    shown: list[Event] = []
    log = WorkerLog(tmp_path / WORKERS, 1, shown.append)
    log(EVENTS[0])
    assert shown == [EVENTS[0]]


@settings(max_examples=30)
@given(cut=st.integers(min_value=1, max_value=400))
def test_a_run_that_was_killed_goes_on_below_a_line_that_is_cut_off(
    cut: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("run") / WORKERS
    write(path)
    path.write_bytes(path.read_bytes()[:-cut])
    write(path)
    *before, last = read_sessions(path)
    assert last.events == EVENTS
    for session in before:
        assert session.events == EVENTS[: len(session.events)]


def test_what_is_no_event_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / WORKERS
    write(path)
    odd = [
        "7",
        '{"kind": "begun"',
        '{"kind": "begun", "worker": 0}',
        '{"kind": "begun", "worker": 0, "at": NaN}',
        '{"kind": "ended", "worker": 0, "at": 3, "forward": "long"}',
        '{"kind": "session", "at": 3}',
    ]
    path.write_text("".join(f"{line}\n" for line in [*odd, path.read_text(), *odd]))
    (session,) = read_sessions(path)
    assert session.events == EVENTS
    assert read_sessions(tmp_path / "none") == []


def test_a_file_that_cannot_be_written_is_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown: list[Event] = []
    (tmp_path / "file").touch()
    log = WorkerLog(tmp_path / "file" / WORKERS, 1, shown.append)
    with log.searching():
        log(EVENTS[0])
    assert [record.getMessage() for record in caplog.records] == [
        "workers.jsonl cannot be written (File exists): the search goes on, and its report will not "
        "show what the workers did."
    ]
    assert shown == [EVENTS[0]]


def test_without_workers_nothing_is_written(tmp_path: Path) -> None:
    with WorkerLog(tmp_path / WORKERS, 0).searching():
        pass
    assert list(tmp_path.iterdir()) == []


def test_a_line_holds_what_is_not_usual(tmp_path: Path) -> None:
    path = tmp_path / WORKERS
    write(path)
    rows = [json.loads(line) for line in path.read_text().splitlines() if line]
    assert {"kind": "begun", "worker": 0, "at": 11.0} in rows
    assert {"kind": "ended", "worker": 0, "at": 12.25, "merge": 0.25, "forward": 0.5, "items": 30} in rows
