"""What a model must keep of the base's scores, by hand and as laws; and what a violation does to a value."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition
from evomerge.fitness.objectives import Objective, counted
from evomerge.problem import Goal

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
