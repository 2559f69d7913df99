"""A pool: whatever happens to workers, each unit is answered once, with what a serial scorer says of it."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.common.errors import CheckpointError, EvomergeError, LiveModelError, NotFinite
from evomerge.common.events import Event
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Outcome
from evomerge.search.evaluators import pool as evaluators_pool
from evomerge.search.evaluators import processes
from evomerge.search.evaluators.kept import Kept
from evomerge.search.evaluators.pool import ATTEMPTS, DEATHS, Pool
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.wire import (
    Remote,
    error_message,
    error_of,
    packed,
    scored_message,
    scored_of,
    unit_message,
    unit_of,
    unpacked,
)


@pytest.fixture(autouse=True)
def warm(monkeypatch):
    """Workers have no more time for their first unit than for others."""
    monkeypatch.setattr(evaluators_pool, "WARMING", 0.0)


READY: dict[str, Any] = {"kind": "ready", "circumstances": {"fingerprint": {"machine": "one"}}}


def outcome_of(unit: Unit) -> Outcome:
    """What an item is worth under a point: something that no other pair has."""
    assert isinstance(unit.model, np.ndarray)
    return Outcome(
        unit.ids,
        {task: {"m": np.array([unit.model.sum() + int(item) / 7 for item in ids])} for task, ids in unit.ids.items()},
    )


@dataclass
class Crew:
    """Workers without processes: what they are sent is answered in some order, unless a fault is due.

    Attributes:
        size: how many.
        faults: for each message in turn, what happens: nothing, `dies` with it, `dies after` the answer is on its way,
            `twice`, `late` (the answer comes once the worker was started anew), `hangs`,
            `starves` (it has not enough memory).
        order: which of the messages that are due comes next, by numbers that are taken in turn.
        fatal: an item with which every worker dies.
        ready: how often a worker says that it is ready.
        raises: errors by item.
        outcome: what a unit is worth.
    """

    size: int
    faults: list[str] = field(default_factory=list)
    order: list[int] = field(default_factory=list)
    fatal: str = ""
    raises: dict[str, Exception] = field(default_factory=dict)
    outcome: Callable[[Unit], Outcome] = outcome_of
    due: deque[tuple[int, Any]] = field(default_factory=deque)
    started: list[int] = field(default_factory=list)
    sent: list[tuple[int, Unit]] = field(default_factory=list)
    killed: list[int] = field(default_factory=list)
    stillborn: tuple[int, ...] = ()
    ready: int = 1
    late: list[tuple[int, Any]] = field(default_factory=list)
    gone: set[int] = field(default_factory=set)

    def start(self, worker: int) -> None:
        self.started.append(worker)
        self.gone.discard(worker)
        self.due += [(worker, None if worker in self.stillborn else READY)] * self.ready
        self.due += [each for each in self.late if each[0] == worker]
        self.late = [each for each in self.late if each[0] != worker]

    def send(self, worker: int, message: Any) -> None:
        if worker in self.gone:  # a message to nobody
            return
        message = unpacked(packed(message))
        unit, fault = unit_of(message), self.faults.pop(0) if self.faults else ""
        self.sent.append((worker, unit))
        items = {item for ids in unit.ids.values() for item in ids}
        error = next((self.raises[item] for item in self.raises if item in items), None)
        if fault == "starves":
            error = MemoryError()
        scored = Scored(error or self.outcome(unit), 0.1, 0.2, 0.3)
        answer = unpacked(packed(scored_message(message["number"], scored)))
        if self.fatal in items or fault == "dies":
            self.due.append((worker, None))
        elif fault == "late":
            self.late.append((worker, answer))
            self.due.append((worker, None))
        elif fault != "hangs":
            self.due += [(worker, answer)] * (2 if fault == "twice" else 1)
            self.due += [(worker, None)] * (fault == "dies after")
        if self.due and self.due[-1] == (worker, None):
            self.gone.add(worker)

    def receive(self, seconds: float | None) -> list[tuple[int, Any]]:
        if not self.due:
            assert seconds is not None, "a pool waits for ever"
            time.sleep(seconds)
            return []
        ahead = self.order.pop(0) % len(self.due) if self.order else 0
        first = next(each for each in self.due if each[0] == self.due[ahead][0])  # a worker's messages keep their order
        self.due.remove(first)
        return [first]

    def kill(self, worker: int) -> None:
        self.killed.append(worker)
        self.due = deque([each for each in self.due if each[0] != worker])
        self.due.append((worker, None))

    def last_words(self, worker: int) -> str:
        return "killed by SIGKILL"

    def close(self) -> None:
        self.due.clear()


def units_of(candidates: int, blocks: int) -> list[Unit]:
    """Units of candidates in a row, each of its own items."""
    points = [np.array([float(i), 0.5]) for i in range(candidates)]
    return [
        Unit(point, {"a": [str(2 * block)], "b": [str(2 * block + 1)]}) for point in points for block in range(blocks)
    ]


def plain(scored: Scored) -> Any:
    """What came of a unit, to be compared."""
    if isinstance(scored.outcome, Exception):
        return type(scored.outcome).__name__, str(scored.outcome)
    return scored.outcome.items, {t: {m: v.tolist() for m, v in r.items()} for t, r in scored.outcome.results.items()}


FAULTS = st.sampled_from(["", "", "", "dies", "dies after", "twice", "late", "starves"])


@given(
    st.integers(1, 4),
    st.integers(1, 4),
    st.integers(1, 4),
    st.lists(FAULTS, max_size=8),
    st.lists(st.integers(0, 9), max_size=40),
)
def test_each_unit_is_answered_once_whatever_happens_to_workers(workers, candidates, blocks, faults, order):
    """Workers die twice at most here, so none is retired and no unit is given up."""
    deadly = [i for i, fault in enumerate(faults) if fault in ("dies", "dies after", "late", "starves")]
    faults = ["" if i in deadly[ATTEMPTS - 1 :] else fault for i, fault in enumerate(faults)]
    units = units_of(candidates, blocks)
    with Pool(Crew(workers, list(faults), list(order))) as pool:
        answers = list(pool(units))
    assert sorted(position for position, _ in answers) == list(range(len(units)))
    for position, scored in answers:
        assert plain(scored) == plain(Scored(outcome_of(units[position])))


def test_a_worker_that_says_twice_that_it_is_ready_is_given_one_unit():
    units, crew = units_of(3, 2), Crew(2, ready=2)
    with Pool(crew) as pool:
        assert len(list(pool(units))) == len(crew.sent) == len(units)


def test_a_candidate_that_ends_every_worker_fails_and_the_others_do_not():
    units = units_of(3, 2)
    units[2] = Unit(units[2].model, {"a": ["666"]})
    crew = Crew(2, fatal="666")
    with Pool(crew) as pool:
        answers = dict(pool(units))
    assert plain(answers[2]) == ("WorkersLost", f"{ATTEMPTS} workers died while they scored it")
    assert [plain(answers[i]) for i in (0, 1, 4, 5)] == [plain(Scored(outcome_of(units[i]))) for i in (0, 1, 4, 5)]
    assert len([unit for _, unit in crew.sent if "666" in unit.ids["a"]]) == ATTEMPTS


def test_a_candidate_for_which_no_worker_has_enough_memory_fails_with_the_error_of_a_serial_scorer(caplog):
    """Each that lacked it was started anew, and nobody is retired for it; what is lacked once costs nothing."""
    units, crew = units_of(3, 2), Crew(1, raises={"666": MemoryError("one item is too much")})
    units[2] = Unit(units[2].model, {"a": ["666"]})
    with Pool(crew) as pool:
        answers = dict(pool(units))
    assert {plain(answers[i]) for i in (2, 3)} == {("MemoryError", "one item is too much")}
    assert [plain(answers[i]) for i in (0, 1, 4, 5)] == [plain(Scored(outcome_of(units[i]))) for i in (0, 1, 4, 5)]
    assert len([unit for _, unit in crew.sent if "666" in unit.ids["a"]]) == ATTEMPTS
    assert (crew.killed, crew.started) == ([0] * (ATTEMPTS - 1), [0] * ATTEMPTS)
    assert "Worker 0 is lost (it has not enough memory) and started again; its unit is done again" in caplog.text


def test_a_worker_that_keeps_dying_is_retired_and_the_others_go_on(caplog):
    told: list[Event] = []
    units, crew = units_of(4, 2), Crew(2, stillborn=(1,))
    with Pool(crew, watch=told.append) as pool:
        assert len(list(pool(units))) == len(units)
    assert crew.started.count(1) == DEATHS
    assert [event.worker for event in told if event.kind == "retired"] == [1]
    assert "is not started again" in caplog.text


def test_without_a_worker_there_is_an_error_that_says_what_to_do():
    with Pool(Crew(2, stillborn=(0, 1))) as pool, pytest.raises(EvomergeError, match="No worker is left"):
        pool.wait()


def test_a_unit_that_hangs_fails_like_one_in_this_process_and_its_worker_is_started_anew():
    units, crew = units_of(3, 1), Crew(1, ["", "hangs"])
    with Pool(crew, TimeLimit(0.05)) as pool:
        answers = dict(pool(units))
    assert plain(answers[1]) == ("TimeoutError", "took longer than time_limit=0.05 s")
    assert (crew.killed, crew.started) == ([0], [0, 0])
    assert [plain(answers[i]) for i in (0, 2)] == [plain(Scored(outcome_of(units[i]))) for i in (0, 2)]


def test_more_items_may_take_longer():
    unit = Unit(np.zeros(2), {"a": [str(i) for i in range(30)]})
    crew = Crew(1, ["hangs"])
    with Pool(crew, TimeLimit(0.02), candidate=10) as pool:
        started = time.monotonic()
        ((_, scored),) = pool([unit])
    assert time.monotonic() - started >= 0.06
    assert plain(scored) == ("TimeoutError", "took longer than time_limit=0.02 s, times 3.0 for more items")


def test_the_first_unit_of_a_worker_may_take_longer(monkeypatch):
    """Also that of one that was started anew."""
    monkeypatch.setattr(evaluators_pool, "WARMING", 0.1)
    crew = Crew(1, ["hangs", "hangs"])
    with Pool(crew, TimeLimit(0.01)) as pool:
        started = time.monotonic()
        answers = dict(pool(units_of(3, 1)))
    assert time.monotonic() - started >= 0.22
    assert [type(answers[i].outcome).__name__ for i in range(3)] == ["TimeoutError", "TimeoutError", "Outcome"]


def test_later_units_of_a_candidate_that_failed_are_not_scored():
    units, crew = units_of(2, 4), Crew(1, raises={"2": NotFinite("no number")})
    with Pool(crew) as pool:
        answers = dict(pool(units))
    assert {plain(answers[i]) for i in (1, 2, 3, 5, 6, 7)} == {("NotFinite", "no number")}
    assert len(crew.sent) == 4


def test_a_model_that_cannot_be_put_back_ends_the_search():
    with Pool(Crew(2, raises={"2": LiveModelError("broken")})) as pool, pytest.raises(LiveModelError, match="broken"):
        list(pool(units_of(2, 2)))


def test_a_worker_that_refuses_says_why():
    crew = Crew(1)
    with Pool(crew) as pool:
        crew.due.clear()
        crew.due.append((0, {"kind": "refused", "error": error_message(CheckpointError("other files"))}))
        with pytest.raises(CheckpointError, match="other files"):
            pool.wait()


def test_a_worker_that_refuses_once_others_serve_costs_itself(caplog):
    """Such as one that is started anew when its files are gone."""
    crew = Crew(2)
    with Pool(crew) as pool:
        crew.due.clear()
        crew.due += [(0, READY), (1, {"kind": "refused", "error": error_message(CheckpointError("other files"))})]
        assert len(list(pool(units_of(3, 2)))) == 6
    assert crew.killed == [1]
    assert "Worker 1 is lost (other files)" in caplog.text


def test_what_workers_warn_of_is_told_once(caplog):
    crew = Crew(2)
    send = crew.send

    def warning(worker, message):
        send(worker, message)
        crew.due[-1][1]["warnings"] = ["batches were halved"]

    crew.send = warning
    with Pool(crew) as pool:
        list(pool(units_of(3, 2)))
    assert caplog.text.count("A worker says: batches were halved") == 1


def test_workers_keep_their_candidate_and_help_with_the_longest():
    """Of 12 candidates on 8 workers, each of 10 blocks, 8 are done by one worker each and 4 by two."""
    crew = Crew(8)
    with Pool(crew) as pool:
        list(pool(units_of(12, 10)))
    changes, last = 0, dict[int, float]()
    for worker, unit in crew.sent:
        assert isinstance(unit.model, np.ndarray)
        changes += last.get(worker) != unit.model[0]
        last[worker] = unit.model[0]
    assert changes <= 17


def test_two_calls_are_answered_side_by_side():
    """As with `searcher.lag`: work on the second begins before the first is taken."""
    crew = Crew(3)
    with Pool(crew) as pool:
        pool.wait()
        first, second = pool(units_of(1, 2)), pool(units_of(2, 2))
        assert len(dict(second)) == 4
        assert len(dict(first)) == 2


def test_what_was_asked_ahead_and_nobody_takes_is_not_scored(tmp_path):
    """As where the hours of a search with `searcher.lag` end; what a worker has begun it ends."""
    path = tmp_path / "units.jsonl"
    with Pool(crew := Crew(1)) as pool:
        pool.wait()
        kept = Kept(pool, path, "a search")
        first, ahead, beyond = kept(units_of(1, 2)), kept(units_of(3, 2)), kept([])
        assert len(dict(first)) == 2
        begun = len(crew.sent)
        pool.forget()
        assert len(dict(pool(units_of(1, 2)))) == 2
        assert len(crew.sent) == begun + 2
    del ahead, beyond


def test_a_machine_of_another_kind_is_told(caplog):
    crew = Crew(2)
    with Pool(crew) as pool:
        crew.due.clear()
        other = {**READY, "circumstances": {"fingerprint": {"machine": "two"}}}
        crew.due += [(0, READY), (1, other)]
        list(pool(units_of(4, 4)))
    assert "Worker 1 runs on another kind of machine (machine differ)" in caplog.text


@given(st.lists(st.floats(), min_size=1, max_size=5), st.booleans(), st.booleans())
def test_messages_hold_every_bit(values, written, first):
    unit = Unit(np.array(values), {"a": ["é", "2"]}, "report", written, first)
    back = unit_of(unpacked(packed(unit_message(3, unit))))
    assert isinstance(back.model, np.ndarray)
    assert back.model.tobytes() == unit.model.tobytes() or np.isnan(values).any()
    assert (back.ids, back.split, back.written, back.first) == (unit.ids, "report", written, first)
    scored = Scored(Outcome({"a": ["é"]}, {"a": {"m": np.array(values)}}, 0.25), 0.1, 0.2, 0.3)
    again = scored_of(unpacked(packed(scored_message(3, scored))))
    assert np.array_equal(again.outcome.results["a"]["m"], values, equal_nan=True)
    assert (again.outcome.forward_seconds, again.merge, again.forward, again.total) == (0.25, 0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    "error", [ValueError("one"), TimeoutError("late"), NotFinite("no number"), MemoryError("none"), KeyError("a")]
)
def test_an_error_keeps_its_name_and_text(error):
    back = error_of(unpacked(packed(error_message(error))))
    assert (type(back).__name__, str(back)) == (type(error).__name__, str(error))
    assert isinstance(back, Remote | EvomergeError | TimeoutError | MemoryError)


def test_units_that_were_finished_are_not_scored_again(tmp_path):
    units, path = units_of(3, 2), tmp_path / "units.jsonl"
    crew = Crew(1)
    with Pool(crew) as pool:
        answers = Kept(pool, path, "this search")(units)
        first = dict(next(answers) for _ in range(3))
    del answers  # killed
    with path.open("a") as file:
        file.write('{"key": "cut o')
    crew = Crew(1)
    with Pool(crew) as pool:
        kept = Kept(pool, path, "this search")
        list(kept([]))  # a batch that the log holds
        again = dict(kept(units))
    assert len(crew.sent) == 3
    assert {i: plain(scored) for i, scored in again.items()} == {
        i: plain(Scored(outcome_of(units[i]))) for i in range(6)
    }
    assert {i: plain(scored) for i, scored in first.items()}.items() <= {i: plain(s) for i, s in again.items()}.items()
    assert not path.exists()  # all is taken
    with Pool(Crew(1)) as pool:
        kept = Kept(pool, path, "with a lag")
        answers, _ = kept(units), kept([])
        assert len(dict(answers)) == 6
    assert not path.exists()
    with Pool(crew := Crew(1)) as pool:
        list(Kept(pool, path, "another search")(units))
    assert len(crew.sent) == 6


def test_what_has_ended_ahead_of_what_is_taken_is_kept_too(tmp_path):
    """With `searcher.lag` later calls end before earlier ones; a kill then costs none of them."""
    path, units = tmp_path / "units.jsonl", units_of(3, 2)
    asked = [units[:2], units[2:4], units[4:]]
    with Pool(Crew(2)) as pool:
        kept = Kept(pool, path, "s")
        first, *ahead = [kept(units) for units in asked]
        *_, third = ahead
        next(third)
        ended = len(path.read_text().splitlines())
        assert ended > 1  # and one was taken
    del first, ahead, third
    with Pool(crew := Crew(2)) as pool:
        kept = Kept(pool, path, "s")
        for answers in [kept(units) for units in asked]:
            list(answers)
    assert len(crew.sent) == 6 - ended


def test_what_is_taken_leaves_the_file_while_more_is_open(tmp_path):
    """With `searcher.lag` some call is open until the end; a kill at any moment costs nothing that is open."""
    path, units = tmp_path / "units.jsonl", units_of(40, 2)
    with Pool(Crew(3)) as pool:
        kept = Kept(pool, path, "s")
        ahead = deque([kept(units[2 * i : 2 * i + 2]) for i in range(4)])
        for i in range(4, 40):
            assert len(dict(ahead.popleft())) == 2
            ahead.append(kept(units[2 * i : 2 * i + 2]))
            lines = path.read_text().splitlines() if path.exists() else []
            assert len(lines) <= 2 * 8 + 2  # of open calls at most, twice, and what ends meanwhile
    assert not list(tmp_path.glob(".partial*"))
    ended = sum(json.loads(line)["key"] in kept._lines for line in lines)
    with Pool(crew := Crew(3)) as pool:
        again = Kept(pool, path, "s")
        for answers in [again(units[i : i + 2]) for i in range(72, 80, 2)]:
            list(answers)
    assert len(crew.sent) == 8 - ended
    assert not path.exists()


def test_what_is_measured_before_a_search_goes_on_leaves_what_was_finished(tmp_path):
    path, units = tmp_path / "units.jsonl", units_of(2, 2)
    with Pool(Crew(1)) as pool:
        next(Kept(pool, path, "s")(units))
    base = [Unit(np.zeros(2), {"a": ["7"]}, first=True)]
    with Pool(crew := Crew(1)) as pool:
        kept = Kept(pool, path, "s")
        assert len(dict(kept(base))) == 1
        assert len(dict(kept(units))) == 4
    assert len(crew.sent) == 1 + 3


def test_one_that_is_left_early_does_not_keep_the_file_for_ever(tmp_path):
    path = tmp_path / "units.jsonl"
    with Pool(Crew(1)) as pool:
        kept = Kept(pool, path, "s")
        early = kept(units_of(1, 2))
        next(early)
        early.close()
        list(kept(units_of(2, 2)))
    assert not path.exists()


def test_a_damaged_unit_is_scored_again(tmp_path):
    units, path = units_of(1, 2), tmp_path / "units.jsonl"
    with Pool(Crew(1)) as pool:
        answers = Kept(pool, path, "s")(units)
        next(answers)
    path.write_text(path.read_text().replace('"m":[', '"m":[1').replace('"m": [', '"m": [1'))
    with Pool(crew := Crew(1)) as pool:
        again = dict(Kept(pool, path, "s")(units))
    assert len(crew.sent) == 2
    assert plain(again[0]) == plain(Scored(outcome_of(units[0])))


def test_a_machine_that_cannot_start_processes_says_so(tmp_path, monkeypatch, caplog):
    def refuse(*given, **more):
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(processes.subprocess, "Popen", refuse)
    with (
        Pool(processes.Processes({}, [{}, {}], tmp_path)) as pool,
        pytest.raises(EvomergeError, match="No worker is left"),
    ):
        pool.wait()
    assert "this machine cannot start another process" in caplog.text
