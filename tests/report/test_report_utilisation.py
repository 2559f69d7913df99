"""Where the time of workers went: every second of every worker is of one kind, and the page says what was lost."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.events import Event
from evomerge.report import write_report
from evomerge.report.lanes import MOST_LANES, where_time_went
from evomerge.report.utilisation import AFTER, Utilisation
from evomerge.runs.worker_log import Session
from tests.kit.pages import read
from tests.kit.reports import write_run, write_workers

WINDOW = "from the first ask to the last tell"
EVENTS = st.builds(
    Event,
    kind=st.sampled_from(sorted(AFTER)),
    worker=st.integers(0, 3),
    at=st.floats(100, 200),
    merge=st.floats(0, 50),
    forward=st.floats(0, 50),
)
SESSIONS = st.builds(
    Session,
    at=st.just(90.0),
    workers=st.integers(1, 4),
    asks=st.none() | st.floats(90, 150),
    told=st.none() | st.floats(150, 250),
    events=st.lists(EVENTS, max_size=30),
)


@settings(max_examples=30)
@given(st.lists(SESSIONS, max_size=3))
def test_every_second_of_a_worker_is_of_one_kind(sessions: list[Session]) -> None:
    found = Utilisation(sessions)
    assert sum(found.seconds.values()) == pytest.approx(found.capacity)
    assert min(found.seconds.values()) >= 0
    if found.wall:
        for bins in (1, 7):
            for kind, seconds in found.seconds.items():
                each = sum(found.shares(worker, kind, bins).mean() for worker in found.workers)
                assert each * found.wall == pytest.approx(seconds, abs=1e-6)
        assert found.over_time(9).max() <= 1 + 1e-9
        where_time_went(sessions, WINDOW)


def unit(worker: int, begun: float, ended: float, merge: float = 0.0, forward: float = 0.0) -> list[Event]:
    return [Event("begun", worker, begun), Event("ended", worker, ended, merge=merge, forward=forward)]


def test_utilisation_is_time_in_the_fitness_over_workers_times_wall_time() -> None:
    events = [
        Event("started", 0, 1.0),  # before the first ask: nobody waits for it
        Event("started", 1, 4.0),
        *unit(0, 2.0, 6.0, merge=0.5, forward=3.0),
        *unit(1, 4.0, 8.0, forward=4.0),
        *unit(0, 6.0, 9.0),
        Event("begun", 1, 8.0),
        Event("lost", 1, 10.0, why="killed"),
        Event("started", 1, 11.0),
        *unit(0, 10.0, 15.0, forward=5.0),  # after the last tell
    ]
    found = Utilisation([Session(0.0, 2, asks=2.0, told=12.0, events=sorted(events, key=lambda event: event.at))])
    assert (found.wall, found.capacity, found.units, found.started) == (10.0, 20.0, 3, 4.0)
    assert found.seconds == pytest.approx(
        {"forward": 9.0, "merge": 0.5, "other": 3.5, "setup": 3.0, "lost": 2.0, "idle": 2.0}, abs=1e-9
    )
    assert found.share == 0.45
    assert [(one.worker, one.kind, one.at, one.why) for one in found.troubles] == [(1, "lost", 8.0, "killed")]
    np.testing.assert_allclose(found.over_time(5), [0.25, 1, 0.5, 0, 0.5])


def test_a_unit_given_in_advance_does_not_hide_the_one_before_it() -> None:
    events = [Event("started", 0, 0.0), Event("begun", 0, 0.0), Event("begun", 0, 0.1)]
    events += [Event("ended", 0, end, forward=5.0) for end in (5.0, 10.0)]
    assert Utilisation([Session(0.0, 1, 0.0, 10.0, events)]).share == 1.0


def test_calls_of_a_run_follow_each_other() -> None:
    one = Session(0.0, 1, 0.0, 10.0, [Event("started", 0, 0.0), *unit(0, 0.0, 10.0, forward=10.0)])
    two = Session(
        1e6, 3, 1e6, None, [Event("started", 0, 1e6), Event("retired", 2, 1e6 + 5), Event("begun", 0, 1e6 + 10)]
    )
    found = Utilisation([one, Session(50.0, 2), replace(two, asks=None), two])
    assert (found.wall, found.capacity, found.calls) == (20.0, 40.0, 2)
    np.testing.assert_allclose(found.over_time(2), [1, 0])
    assert found.of(2) == pytest.approx({"forward": 0, "merge": 0, "other": 0, "setup": 0.5, "lost": 0.5, "idle": 0})


def test_the_page_of_a_run_with_workers(tmp_path: Path) -> None:
    run = write_workers(write_run(tmp_path / "run"), why="it was killed by <signal> 9.")
    page = read(write_report(run))
    assert "Utilisation is 60.0%: so much of the time of 3 workers, 10.0 s from the first ask" in page.text
    assert "Worker 1 was retired after 8.0 s: it was killed by <signal> 9." in page.text
    assert "fitness 18.0 s (60.0%)" in page.text
    assert "12 units were done. A worker took up to 0.0 s to start. Choosing the winner and scoring" in page.text
    lanes = [value for tag, name, value in page.attributes if tag == "svg" and name == "aria-label"]
    assert "worker 1: fitness 60.0%, merging 20.0%, lost 20.0%" in lanes
    assert ("path", "class", "lost") in page.attributes
    assert "a minute. Choosing" not in page.text  # seconds of candidates say nothing where several are scored at once


def test_of_many_workers_the_least_used_are_drawn() -> None:
    events = [event for worker in range(1, 50) for event in unit(worker, 0.0, worker / 5, forward=worker / 5)]
    found = where_time_went(
        [Session(0.0, 50, 0.0, 10.0, [Event("started", w, 0.0) for w in range(50)] + events)], WINDOW
    )
    assert found is not None
    assert [lane.name for lane in found.lanes] == [f"worker {worker}" for worker in range(MOST_LANES)]
    assert "18 more" in found.left_out


def test_no_workers_no_section() -> None:
    assert where_time_went([], WINDOW) is None
    assert where_time_went([Session(1.0, 2, 1.0, 5.0)], WINDOW) is None
