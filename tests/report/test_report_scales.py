"""Axes and colours."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.report.colours import STEPS, contrast, ramp, rgb
from evomerge.report.scales import axis, counting, robust, shade

NUMBERS = st.floats(-1e6, 1e6).map(lambda x: round(x, 6)) | st.floats(-1e99, 1e99)


@settings(max_examples=60, deadline=None)
@given(st.lists(NUMBERS, min_size=1, max_size=8), st.booleans())
def test_an_axis_holds_its_values_and_has_round_ticks(values: list[float], zero: bool) -> None:
    scale = axis(values, zero=zero)
    assert scale.low <= min(values) <= max(values) <= scale.high
    assert all(0 <= scale.at(value) <= 100 for value in values)
    assert scale.at(scale.low) == 0
    assert scale.at(scale.high) == 100
    assert 2 <= len(scale.ticks) <= 12
    assert all(scale.low <= tick <= scale.high for tick in scale.ticks)
    written = [scale.tick(tick) for tick in scale.ticks]
    assert len(set(written)) == len(written)
    if zero and min(values) >= 0:
        assert scale.low == 0


def test_ticks_are_written_with_as_many_digits_as_they_need() -> None:
    scale = axis([-0.031, 0.052])
    assert [scale.tick(tick) for tick in scale.ticks] == ["−0.02", "0.00", "0.02", "0.04"]
    scale = axis([0.0, 1.0], pad=0.0)
    assert [scale.tick(tick) for tick in scale.ticks] == ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"]
    assert axis([0, 21_000]).widest == "10,000"


@pytest.mark.parametrize("last", [0, 1, 2, 7, 40, 66, 1000])
def test_trials_are_counted_from_one(last: int) -> None:
    scale = counting(last, "")
    assert all(tick == int(tick) and tick <= max(last, 1) for tick in scale.ticks)
    assert scale.at(last) > scale.at(scale.low)


def test_what_lies_far_below_is_left_out() -> None:
    assert robust([1.0, 1.1, 1.2] * 10) == (sorted([1.0, 1.1, 1.2] * 10), 0)
    kept, below = robust([-100.0, *[1.0 + 0.01 * i for i in range(20)]])
    assert below == 1
    assert min(kept) == 1.0
    assert robust([3.0]) == ([3.0], 0)
    assert robust([2.0] * 20) == ([2.0] * 20, 0)


def test_shades_reach_as_far_below_a_centre_as_above() -> None:
    scale = shade([0.3, 1.0], 0.8)
    assert (scale.low, scale.high) == (pytest.approx(0.3), pytest.approx(1.3))
    assert [scale(x) for x in (0.3, 0.8, 1.3, 9.0)] == [f"m{STEPS}", "p0", f"p{STEPS}", f"p{STEPS}"]
    assert len(scale.key) == 2 * STEPS + 1
    scale = shade([0.5, 1.0], None)
    assert [scale(x) for x in (0.0, 0.5, 1.0)] == ["p0", f"p{STEPS // 2}", f"p{STEPS}"]
    assert len(scale.key) == STEPS + 1
    assert shade([0.0, 0.0], None)(0.0) == "p0"
    assert shade([0.4, 0.4], 0.4)(0.4) == "p0"
    assert shade([], None)(0.0) == "p0"
    assert shade([-1.0, 1.0], None)(0.0) == f"p{STEPS // 2}"


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_every_number_can_be_read_on_its_colour(theme: str) -> None:
    steps = ramp(theme)
    assert len({name for name, _, _ in steps}) == 2 * STEPS + 1
    assert all(contrast(rgb(color), rgb(ink)) >= 4.5 for _, color, ink in steps)
    towards = [contrast(rgb(color), rgb(steps[STEPS][1])) for _, color, _ in steps]
    assert towards[:STEPS] == sorted(towards[:STEPS], reverse=True)
    assert towards[STEPS:] == sorted(towards[STEPS:])


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast((0, 0, 0), (1, 1, 1)) == pytest.approx(21)
    assert contrast(rgb("#777777"), (1, 1, 1)) == pytest.approx(4.48, abs=0.01)
    assert math.isclose(contrast((1, 0, 0), (1, 0, 0)), 1)
