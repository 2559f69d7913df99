"""Bars and intervals in the rows of a table: values with standard errors in, places in per cent out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from evomerge.common.names import marked
from evomerge.fitness.base import heading, title
from evomerge.report.facts import MODELS, RunFacts
from evomerge.report.scales import Axis, axis
from evomerge.report.wording import metric, with_error


@dataclass(frozen=True)
class Value:
    """A number to draw: what it is of, its kind (a class), the number and its standard error, None if not known."""

    label: str
    kind: str
    value: float
    se: float | None


@dataclass(frozen=True)
class Bar:
    """A value at its place: where the bar begins and ends, its error from where to where, and the number in words."""

    label: str
    kind: str
    start: float
    end: float
    error: tuple[float, float] | None
    text: str

    @property
    def left(self) -> float:
        """Where it begins on the left."""
        return min(self.start, self.end)

    @property
    def width(self) -> float:
        """How long it is."""
        return abs(self.end - self.start)


@dataclass(frozen=True)
class Bars:
    """Rows on one axis, in sections.

    Attributes:
        axis: the axis.
        sections: title -> rows.
        zero: where zero is, in per cent; None if it is not on the axis.
        filled: whether a bar begins at zero; else only its end means something.
    """

    axis: Axis
    sections: list[tuple[str, list[Bar]]]
    zero: float | None
    filled: bool


def bars(sections: Iterable[tuple[str, Sequence[Value]]], label: str, sign: bool = False, digits: int = 4) -> Bars:
    """Return bars from zero where all values are positive, else only their ends.

    Args:
        sections: title -> values.
        label: of the axis.
        sign: whether they are differences: then zero is on the axis, and an error reaches two standard errors.
        digits: of the numbers in words.
    """
    wanted = [(title, list(values)) for title, values in sections]
    every = [value for _, values in wanted for value in values]
    ends = [value.value + way * _reach(value, sign) for value in every for way in (-1, 1)] or [0.0]
    filled = not sign and min(value.value for value in every) >= 0 if every else False
    if filled:
        scale = axis([max(end, 0.0) for end in ends] + [1.0] * (0.5 < max(ends) <= 1), label, 4, 0.0, zero=True)
    else:
        scale = axis([*ends, *([0.0] if sign else [])], label, 4, 0.03)
    zero = scale.at(0.0)

    def place(value: Value) -> Bar:
        reach, at = _reach(value, sign), scale.at(value.value)
        error = (scale.at(value.value - reach), scale.at(value.value + reach)) if reach else None
        text = with_error(value.value, value.se, digits, sign)
        return Bar(value.label, value.kind, zero if filled or sign else at, at, error, text)

    found = [(title, [place(value) for value in values]) for title, values in wanted]
    return Bars(scale, found, zero if scale.low <= 0 <= scale.high else None, filled)


def means(facts: RunFacts) -> Bars | None:
    """The four models on the report split, the mean over tasks; nothing of several values."""
    if facts.summary is None or facts.front:
        return None
    report = facts.summary.report
    values = [
        Value(marked(name, facts.marks, MODELS[name]), name, mean, report[name].se)
        for name in MODELS
        if name in report and (mean := report[name].mean) is not None
    ]
    return bars([("Mean over tasks", values)], metric(facts.measured))


def tasks(facts: RunFacts) -> Bars | None:
    """The four models on the report split, task by task."""
    if facts.summary is None:
        return None
    report = facts.summary.report
    sections = [
        (
            heading(task, facts.measures),
            [
                Value(marked(name, facts.marks, MODELS[name]), name, score, report[name].tasks_se.get(task))
                for name in MODELS
                if name in report and (score := report[name].tasks.get(task)) is not None
            ],
        )
        for task in facts.summary.base.tasks
    ]
    return bars(sections, metric(facts.plain), digits=3)


def held_out(facts: RunFacts) -> Bars | None:
    """The models of the report on tasks that the search never saw: the mean where there are several, and each task."""
    found = facts.summary.held_out if facts.summary else None
    if found is None:
        return None
    rows = {name: found.report[name] for name in MODELS if name in found.report}
    means = {name: (row.mean, row.se) for name, row in rows.items()}
    numbers = {"Mean over tasks": means} if len(found.report["base"].tasks) > 1 else {}
    for task in found.report["base"].tasks:
        each = {name: (row.tasks.get(task), row.tasks_se.get(task)) for name, row in rows.items()}
        numbers[heading(task, found.measures)] = each
    sections = [
        (name, [Value(MODELS[model], model, value, se) for model, (value, se) in each.items() if value is not None])
        for name, each in numbers.items()
    ]
    return bars(sections, metric(title(facts.report_metric, found.measures)), digits=3)


def gains(facts: RunFacts) -> Bars | None:
    """The winner minus the best constant, task by task on the same items; nothing for runs that did not keep it."""
    if facts.summary is None:
        return None
    found = facts.summary.gain
    values = [
        Value(task, "run", diff, found.tasks_se.get(task)) for task, diff in found.tasks.items() if diff is not None
    ]
    title, label = "Winner − best constant", f"difference in {metric(facts.plain)}"
    return bars([(title, values)], label, sign=True) if values else None


def _reach(value: Value, sign: bool) -> float:
    """How far the error is drawn to each side."""
    known = value.se is not None and math.isfinite(value.se)
    return (2.0 if sign else 1.0) * (value.se or 0.0) if known else 0.0
