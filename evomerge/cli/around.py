"""The tables of `evomerge evaluate --around`: the value of a merge whose weights are scaled, and what that means."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.progress import Reporter
from evomerge.fitness.base import negated, title
from evomerge.selection.around import ALL, Around, lines_of, name_of
from evomerge.selection.comparison import Comparison
from evomerge.selection.statistics import plus_minus

WIDTH = 20
"""Of a bar, in letters."""


def show_around(found: Sequence[Around], result: Comparison, reporter: Reporter) -> None:
    """Print what becomes of a merge when its weights are scaled: all of them, and those of each row by itself."""
    whole, *rows = found
    values = [point.score.mean for point in whole.points if point.score.mean is not None]
    low, high = min(values, default=0.0), max(values, default=0.0)
    table = [
        [
            f"times {point.factor:g}",
            plus_minus(point.score.mean, point.score.se) or "no score",
            plus_minus(point.over.diff, point.over.se, "+"),
            f"{point.errors:+.1f}" if point.errors is not None else "",
            *([_kept(result, point.factor)] if result.forgetting else []),
            _bar(point.score.mean, low, high),
        ]
        for point in whole.points
    ]
    name = title(result.metric, result.measures)
    of = negated(name, result.forgetting.tasks if result.forgetting else ())
    what = f"{next(iter(result.models))} with all its weights scaled; {of} on {result.items} {result.split} items"
    kept = ["kept"] if result.forgetting else []
    columns = ["", "mean ± se", "minus the winner ± se", "in se", *kept, f"{low:.3f} to {high:.3f}"]
    reporter.table(what, columns, table, lines_of(whole))
    if rows:
        columns = ["", *(f"times\n{point.factor:g}" for point in whole.points)]
        table = [[each.row, *(_difference(point.over.diff) for point in each.points)] for each in rows]
        notes = [f"{each.row}: {line}" for each in rows for line in lines_of(each)]
        reporter.table("minus the winner, the weights of one row scaled and all others kept", columns, table, notes)


def _kept(result: Comparison, factor: float) -> str:
    """Return the share of the base's control score that a winner keeps with all its weights scaled."""
    name = next(iter(result.models)) if factor == 1 else name_of(ALL, factor)
    row = result.forgetting and result.forgetting.models.get(name)
    return f"{row.kept:.1%}" if row and row.kept is not None else ""


def _difference(value: float | None) -> str:
    return "no score" if value is None else f"{value:+z.4f}"


def _bar(value: float | None, low: float, high: float) -> str:
    """Return a bar for a value between two ends."""
    if value is None:
        return ""
    share = (value - low) / (high - low) if high > low else 1.0
    return f"{'#' * (1 + round((WIDTH - 1) * share)):.<{WIDTH}}"
