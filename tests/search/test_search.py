"""The loop with a plain evaluator: what is written before what acts on it, what an evaluator may do to the world."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.search.deadline import Deadline
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import HOPELESS, Budget, Interrupt
from evomerge.trials import Batch, StopReason, Trial
from tests.kit.helpers import box, sphere
from tests.kit.searching import SEARCHERS

HERE = {"cpu": "this"}
Evaluate = Callable[[Batch, Sequence[int]], Iterator[Trial]]


def scored(batch: Batch, index: int) -> Trial:
    return Trial(batch.index, index, "ok", (sphere(batch.points[index]),))


def plain(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
    for index in missing:
        yield scored(batch, index)


def run(path: Path, name: str, evaluate: Evaluate = plain, trials: int = 30, **budget: Any) -> tuple[StopReason, Any]:
    searcher = SEARCHERS[name](box(4), 5)
    with TrialLog(path, {"searcher": name}, HERE) as log:
        return search(searcher, evaluate, log, Budget(trials, **budget)), searcher


def log_of(path: Path) -> list[dict[str, Any]]:
    return list(read_log(path))


@pytest.mark.parametrize("name", SEARCHERS)
def test_the_world_may_be_reseeded_at_every_call(name: str, tmp_path: Path) -> None:
    def reseeding(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            np.random.seed(1234)  # noqa: NPY002  (what an evaluator outside may do)
            torch.manual_seed(1234)
            random.seed(1234)
            yield scored(batch, index)

    run(tmp_path / "calm.jsonl", name)
    run(tmp_path / "reseeded.jsonl", name, reseeding)
    assert (tmp_path / "calm.jsonl").read_bytes() == (tmp_path / "reseeded.jsonl").read_bytes()


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_search_leaves_random_states_as_they_were(name: str, tmp_path: Path) -> None:
    def states() -> tuple[Any, ...]:
        return repr(np.random.get_state()), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

    before = states()
    for trials in (15, 30):  # a resume as well
        run(tmp_path / "trials.jsonl", name, trials=trials)
        assert states() == before


def test_why_a_search_ended(tmp_path: Path) -> None:
    assert run(tmp_path / "a.jsonl", "random")[0] is StopReason.BUDGET
    assert run(tmp_path / "b.jsonl", "grid")[0] is StopReason.EXHAUSTED
    stopped = Interrupt()
    stopped.requested = True
    assert run(tmp_path / "c.jsonl", "random", interrupt=stopped)[0] is StopReason.INTERRUPTED
    assert (tmp_path / "c.jsonl").read_bytes() == b""  # nothing was asked
    assert run(tmp_path / "c.jsonl", "random")[0] is StopReason.BUDGET
    assert (tmp_path / "c.jsonl").read_bytes() == (tmp_path / "a.jsonl").read_bytes()


def failing(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
    for index in missing:
        yield Trial(batch.index, index, "failed", None, error="ValueError: no")


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in ("greedy", "topk")])  # too few for one
def test_a_search_ends_early_where_every_candidate_fails_and_a_replay_agrees(name: str, tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    reason, searcher = run(path, name, failing, trials=200)
    assert reason is StopReason.FAILED
    assert searcher.incumbents() == {}
    log = path.read_bytes()
    lines = log.splitlines(keepends=True)
    done = sum(line["kind"] == "trial" for line in log_of(path))
    assert HOPELESS <= done < HOPELESS + len(box(4).names) + 12  # with its generation
    assert json.loads(lines[-1])["kind"] == "tell"
    for kept in (1, len(lines) // 2, len(lines) - 2, len(lines) - 1, len(lines)):  # killed there, and run again
        path.write_bytes(b"".join(lines[:kept]))
        assert run(path, name, failing, trials=200)[0] is StopReason.FAILED
        assert path.read_bytes() == log


@pytest.mark.parametrize("good", [0, 7, HOPELESS - 1])
def test_one_candidate_that_can_be_scored_keeps_a_search_going(good: int, tmp_path: Path) -> None:
    def nearly(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            yield from plain(batch, [index]) if batch.index == good else failing(batch, [index])

    assert run(tmp_path / "trials.jsonl", "tpe", nearly, trials=30)[0] is StopReason.BUDGET


def test_fewer_candidates_than_that_end_with_the_budget(tmp_path: Path) -> None:
    assert run(tmp_path / "trials.jsonl", "random", failing, trials=HOPELESS - 1)[0] is StopReason.BUDGET


def test_a_log_that_went_on_after_failures_is_replayed_to_its_end(tmp_path: Path) -> None:
    """As those of earlier versions: what was paid for counts."""
    with TrialLog(tmp_path / "trials.jsonl", {"searcher": "tpe"}, HERE) as log:
        searcher = SEARCHERS["tpe"](box(4), 5)
        for number in range(HOPELESS + 5):
            batch = log.begin(log.ask(searcher.ask()))
            for trial in (failing if number < HOPELESS + 3 else plain)(batch, batch.missing):
                log.append(trial)
            log.tell(batch)
            searcher.tell(batch)
    reason, searcher = run(tmp_path / "trials.jsonl", "tpe", trials=20)
    assert reason is StopReason.BUDGET
    assert searcher.incumbents()


def test_each_line_is_written_before_anything_acts_on_it(tmp_path: Path) -> None:
    path, told = tmp_path / "trials.jsonl", []

    def watching(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for done, index in enumerate(missing):
            *_, last = log_of(path)
            assert last["kind"] == ("trial" if done else "ask")
            assert last["batch"] == batch.index
            yield scored(batch, index)

    searcher = SEARCHERS["cmaes"](box(4), 5)
    tell = searcher.tell

    def telling(batch: Batch) -> None:
        assert log_of(path)[-1] == {"kind": "tell", "batch": batch.index}
        told.append(batch.index)
        tell(batch)

    searcher.tell = telling
    with TrialLog(path, {}, HERE) as log:
        search(searcher, watching, log, Budget(20))
    assert told == [0, 1]  # of 8 points each: the third batch stays incomplete and is never told


def test_a_resumed_search_evaluates_only_what_is_missing(tmp_path: Path) -> None:
    path, seen = tmp_path / "trials.jsonl", []

    def counting(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            seen.append((batch.index, index))
            yield scored(batch, index)

    for trials in (3, 11, 11, 30, 20):
        run(path, "cmaes", counting, trials)
    assert seen == [(i // 8, i % 8) for i in range(30)]
    assert seen == [(line["batch"], line["index"]) for line in log_of(path) if line["kind"] == "trial"]


def test_trials_may_come_in_any_order(tmp_path: Path) -> None:
    def backwards(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        return plain(batch, missing[::-1])

    _, forth = run(tmp_path / "forth.jsonl", "cmaes", trials=32)
    _, back = run(tmp_path / "back.jsonl", "cmaes", backwards, trials=32)
    _, again = run(tmp_path / "back.jsonl", "cmaes", trials=32)
    for one, two, three in zip(*(s.incumbents().values() for s in (forth, back, again)), strict=True):
        assert np.array_equal(one.x, two.x)
        assert np.array_equal(one.x, three.x)
        assert one.trial == two.trial == three.trial


def test_an_evaluator_that_breaks_loses_nothing(tmp_path: Path) -> None:
    def breaking(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            if batch.index == 1 and index == 3:
                raise RuntimeError("a bug outside")
            yield scored(batch, index)

    path = tmp_path / "trials.jsonl"
    with pytest.raises(RuntimeError, match="a bug outside"):
        run(path, "random", breaking)
    assert sum(line["kind"] == "trial" for line in log_of(path)) == 11
    run(path, "random")
    run(tmp_path / "whole.jsonl", "random")
    assert path.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("name", SEARCHERS)
def test_a_searcher_is_the_same_after_a_resume(name: str, tmp_path: Path) -> None:
    """Its incumbents too, of which the winner is chosen."""
    _, whole = run(tmp_path / "whole.jsonl", name, trials=40)
    for trials in (1, 13, 27, 40):
        _, resumed = run(tmp_path / "trials.jsonl", name, trials=trials)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "trials.jsonl").read_bytes()
    one, two = whole.incumbents(), resumed.incumbents()
    assert list(one) == list(two)
    for name_of in one:
        assert one[name_of].x.tobytes() == two[name_of].x.tobytes()
        assert one[name_of].trial == two[name_of].trial


def test_the_log_holds_no_clock_path_or_address(tmp_path: Path) -> None:
    for directory in ("one", "another"):
        run(tmp_path / directory / "trials.jsonl", "cmaes")
    text = (tmp_path / "one" / "trials.jsonl").read_text()
    assert text == (tmp_path / "another" / "trials.jsonl").read_text()
    assert str(tmp_path) not in text
    assert {key for line in text.splitlines() for key in json.loads(line)} <= {
        *("kind", "format", "identity", "fingerprint", "crc", "batch", "points", "index", "status"),
        *("values", "violations", "scores", "items", "results", "error"),
    }


@pytest.mark.parametrize(
    ("name", "seconds"),
    [*((name, seconds) for name in SEARCHERS for seconds in (9.0, 12.5)), ("cmaes", 1.0), ("random-lag", 1.0)],
)
def test_hours_end_a_search_and_leave_no_trace_in_its_log(name: str, seconds: float, tmp_path: Path) -> None:
    """The log is the beginning of a longer one's; called again, the search goes on for as many hours, up to the end."""
    now = 0.0

    def ticking(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        nonlocal now
        for index in missing:
            now += 1.0
            yield scored(batch, index)

    whole, _ = run(tmp_path / "whole.jsonl", name, trials=30)
    log, calls, ended = tmp_path / "trials.jsonl", 0, StopReason.TIME
    while ended is StopReason.TIME:
        calls, before = calls + 1, len(log_of(log)) if log.exists() else 0
        deadline = Deadline(seconds / 3600, lambda: now)
        deadline.measured({False: 1.0, True: 1.0}, [False, True], 0)
        ended, _ = run(log, name, deadline.wrap(ticking), deadline=deadline)
        assert (tmp_path / "whole.jsonl").read_bytes().startswith(log.read_bytes())
        assert len(log_of(log)) > before or ended is not StopReason.TIME
    trials = sum(line["kind"] == "trial" for line in log_of(log))
    assert ended is whole
    assert log.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()
    assert trials // int(seconds) <= calls <= trials // int(seconds) + 1


def in_a_burst(clock: list[float], seconds: float) -> Callable[[Batch, Sequence[int]], Iterator[Trial]]:
    """Scores all candidates of a generation side by side, in so many seconds of the clock."""

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        clock[0] += seconds
        yield from (scored(batch, index) for index in missing)

    return evaluate


@pytest.mark.parametrize("whole", [False, True])
def test_candidates_that_end_in_a_burst_take_their_share_of_it(whole: bool) -> None:
    """Ten that are scored side by side in 10 s take 1 s each, whenever they are looked at."""
    clock = [0.0]
    deadline = Deadline(100 / 3600, lambda: clock[0])
    deadline.measured({False: 2.0}, [False], 10, together=True, whole=whole)
    evaluate = deadline.wrap(in_a_burst(clock, 10.0))
    for left in (80.0, 70.0, 60.0):
        assert len(list(evaluate(Batch(0, np.zeros((10, 2))), range(10)))) == 10
        assert (deadline.left, deadline.next, deadline.choosing) == (left, 10.0 if whole else 1.0, 10.0)
        assert not deadline.over
    clock[0] = 85.0
    assert deadline.over is whole  # 5 s are left: for a candidate, but not for ten of which none ends before all do


def test_a_generation_that_ends_whole_is_taken_whole() -> None:
    """What is paid for is not left behind, though the hours are over."""
    clock = [0.0]
    deadline = Deadline(50 / 3600, lambda: clock[0])
    deadline.measured({False: 1.0}, [False], 0, together=True, whole=True)
    assert len(list(deadline.wrap(in_a_burst(clock, 99.0))(Batch(0, np.zeros((4, 2))), range(4)))) == 4
    assert deadline.over


def test_no_time_takes_back_what_was_scored(tmp_path: Path) -> None:
    path = tmp_path / "trials.jsonl"
    run(path, "random", trials=20)
    deadline = Deadline(1e-9)
    deadline.measured({False: 1.0}, [False], 0)
    reason, searcher = run(path, "random", trials=40, deadline=deadline)
    assert reason is StopReason.TIME
    best = max(line["values"][0] for line in log_of(path) if line["kind"] == "trial")
    assert sphere(searcher.incumbents()["best"].x) == best
