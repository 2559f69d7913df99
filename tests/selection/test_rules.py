"""Rules by which a point of a front is chosen, and hypervolume: by hand, and as laws on random points."""

from __future__ import annotations

from itertools import permutations, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.fitness.base import Outcome
from evomerge.fitness.values import Value
from evomerge.selection.rules import best_of_enough, hypervolume, knee, rule_of

POINTS = st.integers(1, 8).flatmap(
    lambda n: st.integers(2, 4).flatmap(lambda m: arrays(float, (n, m), elements=st.integers(0, 5).map(float)))
)


def test_the_knee_is_farthest_from_the_line_through_the_ends():
    front = np.array([[0.9, 10.0], [0.8, 40.0], [0.7, 80.0], [0.4, 90.0], [0.1, 100.0]])
    ends = (front - front.min(0)) / np.ptp(front, 0)
    (x0, y0), (x1, y1) = ends[0], ends[-1]
    distances = [abs((x - x0) * (y0 - y1) + (y - y0) * (x1 - x0)) for x, y in ends]
    assert knee(front) == int(np.argmax(distances)) == 2


def test_the_knee_of_three_values_by_hand():
    front = np.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0], [0.5, 0.5, 0.1], [0.4, 0.4, 0.4]])
    assert knee(front) == 4
    assert knee(front[:3]) == 0  # all are ends: the best in the first value
    assert knee(front[[2, 1, 0]]) == 2
    assert knee(front[4:]) == 0


def test_of_equal_knees_the_most_even_is_taken_whatever_their_order():
    front = np.array([[1.0, 0.0], [0.8, 0.4], [0.6, 0.6], [0.0, 1.0]])
    alike = np.array([[0.5, *row] for row in front.tolist()])  # equal in what is to be best
    for order in map(list, permutations(range(4))):
        assert order[knee(front[order])] == 2
        assert order[best_of_enough(alike[order], np.zeros((4, 1)), 0)] == 2


@settings(max_examples=40, deadline=None)
@given(POINTS)
def test_a_knee_is_never_dominated_and_does_not_depend_on_units(values):
    place = knee(values)
    assert not any(np.all(other >= values[place]) and np.any(other > values[place]) for other in values)
    assert knee(values * 8 - 3) == place


@settings(max_examples=40, deadline=None)
@given(POINTS)
def test_the_best_of_enough_has_enough_where_any_has(values):
    lacks = 3 - values[:, 1:]
    place = best_of_enough(values, lacks, 0)
    enough = [i for i in range(len(values)) if np.all(lacks[i] <= 0)]
    together = np.maximum(lacks, 0).sum(1)
    if enough:
        assert place in enough
        assert values[place, 0] == max(values[i, 0] for i in enough)
    else:
        assert together[place] == together.min()


def test_a_rule_of_settings_is_held_against_the_base_of_its_items():
    def outcome(skill: float, safety: float, length: float) -> Outcome:
        rows = {"skill": {"m": np.array([skill])}, "safe": {"m": np.array([safety]), "length": np.array([length])}}
        return Outcome({task: ["0"] for task in rows}, rows)

    values = [Value("skill", "m", {"skill": 1.0}), Value("safety", "m", {"safe": 1.0})]
    values.append(Value("short", "length", {"safe": 1.0}, minimise=True))
    base = outcome(0.1, 0.9, 10.0)
    models = [outcome(0.9, 0.8, 5.0), outcome(0.8, 0.89, 13.0), outcome(0.7, 0.89, 11.0), outcome(0.2, 0.9, 10.0)]
    worth = np.array([[value(model) for value in values] for model in models])
    rule = rule_of({"at_least": {"safety": "0.98 * base"}, "best": "skill"}, values, base)
    assert rule.text == "safety at least 0.98 * base, then the best skill"
    assert rule(models, worth) == (1, True)
    both = rule_of({"at_least": {"safety": "0.98 * base", "short": "1.2 * base"}, "best": "skill"}, values, base)
    assert both.text == "safety at least 0.98 * base and short at most 1.2 * base, then the best skill"
    assert both(models, worth) == (2, True)
    fixed = rule_of({"at_least": {"safety": "0.95"}, "best": "skill"}, values, base)
    assert fixed(models, worth) == (3, False)  # none has enough: the one that lacks least
    assert rule_of("knee", values, base)(models, worth) == (knee(worth), True)


@settings(max_examples=40, deadline=None)
@given(POINTS, st.integers(0, 2))
def test_hypervolume_counts_the_cells_below_points(values, low):
    """Whole numbers: the volume above a reference is the number of unit cells that some point dominates."""
    m = values.shape[1]
    cells = product(range(low, 6), repeat=m)
    covered = sum(
        any(all(v >= c + 1 for v, c in zip(row, cell, strict=True)) for row in values.tolist()) for cell in cells
    )
    assert hypervolume(values, np.full(m, float(low))) == pytest.approx(covered)


def test_what_is_not_above_the_reference_adds_nothing():
    assert hypervolume(np.array([[0.5, 2.0], [2.0, 0.5]]), np.array([1.0, 1.0])) == 0.0
    assert hypervolume(np.zeros((0, 2)), np.array([1.0, 1.0])) == 0.0
    assert hypervolume(np.array([[3.0, 2.0], [9.0, 1.0]]), np.array([1.0, 1.0])) == pytest.approx(2.0)
