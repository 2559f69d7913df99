"""Budgets, and signals that ask a search to end."""

from __future__ import annotations

import math
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError
from evomerge.search.deadline import Deadline
from evomerge.search.stopping import Budget, Interrupt, fixed
from evomerge.trials import Batch, StopReason, Trial


@dataclass
class Seen:
    trials: int = 0
    items: int = 0
    batches: int = 0


@settings(max_examples=80, deadline=None)
@given(
    trials=st.integers(1, 50),
    items=st.none() | st.integers(1, 500),
    each=st.integers(1, 30),
    batch=st.integers(1, 9),
)
def test_a_budget_is_spent_to_the_last_trial_and_never_passed(
    trials: int, items: int | None, each: int, batch: int
) -> None:
    """Whatever the size of the batches, as the loop spends it."""
    seen, budget = Seen(), Budget(trials, items, fixed(each))
    while budget.stop(seen) is None:
        now = min(batch, budget.left(seen))
        assert now > 0
        seen.trials += now
        seen.items += now * each
    assert seen.trials == min(trials, trials if items is None else items // each)
    assert items is None or seen.items <= items
    assert budget.stop(seen) is StopReason.BUDGET


def test_a_lowered_budget_has_nothing_left() -> None:
    assert Budget(5).left(Seen(trials=8)) == 0
    assert Budget(5, 10, fixed(2)).left(Seen(trials=2, items=16)) == 0


def test_a_gradient_may_cost_another_number_of_items() -> None:
    budget = Budget(100, items=50, price=fixed(12, 5))
    seen = Seen(trials=3, items=36)
    assert (budget.left(seen), budget.left(seen, gradient=True)) == (1, 2)
    assert budget.stop(Seen(trials=4, items=44)) is None  # enough for a gradient
    assert budget.stop(Seen(trials=4, items=46)) is StopReason.BUDGET
    assert Budget(9, 50, fixed(12)).left(seen, gradient=True) == 1
    assert Budget(5).stop(Seen(trials=8)) is StopReason.BUDGET


@settings(max_examples=50, deadline=None)
@given(
    prices=st.lists(st.integers(1, 30), min_size=1, max_size=6),
    shares=st.lists(st.integers(0, 30), min_size=1, max_size=6),
    items=st.integers(1, 300),
    size=st.integers(1, 5),
)
def test_prices_may_grow_and_trials_may_cost_less(prices: list[int], shares: list[int], items: int, size: int) -> None:
    """The limit is never passed, it ends when not even one more can be paid, and a kill changes none of it."""
    budget, seen = Budget(1000, items, lambda index, gradient: prices[min(index, len(prices) - 1)]), Seen()
    while budget.stop(seen) is None:
        batch, each = Batch(seen.batches, [[0.0]] * size), budget.price(seen.batches, False)
        due = budget.due(batch, seen)
        costs = [min(shares[(seen.batches + i) % len(shares)], each) for i in due]
        if due:
            batch.trials[0] = Trial(batch.index, 0, "ok", (0.0,))  # as the log holds it after a kill
            assert budget.due(batch, seen) == due[1:]
        seen.trials, seen.items = seen.trials + len(due), seen.items + sum(costs)
        assert seen.items <= items
        if len(due) < size:
            return
        seen.batches += 1
    assert items - seen.items < budget.price(seen.batches, False) or seen.trials >= 1000


@pytest.mark.parametrize(("arguments", "name"), [((0,), "trials"), ((-3,), "trials"), ((1, 0), "items")])
def test_a_budget_that_is_not_positive_is_refused(arguments: tuple[Any, ...], name: str) -> None:
    with pytest.raises(ConfigError, match=rf"budget of {name} is -?\d, but it must be at least 1: write"):
        Budget(*arguments)


@pytest.mark.parametrize("number", Interrupt.SIGNALS, ids=lambda number: number.name)
def test_a_signal_is_a_request_and_the_old_handlers_come_back(number: signal.Signals) -> None:
    before = [signal.getsignal(number) for number in Interrupt.SIGNALS]
    with Interrupt() as interrupt:
        budget = Budget(10, interrupt=interrupt)
        assert not interrupt.requested
        assert budget.stop(Seen()) is None
        signal.raise_signal(number)
        assert interrupt.requested
        assert budget.stop(Seen()) is StopReason.INTERRUPTED
        if number != signal.SIGINT:
            signal.raise_signal(number)  # schedulers repeat themselves
    assert [signal.getsignal(number) for number in Interrupt.SIGNALS] == before


def test_a_second_ctrl_c_stops_at_once() -> None:
    with Interrupt() as interrupt:
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        assert interrupt.requested


def test_handlers_come_back_after_an_error() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(RuntimeError), Interrupt():
        raise RuntimeError
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_wrapped_evaluator_ends_after_the_current_trial() -> None:
    interrupt, started, taken = Interrupt(), [], []

    def evaluate(batch: str, missing: list[int]):
        for index in missing:
            started.append(index)
            if index == 2:
                interrupt.requested = True  # a signal comes while this candidate runs
            yield index

    for trial in interrupt.wrap(evaluate)("batch", [0, 1, 2, 3, 4]):
        taken.append(trial)
    assert started == taken == [0, 1, 2]


def test_every_reason_is_a_sentence() -> None:
    assert all(reason.value[0].isupper() and reason.value.endswith(".") for reason in StopReason)


def test_another_thread_gets_no_handlers_and_can_still_be_asked_to_stop() -> None:
    before = [signal.getsignal(number) for number in Interrupt.SIGNALS]

    def elsewhere() -> list[Any]:
        with Interrupt() as interrupt:
            interrupt.requested = True
            assert Budget(5, interrupt=interrupt).stop(Seen()) is StopReason.INTERRUPTED
            return [signal.getsignal(number) for number in Interrupt.SIGNALS]

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(elsewhere).result() == before


class Clock:
    """Stands still until somebody moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_hours_leave_time_for_choosing() -> None:
    clock = Clock()
    deadline = Deadline(1, clock)
    deadline.measured({False: 60.0, True: 5.0}, [False], 10)
    assert (deadline.choosing, deadline.left, deadline.over) == (600, 3000, False)
    clock.now += 2940
    assert (deadline.left, deadline.over) == (60, False)  # one more candidate, exactly
    clock.now += 1
    assert deadline.over


def test_hours_count_what_candidates_take_and_not_what_was_foreseen() -> None:
    clock, status = Clock(), ["ok", "failed", "ok", "ok"]

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            clock.now += 100 if status[index] == "ok" else 1
            yield Trial(0, index, status[index], (0.0,) if status[index] == "ok" else None)

    deadline = Deadline(1, clock)
    deadline.measured({False: 1.0}, [False], 30)
    taken = [trial.index for trial in deadline.wrap(evaluate)(Batch(0, [[0.0]] * 4), [0, 1, 2, 3])]
    assert deadline.choosing == 3000
    assert taken == [0, 1, 2, 3]
    assert (deadline.left, deadline.over) == (299, False)
    assert (
        len(list(deadline.wrap(evaluate)(Batch(1, [[0.0]] * 4), [0, 2, 3]))) == 2
    )  # the third would take what is left


def test_candidates_that_end_in_bursts_take_what_they_take_on_average() -> None:
    """Four workers end together every 100 s: a candidate takes 25 s of the search's time, not the 0 s between two."""
    clock = Clock()

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            clock.now += 100 if index % 4 == 0 else 0
            yield Trial(0, index, "ok", (0.0,))

    deadline = Deadline(1, clock)
    deadline.measured({False: 25.0}, [False], 10, together=True)
    list(deadline.wrap(evaluate)(Batch(0, [[0.0]] * 8), range(8)))
    assert (deadline.next, deadline.choosing) == (25, 250)


@pytest.mark.parametrize("together", [False, True])
def test_candidates_that_were_remembered_do_not_count_as_quick(together: bool) -> None:
    clock, remembered = Clock(), [0.1, 0.1, 0.1]

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            clock.now += remembered[index] if batch.index == 0 else 40
            yield Trial(batch.index, index, "ok", (0.0,))

    deadline = Deadline(1, clock)
    deadline.measured({False: 25.0}, [False], 10, together)
    list(deadline.wrap(evaluate)(Batch(0, [[0.0]] * 3), range(3)))
    assert deadline.next == 25
    list(deadline.wrap(evaluate)(Batch(1, [[0.0]] * 2), range(2)))
    assert deadline.next == pytest.approx(40)


def test_a_generation_of_which_some_were_remembered_takes_what_the_others_take() -> None:
    """Three of seven come at once from the cache; then four workers end together after 100 s."""
    clock, came = Clock(), [0.1, 0.1, 0.1, 100, 0, 0, 0]

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            clock.now += came[index]
            yield Trial(0, index, "ok", (0.0,))

    deadline = Deadline(1, clock)
    deadline.measured({False: 20.0}, [False], 10, together=True)
    list(deadline.wrap(evaluate)(Batch(0, [[0.0]] * 7), range(7)))
    assert deadline.next == pytest.approx(25)


def test_a_generation_that_was_begun_beside_another_one_counts_whole() -> None:
    """Of two generations of two, both begun at once, the second one has its first trial ready when the first ends."""
    clock, came = Clock(), {0: [30, 10], 1: [0.1, 19.9]}

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        for index in missing:
            clock.now += came[batch.index][index]
            yield Trial(batch.index, index, "ok", (0.0,))

    deadline = Deadline(1, clock)
    deadline.measured({False: 20.0}, [False], 10, together=True)
    wrapped = deadline.wrap(evaluate)
    for trials in [wrapped(Batch(number, [[0.0]] * 2), range(2)) for number in (0, 1)]:
        list(trials)
    assert deadline.next == pytest.approx((40 + 20) / 4)


def test_without_hours_there_is_no_end() -> None:
    deadline = Deadline()
    deadline.measured({False: 1e9}, [False], 1e9)
    assert not deadline.over
    assert deadline.left == math.inf


@pytest.mark.parametrize("hours", [0, -1.0, math.inf, math.nan])
def test_hours_that_are_no_time_are_refused(hours: float) -> None:
    with pytest.raises(ConfigError, match=r"^budget\.hours=.* is no time: write the hours .*budget\.hours=0\.5"):
        Deadline(hours)
