"""What a model must keep of the base's scores, by hand and as laws; and what a violation does to a value."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition
from evomerge.fitness.goal import Goal
from evomerge.fitness.objectives import Objective, counted

NUMBERS = st.floats(-50, 50)
SHARES = st.floats(0.01, 1.0)


def outcome(**scores: float) -> Outcome:
    ids = {task: ["1", "2"] for task in scores}
    return Outcome(ids, {task: {"m": np.array([score - 1, score + 1])} for task, score in scores.items()})


def test_by_hand() -> None:
    condition, base = Condition("m", {"a": 1, "b": 3}, 0.95), outcome(a=0.4, b=0.8, bad=0.9)
    assert condition.score(base) == pytest.approx(0.7)
    assert condition.violation(outcome(a=0.4, b=0.76, bad=0.0), base) == pytest.approx(0.665 - 0.67)
    assert condition.violation(outcome(a=0.0, b=0.8, bad=0.0), base) == pytest.approx(0.665 - 0.6)
    assert condition.kept(outcome(a=0.0, b=0.8, bad=0.0), base) == pytest.approx(0.6 / 0.7)
    losses = outcome(a=-2.0, b=-2.0)  # a log-probability: 5 % more loss are allowed
    assert condition.violation(outcome(a=-2.1, b=-2.1), losses) == 0
    assert condition.violation(outcome(a=-2.2, b=-2.2), losses) == pytest.approx(0.1)
    assert condition.kept(outcome(a=-2.1, b=-2.1), losses) == pytest.approx(0.95)
    assert condition.kept(base, outcome(a=0.0, b=0.0)) is None


def test_what_must_hold_surely_is_held_by_so_many_paired_standard_errors() -> None:
    """By hand: what both models have in common cancels, as far as the limit is a share of the base's score."""

    def of(**results: list[float]) -> Outcome:
        return Outcome({}, {task: {"m": np.array(each)} for task, each in results.items()})

    base, own = of(a=[1.0, 0.0, 1.0, 1.0], b=[1.0, 1.0]), of(a=[0.0, 0.0, 1.0, 1.0], b=[1.0, 0.0])
    limit = 0.8 * base.results["a"]["m"]
    expected = np.std(own.results["a"]["m"] - limit, ddof=1) / 2
    condition = Condition("m", {"a": 1}, 0.8, "a", sure=2.0)
    assert condition.error(own, base) == pytest.approx(expected)
    assert condition.violation(own, base) == pytest.approx((0.6 - 0.5 + 2 * expected) / 0.6)
    assert replace(condition, fixed=True).error(own, base) == pytest.approx(np.std([0, 0, 1, 1], ddof=1) / 2)
    both = replace(condition, weights={"a": 1, "b": 3})
    other = np.std(own.results["b"]["m"] - 0.8, ddof=1) / math.sqrt(2)
    assert both.error(own, base) == pytest.approx(math.hypot(0.25 * expected, 0.75 * other))
    assert replace(both, aggregate="worst").error(own, base) == pytest.approx(expected)
    losses = Condition("m", {"a": 1}, 0.9, "a", sure=1.0)  # 10 % more loss are allowed
    low, less = of(a=[-1.0, -3.0]), of(a=[-1.1, -3.5])
    assert losses.error(less, low) == pytest.approx(np.std([0.0, -0.2], ddof=1) / math.sqrt(2))
    assert losses.error(low, low) == pytest.approx(0.1 * np.std([1, 3], ddof=1) / math.sqrt(2))


@settings(max_examples=60, deadline=None)
@given(NUMBERS, NUMBERS, NUMBERS, SHARES)
def test_the_base_violates_nothing_and_less_is_never_better(
    base: float, one: float, other: float, share: float
) -> None:
    condition, known = Condition("m", {"a": 1}, share), outcome(a=base)
    assert condition.violation(known, known) <= 0
    low, high = sorted((one, other))
    assert condition.violation(outcome(a=low), known) >= condition.violation(outcome(a=high), known)
    kept = condition.kept(outcome(a=one), known)
    if kept is not None and abs(base) > 0.01 and abs(kept - share) > 1e-6:
        assert (condition.violation(outcome(a=one), known) > 0) == (kept < share)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=2, max_size=8), st.floats(0.1, 1), SHARES)
def test_values_rank_what_is_kept_before_what_is_not(
    pairs: list[tuple[float, float]], control: float, share: float
) -> None:
    """Pairs are scores on the task to forget and on the control; the base has 0.5 on the former."""
    goal = Goal("m", "m", forget=("bad",), keep=share)
    base = outcome(bad=0.5, good=control)
    objective = Objective(
        "m", weights=goal.counts(["bad", "good"]), conditions=goal.conditions(["bad", "good"]), base=base
    )
    rows = [(objective(outcome(bad=bad, good=good)), bad) for bad, good in pairs]
    assert objective(base)[0] == pytest.approx((-0.5,))
    for ((value,), (violation,)), bad in rows:
        if violation <= 0:
            assert value == pytest.approx(-bad)
        else:
            assert value == pytest.approx(-0.5 - violation)
    keeping = [value for ((value,), (violation,)), bad in rows if violation <= 0 and bad <= 0.5]
    losing = [value for ((value,), (violation,)), _ in rows if violation > 0]
    assert not keeping or not losing or min(keeping) > max(losing)


def test_no_number_is_no_value() -> None:
    goal = Goal("m", "m", forget=("bad",))
    base = outcome(bad=0.5, good=0.5)
    objective = Objective(
        "m", weights=goal.counts(["bad", "good"]), conditions=goal.conditions(["bad", "good"]), base=base
    )
    assert math.isnan(objective(outcome(bad=0.1, good=math.nan))[0][0])
    assert objective.weights_of({"bad": 0, "good": 0}) is None  # nobody is dropped by the mean alone


def test_weights_count_within_what_is_to_be_forgotten_and_within_the_controls() -> None:
    goal = Goal("m", "other", weights={"a": 3, "c": 5}, forget=("a", "b"), keep=0.9)
    assert goal.counts(["a", "b", "c", "d"]) == {"a": -3, "b": -1, "c": 0, "d": 0}
    assert goal.conditions(["a", "b", "c", "d"]) == (Condition("other", {"c": 5, "d": 1.0}, 0.9),)
    assert counted({"a": 2}, (), ["a", "b"]) == {"a": 2}
    assert (Goal("m", "m").counts(["a"]), Goal("m", "m").conditions(["a"])) == (None, ())
