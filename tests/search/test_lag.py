"""Searchers that are asked ahead: the log depends on the lag alone, not on workers, kills, signals or the budget."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from evomerge.search.deadline import Deadline
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import Evaluator, search, watching
from evomerge.search.stopping import Budget, Interrupt, fixed
from evomerge.searchers.base import Searcher
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.gradient import Gradient
from evomerge.searchers.hybrid import Hybrid
from evomerge.searchers.random import Random
from evomerge.searchers.tpe import Tpe
from evomerge.searchers.warm import WarmStart, constants
from evomerge.trials import Batch, StopReason, Trial
from tests.kit.helpers import box, sphere

SPACE = box(3)
MAKE: dict[str, Callable[[int], Searcher]] = {
    "cmaes": lambda lag: CmaEs(SPACE, SPACE.start({}), 3, popsize=4, lag=lag),
    "tpe": lambda lag: Tpe(SPACE, SPACE.start({}), 3, startup=3, lag=lag),
    "random": lambda lag: Random(SPACE, SPACE.start({}), 3, batch=2, lag=lag),
    "warm": lambda lag: WarmStart(SPACE, lambda start: CmaEs(SPACE, start, 3, popsize=4, lag=lag)),
}
TRIALS = 15


def scored(batch: Batch, index: int) -> Trial:
    """The sphere on two items; every seventh candidate fails."""
    items = {"t": ["a", "b"]}
    if (3 * batch.index + index) % 7 == 6:
        return Trial(batch.index, index, "failed", None, items=items, error="RuntimeError: no luck")
    return Trial(batch.index, index, "ok", (sphere(batch.points[index]),), items=items)


def serial(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
    for index in missing:
        yield scored(batch, index)


class Pool:
    """Begins the work when it is called; what ends first is a matter of chance, and trials come in the order asked.

    Attributes:
        begun: the points that were given to it, in order.
        most: how many were in work at once.
    """

    def __init__(self, seed: int = 0) -> None:
        self._rng = np.random.default_rng(seed)
        self._working: list[tuple[Batch, int]] = []
        self._ended: dict[tuple[int, int], Trial] = {}
        self.begun: list[tuple[int, int]] = []
        self.most = 0

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        self.begun += [(batch.index, index) for index in missing]
        self._working += [(batch, index) for index in missing]
        self.most = max(self.most, len(self._working) + len(self._ended))
        return self._trials(batch, missing)

    def _trials(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            while (batch.index, index) not in self._ended:
                ended, number = self._working.pop(int(self._rng.integers(len(self._working))))
                self._ended[ended.index, number] = scored(ended, number)
            yield self._ended.pop((batch.index, index))


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the log goes, without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "trials.jsonl"


def run(path: Path, searcher: Searcher, evaluate: Evaluator = serial, trials: int = TRIALS, **budget: Any) -> bytes:
    with TrialLog(path, {}, {}) as log:
        search(searcher, evaluate, log, Budget(trials, **budget))
    return path.read_bytes()


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("name", MAKE)
def test_a_search_that_was_cut_anywhere_goes_on_as_if_it_had_not_been(path: Path, name: str, lag: int) -> None:
    whole = run(path, MAKE[name](lag))
    lines = whole.splitlines(keepends=True)
    scored_before = np.cumsum([b'"kind":"trial"' in line for line in lines])
    each = {"random": 1, "cmaes": 2, "warm": 4, "tpe": 8}[name]
    for kept in range(lag % each, len(lines), each):
        torn = lines[kept][: len(lines[kept]) * (kept % 4) // 4]
        path.write_bytes(b"".join(lines[:kept]) + torn)
        pool = Pool(kept)
        assert run(path, MAKE[name](lag), pool) == whole
        assert len(pool.begun) == TRIALS - (scored_before[kept - 1] if kept else 0)  # nothing is computed twice


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(lag=st.integers(0, 9), batch=st.integers(1, 4), trials=st.integers(1, 30), seed=st.integers(0, 99))
def test_a_pool_writes_the_log_of_the_serial_evaluator(
    path: Path, lag: int, batch: int, trials: int, seed: int
) -> None:
    """Whatever ends first; and no more is begun than the budget pays for."""
    make = lambda: Random(SPACE, SPACE.start({}), 3, batch=batch, lag=lag)  # noqa: E731
    path.unlink(missing_ok=True)
    whole = run(path, make(), trials=trials)
    path.unlink()
    pool = Pool(seed)
    assert run(path, make(), pool, trials) == whole
    assert len(pool.begun) == trials
    assert pool.most == min(trials, (lag + 1) * batch)


@pytest.mark.parametrize("lag", [1, 4])
@pytest.mark.parametrize("name", ["cmaes", "tpe"])
def test_a_point_is_asked_after_the_trials_up_to_the_lag_before_it_were_told(path: Path, name: str, lag: int) -> None:
    run(path, MAKE[name](lag))
    told = 0
    for line in read_log(path):
        told += line["kind"] == "tell"
        if line["kind"] == "ask":
            assert told == max(0, line["batch"] - lag)
        if line["kind"] == "trial":
            assert line["batch"] == told
    assert told == TRIALS


def test_a_searcher_that_cannot_be_asked_ahead_is_not(path: Path) -> None:
    def asks(searcher: Searcher) -> list[str]:
        path.unlink(missing_ok=True)
        run(path, searcher)
        return [line["kind"] for line in read_log(path)]

    plain, warm = asks(MAKE["cmaes"](0)), asks(MAKE["warm"](2))
    assert plain[:8] == ["header", "ask", *["trial"] * 4, "tell", "ask"]
    first = len(constants(SPACE))
    assert warm[:11] == ["header", "ask", *["trial"] * first, "tell", "ask", "ask"]  # then it is known where to start
    assert warm[11:15] == ["ask", "trial", "tell", "ask"]


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize(("items", "trials"), [(2, 1), (7, 3), (30, 15)])
def test_a_budget_of_items_counts_what_is_open(path: Path, lag: int, items: int, trials: int) -> None:
    for _ in range(2):
        pool = Pool()
        log = run(path, MAKE["random"](lag), pool, 100, items=items, price=fixed(2))
        assert log.count(b'"kind":"trial"') == trials
    assert pool.begun == []
    path.unlink()
    run(path, MAKE["random"](lag), pool, 100, items=items, price=fixed(2))
    assert len(pool.begun) == trials


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("name", ["cmaes", "random"])
def test_a_signal_ends_a_search_after_the_oldest_trial(path: Path, name: str, lag: int) -> None:
    whole, done = run(path, MAKE[name](lag)), 0
    path.unlink()
    while done < TRIALS:  # a signal during every second trial
        interrupt, seen = Interrupt(), iter(range(TRIALS))

        def told(trial: Trial, interrupt: Interrupt = interrupt, seen: Iterator[int] = seen) -> None:
            interrupt.requested = next(seen) == 1

        limited = interrupt.wrap(Deadline().wrap(watching(Pool(), told)))
        log = run(path, MAKE[name](lag), limited, interrupt=interrupt)
        assert whole.startswith(log)
        done += 2
        assert log.count(b'"kind":"trial"') == min(done, TRIALS)
    assert log == whole


def test_wrappers_begin_the_work_at_once() -> None:
    for wrap in (Interrupt().wrap, Deadline().wrap, lambda evaluate: watching(evaluate, lambda trial: None)):
        pool = Pool()
        trials = wrap(pool)(Batch(0, np.zeros((2, 3))), [0, 1])
        assert pool.begun == [(0, 0), (0, 1)]
        assert [trial.index for trial in trials] == [0, 1]


def test_what_is_open_when_a_searcher_ends_is_told(path: Path) -> None:
    """Its work is paid for."""

    class Ending(Random):
        def stop(self) -> StopReason | None:
            return StopReason.EXHAUSTED if self._turns.asks == 5 else None

    searcher = Ending(SPACE, SPACE.start({}), 3, batch=1, lag=3)
    with TrialLog(path, {}, {}) as log:
        assert search(searcher, Pool(), log, Budget(100)) is StopReason.EXHAUSTED
        assert log.trials == 5
    assert searcher.incumbents()


def test_the_second_of_two_searchers_may_have_a_lag(path: Path) -> None:
    hybrid = Hybrid(SPACE, SPACE.start({}), 3, partial(Gradient, steps=2), partial(CmaEs, popsize=4, lag=2))

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            yield Trial(batch.index, index, "ok", (0.0,), gradient=[1.0, 0.0, 0.0] if batch.gradient else None)

    run(path, hybrid, evaluate, 6)
    kinds = [line["kind"] for line in read_log(path)]
    assert kinds[1:7] == ["ask", "trial", "tell"] * 2
    assert kinds[7:13] == ["ask", "ask", "ask", "trial", "tell", "ask"]
