"""What the drawings of a page hold: facts in, marks and lines at places in per cent out.

The template draws a `Chart` as SVG between axes of HTML; nothing here knows of either. Heights count from above, as in
SVG.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from evomerge.report.facts import RunFacts
from evomerge.report.records import Dot
from evomerge.report.scales import Axis, axis, counting, robust
from evomerge.report.wording import number, valued
from evomerge.selection.forgetting import taken

PLAIN_DOTS = 1500
"""Above so many dots, they are one path without titles: a page must stay light."""


@dataclass(frozen=True)
class Mark:
    """A dot: place in per cent, kind (a class), what a pointer is told, and what is written beside it."""

    x: float
    y: float
    kind: str
    title: str
    label: str = ""


@dataclass(frozen=True)
class Line:
    """A line: the `d` of a path in a box of 100 x 100, kind, and its name."""

    path: str
    kind: str
    title: str = ""


@dataclass(frozen=True)
class Rule:
    """A level across the drawing: height in per cent, kind, and its name."""

    y: float
    kind: str
    title: str


@dataclass(frozen=True)
class Chart:
    """A drawing with two axes, and what it says in words for those who do not see it."""

    x: Axis
    y: Axis
    words: str
    marks: list[Mark] = field(default_factory=list)
    lines: list[Line] = field(default_factory=list)
    rules: list[Rule] = field(default_factory=list)
    legend: list[tuple[str, str]] = field(default_factory=list)
    height: int = 260


def convergence(facts: RunFacts) -> Chart | None:
    """Every trial, the mean of each batch and the best so far, in the metric of the search; nothing of several
    values.
    """
    if not facts.scored or facts.value_names:
        return None
    of = valued(facts, facts.metric)
    shown, below = robust([dot.value for dot in facts.scored])
    last = facts.last if facts.by_value else facts.scored[-1].number
    x, y = counting(last, "candidate"), axis(shown, f"{of} on the search items")
    marks, lines = _dots(facts.scored, x, y, of)
    if facts.means:
        pieces = [f"M{x.at(a - 0.4)} {up(y, v)}H{x.at(b + 0.4)}" for a, b, v in facts.means]
        lines.append(Line("".join(pieces), "mean", "mean of a batch"))
    lines.append(Line(_stairs(facts.best_so_far, x, y), "best", "best so far"))
    failed = [Mark(x.at(n), 100.0, "failed", f"candidate {n} failed: {t.error}") for n, t in facts.failed if n <= last]
    raced = [
        Mark(x.at(d.number), up(y, d.value), "censored", f"candidate {d.number}: dropped after {d.trial.spent} items")
        for d in facts.censored
        if len(facts.numbered) <= PLAIN_DOTS
    ]
    best = facts.best_so_far[-1][1]
    if facts.noise:
        lower = up(y, best - facts.noise.difference)
        lines.insert(0, Line(f"M0 {up(y, best)}H100V{lower}H0Z", "noise", "nearer to the best than sampling noise"))
    words = (
        f"{of} of {len(facts.scored)} candidates in the order in which they were asked; the best so "
        f"far rises from {number(facts.scored[0].value)} to {number(best)}."
    )
    legend = [("dot", "a candidate"), ("best", "best so far")]
    legend += [("mean", "mean of a batch")] if facts.means else []
    legend += [("noise", "within one standard error of the best")] if facts.noise else []
    legend += [("censored", "dropped by a race, at an estimate, most often too low")] if raced else []
    legend += [("failed", "failed")] if failed else []
    legend += [("", f"{below} far below are drawn on the lower edge")] if below else []
    return Chart(x, y, words, raced + marks + failed, lines, legend=legend, height=260 if facts.by_value else 160)


def losses(facts: RunFacts) -> Chart | None:
    """The loss of every step of a gradient, and its mean over the last ten: another quantity than the metric."""
    if not facts.losses:
        return None
    values = [dot.value for dot in facts.losses]
    x, y = counting(facts.last, "candidate, a step each"), axis(values, facts.loss)
    marks, lines = _dots(facts.losses, x, y, facts.loss)
    lines.append(Line(joined(facts.smooth_losses, x, y), "best", "mean of the last ten steps"))
    failed = [Mark(x.at(n), 100.0, "failed", f"step {n} failed: {t.error}") for n, t in facts.failed]
    words = f"{facts.loss} of {len(values)} steps: the mean of ten goes to {number(facts.smooth_losses[-1][1])}."
    legend = [("dot", "a step, on inputs of its own"), ("best", "mean of the last ten")]
    return Chart(x, y, words, marks + failed, lines, legend=legend, height=200)


def finalists(facts: RunFacts) -> Chart | None:
    """What the finalists reached on the select split, at the candidates that found them; nothing of several values."""
    found = [finalist for finalist in facts.finalists if finalist.select is not None]
    if not found or facts.summary is None or facts.front:
        return None
    split, level = facts.summary.select, facts.best_constant_on_select or 0.0
    x = counting(facts.last, "candidate that found it")
    y = axis([finalist.select or 0.0 for finalist in found] + [level], _deciding(facts))
    marks = [
        Mark(
            x.at(finalist.number or facts.last),
            up(y, finalist.select or 0.0),
            "winner" if finalist.winner else "finalist",
            f"{finalist.name}: {number(finalist.select)} on the select items",
        )
        for finalist in sorted(found, key=lambda f: f.winner)
        if not finalist.name.startswith(("constant ", "start "))
    ]
    words = f"{len(found)} finalists on the select items; {split.winner} won with {number(split.value)}"
    legend = [("winner", "the winner"), ("finalist", "another finalist")]
    rules = [Rule(up(y, level), "constant", f"best constant, {facts.summary.constant}: {number(level)}")]
    return Chart(x, y, words, marks, [], rules, legend, height=200)


def constants(facts: RunFacts) -> Chart | None:
    """What each constant reached on the select split, and where the winner stands; nothing of several values."""
    if facts.summary is None or facts.front:
        return None
    split = facts.summary.select
    curve = sorted((float(c), value) for c, value in split.constants.items() if value is not None)
    won = split.value
    own = facts.summary.forgetting.negated if facts.summary.forgetting else ()
    x = axis([c for c, _ in curve], f"constant{taken(own)}", pad=0.04)
    y = axis([value for _, value in curve] + [won], _deciding(facts))
    best = split.constant
    seen = {float(c): split.seen.get(c, 0) for c in split.constants}
    every = max(seen.values(), default=0)

    def partly(constant: float) -> str:
        """Say where a value is partly a prediction."""
        return f", scored on {seen[constant]} of {every} items" if seen[constant] < every else ""

    marks = [
        Mark(x.at(c), up(y, v), "constant" if c == float(best) else "dot", f"constant {c:g}: {number(v)}{partly(c)}")
        for c, v in curve
    ]
    line = Line(joined(curve, x, y), "thin")
    rules = [Rule(up(y, won), "winner", f"winner: {number(won)}")]
    words = f"The best of {len(curve)} constants on the select items is {best}; the winner reaches {number(won)}."
    legend = [("constant", f"best constant, {best}"), ("dot", "another constant")]
    return Chart(x, y, words, marks, [line], rules, legend, height=220)


def overlay(lines: Sequence[tuple[str, str, Sequence[tuple[int, float]]]], stairs: bool = False) -> Chart:
    """Several runs in one drawing.

    Args:
        lines: name and kind of each run, and its values at candidates.
        stairs: whether a value holds until the next one.
    """
    shown, below = robust([value for _, _, points in lines for _, value in points])
    x, y = counting(max(points[-1][0] for _, _, points in lines), "candidate"), axis(shown)
    path = _stairs if stairs else joined
    drawn = [Line(path(points, x, y), kind, name) for name, kind, points in reversed(lines)]
    legend = [(kind, name) for name, kind, _ in lines if kind != "run"]
    if plain := sum(kind == "run" for _, kind, _ in lines):
        legend.append(("run", f"{plain} more"))
    legend += [("", f"{below} values far below are drawn on the lower edge")] if below else []
    ends = "; ".join(f"{name} ends at {number(points[-1][1])}" for name, _, points in lines)
    return Chart(x, y, ends, lines=drawn, legend=legend)


def _deciding(facts: RunFacts) -> str:
    return (
        f"{'worst task’s ' if facts.aggregate == 'worst' else ''}{valued(facts, facts.measured, select=True)} on select"
    )


def up(scale: Axis, value: float) -> float:
    """Return the height of a value in per cent from above, as SVG counts."""
    return round(100 - scale.at(value), 3)


def _dots(dots: Sequence[Dot], x: Axis, y: Axis, what: str) -> tuple[list[Mark], list[Line]]:
    if len(dots) > PLAIN_DOTS:
        return [], [Line("".join(f"M{x.at(d.number)} {up(y, d.value)}h0" for d in dots), "dots")]
    marks = [
        Mark(
            x.at(d.number),
            up(y, d.value),
            "dot",
            f"candidate {d.number}, batch {d.trial.batch}: {what} {number(d.value)}",
        )
        for d in dots
    ]
    return marks, []


def joined(points: Sequence[tuple[float, float]], x: Axis, y: Axis) -> str:
    """A path from point to point."""
    return "M" + "L".join(f"{x.at(a)} {up(y, b)}" for a, b in points)


def _stairs(points: Sequence[tuple[int, float]], x: Axis, y: Axis) -> str:
    """A path that rises where something better was found."""
    (first, value), *rest = points
    return f"M{x.at(first)} {up(y, value)}" + "".join(f"H{x.at(n)}V{up(y, v)}" for n, v in rest)
