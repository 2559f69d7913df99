from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.common.fronts import crowding, excess, on_front, ranks, scaled

NUMBERS = st.integers(0, 4).map(float)  # few, so that there are equals


@st.composite
def fields(draw):
    n, m, c = draw(st.integers(1, 9)), draw(st.integers(1, 4)), draw(st.integers(0, 2))
    return draw(arrays(float, (n, m), elements=NUMBERS)), draw(arrays(float, (n, c), elements=NUMBERS)) - 2


def dominates(one, other) -> bool:
    """The definition, for one pair of (values, violations)."""
    amounts = [sum(max(v, 0.0) for v in violations) for _, violations in (one, other)]
    if amounts[0] != amounts[1]:
        return amounts[0] < amounts[1]
    pairs = list(zip(one[0], other[0], strict=True))
    return amounts[0] == 0 and all(a >= b for a, b in pairs) and any(a > b for a, b in pairs)


@given(fields())
def test_the_front_is_what_nothing_dominates(field):
    values, violations = field
    models = list(zip(values.tolist(), violations.tolist(), strict=True))
    plain = [not any(dominates(other, one) for other in models) for one in models]
    assert on_front(values, violations).tolist() == plain
    assert any(plain)


@given(fields())
def test_each_rank_is_the_front_of_what_the_ranks_before_leave(field):
    values, violations = field
    found = ranks(values, violations)
    for rank in range(found.max() + 1):
        left = found >= rank
        assert (found[left] == rank).tolist() == on_front(values[left], violations[left]).tolist()


@given(fields(), st.randoms())
def test_order_and_units_do_not_matter(field, random):
    values, violations = field
    order = random.sample(range(len(values)), len(values))
    assert ranks(values[order], violations[order]).tolist() == ranks(values, violations)[order].tolist()
    assert ranks(7 * values - 3, 2 * violations).tolist() == ranks(values, violations).tolist()


def test_by_hand():
    values = np.array([[1, 3], [2, 2], [3, 1], [2, 1], [0, 0], [2, 2]])
    assert ranks(values).tolist() == [0, 0, 0, 1, 2, 0]
    assert ranks(values, np.array([[0.1], [-1], [0.3], [-1], [-1], [0.1]])).tolist() == [3, 0, 4, 1, 2, 3]
    assert excess(np.array([[0.5, -2.0], [1.0, 0.25]])).tolist() == [0.5, 1.25]


def test_what_failed_comes_last():
    values = np.array([[np.nan, 9], [0, 0], [np.inf, 5], [1, 1]])
    assert ranks(values).tolist() == [2, 1, 2, 0]
    assert on_front(values, np.array([[9], [9], [0], [np.nan]])).tolist() == [False, True, False, False]


def test_crowding_by_hand():
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 1.0], [4.0, 0.0]])
    assert crowding(values).tolist() == pytest.approx([np.inf, 3 / 4 + 3 / 4, 3 / 4 + 3 / 4, np.inf])
    assert crowding(np.ones((3, 2))).tolist() == [np.inf] * 3
    assert crowding(np.zeros((0, 2))).shape == (0,)


def test_scaled_by_hand():
    assert scaled(np.array([[0.2, 5.0], [0.4, 5.0], [0.3, 5.0]])).tolist() == [[0, 0], [1, 0], [pytest.approx(0.5), 0]]
