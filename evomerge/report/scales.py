"""Scales: numbers in, places on an axis and steps of colour out.

Places are per cent of the drawing's width or height, so that a page can stretch a drawing without stretching its text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.report.colours import STEPS, name

LEAST, FARTHEST = 1e-9, 1e100
"""Values nearer to each other than this (absolutely, and as a share of the larger) are drawn as one, and none is drawn
farther out: ticks between them could not be written, and differences of them not be taken.
"""
LONG = 1e9
"""Numbers from this on are written with an exponent."""


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Attributes:
        low: the value at its beginning.
        high: the value at its end.
        label: what it measures.
        ticks: values that are written at it.
        names: what is written in place of them, if anything.
    """

    low: float
    high: float
    label: str = ""
    ticks: tuple[float, ...] = ()
    names: tuple[str, ...] = ()

    def at(self, value: float) -> float:
        """Where a value lies, in per cent; values beyond an end lie on it."""
        share = (value - self.low) / (self.high - self.low)
        return round(100 * min(max(share, 0.0), 1.0), 3)

    def tick(self, value: float) -> str:
        """A tick as it is written: its name, or as many digits as tell the ticks apart."""
        if self.names:
            return self.names[self.ticks.index(value)]
        step = min((b - a for a, b in zip(self.ticks, self.ticks[1:], strict=False)), default=1.0)
        if max(map(abs, self.ticks), default=0.0) >= LONG:
            return f"{value:.4g}".replace("-", "\N{MINUS SIGN}")
        digits = max(0, -math.floor(math.log10(step) + 1e-9))
        if digits and abs(step * 10**digits - round(step * 10**digits)) > 1e-6:
            digits += 1  # steps of 0.25
        text = f"{value:,.{digits}f}"
        return text.replace("-", "\N{MINUS SIGN}") if float(text.replace(",", "")) else text.lstrip("-")

    @property
    def widest(self) -> str:
        """The longest tick, to leave room for."""
        return max(map(self.tick, self.ticks), key=len, default="")


def axis(values: Sequence[float], label: str = "", ticks: int = 5, pad: float = 0.06, zero: bool = False) -> Axis:
    """Return an axis that holds all values, with round numbers at it.

    Args:
        values: at least one, all finite.
        label: what they are.
        ticks: about how many.
        pad: how much room is left at both ends, as a share of the range.
        zero: whether it begins at zero, for values that are all positive.
    """
    low, high = (min(max(value, -FARTHEST), FARTHEST) for value in (min(values), max(values)))
    if zero:
        low = min(low, 0.0)
    room = (high - low) * pad or abs(high) * pad or pad
    low, high = (low if zero and low == 0.0 else low - room), high + room
    if high - low < (least := max(LEAST, LEAST * abs(low), LEAST * abs(high))):
        low, high = (low, low + 1.0) if zero and low == 0.0 else (low - least, high + least)
    step = _round_step((high - low) / ticks)
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    places = 3 - math.floor(math.log10(step))
    return Axis(low, high, label, tuple(round(k * step, places) for k in range(first, last + 1)))


def counting(last: int, label: str, ticks: int = 5) -> Axis:
    """Return an axis for trials 1 to `last`."""
    step = max(1, round(_round_step(max(last - 1, 1) / ticks)))
    marks = [1, *range(step, last + 1, step)] if step > 1 else list(range(1, last + 1))
    if len(marks) > 1 and marks[1] - marks[0] < step * 0.6:
        marks.pop(0)
    return Axis(min(1, last) - 0.5, last + 0.5, label, tuple(float(mark) for mark in marks))


def robust(values: Sequence[float]) -> tuple[list[float], int]:
    """Return the values that an axis should hold, and how many far below the rest it leaves out.

    A candidate that ruins the model may lie a hundred times as far from the others as those from each other.
    """
    ranked = sorted(values)
    tenth, high = ranked[len(ranked) // 10], ranked[-1]
    floor = high - 3 * (high - tenth)
    kept = [value for value in ranked if value >= floor]
    return (ranked, 0) if ranked[0] >= high - 4 * (high - tenth) else (kept, len(ranked) - len(kept))


@dataclass(frozen=True)
class Shade:
    """From a value to a step of colour: below and above a centre, or from a lowest value upwards.

    Attributes:
        low: where the ramp begins.
        high: where it ends.
        centre: the neutral value; None for a ramp that only goes up.
    """

    low: float
    high: float
    centre: float | None

    def __call__(self, value: float) -> str:
        """Return the class of a value's colour."""
        zero = self.low if self.centre is None else self.centre
        step = round(STEPS * (value - zero) / (self.high - zero))
        return name(min(max(step, 0 if self.centre is None else -STEPS), STEPS))

    @property
    def key(self) -> list[str]:
        """The classes of all colours, from the lowest value to the highest."""
        return [name(step) for step in range(0 if self.centre is None else -STEPS, STEPS + 1)]


def shade(values: Sequence[float], centre: float | None) -> Shade:
    """Return the shades for some values: both sides of a centre reach equally far."""
    if not values:
        return Shade(0.0, 1.0, None)
    if centre is None:
        low, high = min(0.0, *values), max(values)
        return Shade(low, high if high > low else low + 1.0, None)
    reach = max(0.1, *(abs(value - centre) for value in values))
    return Shade(centre - reach, centre + reach, centre)


def _round_step(about: float) -> float:
    power = 10 ** math.floor(math.log10(about))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= about * 0.99)
