"""The tables of `evomerge evaluate --around`: the value of a merge whose weights are scaled, and what that means."""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.progress import Reporter
from evomerge.fitness.base import negated, title
from evomerge.selection.around import ALL, NEAR, Around, name_of
from evomerge.selection.evaluation import Comparison
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
    reporter.table(what, columns, table, _lines(whole))
    if rows:
        columns = ["", *(f"times\n{point.factor:g}" for point in whole.points)]
        table = [[each.row, *(_difference(point.over.diff) for point in each.points)] for each in rows]
        notes = [f"{each.row}: {line}" for each in rows for line in _lines(each)]
        reporter.table("minus the winner, the weights of one row scaled and all others kept", columns, table, notes)


def _lines(found: Around) -> list[str]:
    """Return what follows of the values around a merge."""
    if found.level:
        return ["no factor changes a single result: by this method weights are shares, or nothing is merged there"]
    lines = []
    if found.lower:
        what = "a sharp peak" if found.sharp else "it falls off on one side"
        lines.append(f"{what}: {_times(found.lower)}, it is below the winner by more than two standard errors")
    elif found.unknown:
        lines.append(f"whether it is a sharp peak is not known: {_times(found.unknown)}, it has no score")
    else:
        low, high = NEAR
        lines.append(
            f"no sharp peak: from times {low:g} to times {high:g} it is nowhere below the winner by more than two "
            f"standard errors"
        )
    if found.higher:
        lines.append(
            f"{_times(found.higher)}, it is above the winner by more than two standard errors: the search has not "
            f"reached the top in this direction"
        )
    return lines


def _kept(result: Comparison, factor: float) -> str:
    """Return the share of the base's control score that a winner keeps with all its weights scaled."""
    name = next(iter(result.models)) if factor == 1 else name_of(ALL, factor)
    row = result.forgetting and result.forgetting.models.get(name)
    return f"{row.kept:.1%}" if row and row.kept is not None else ""


def _times(factors: Sequence[float]) -> str:
    return ", ".join(f"times {factor:g}" for factor in factors)


def _difference(value: float | None) -> str:
    return "no score" if value is None else f"{value:+.4f}"


def _bar(value: float | None, low: float, high: float) -> str:
    """Return a bar for a value between two ends."""
    if value is None:
        return ""
    share = (value - low) / (high - low) if high > low else 1.0
    return f"{'#' * (1 + round((WIDTH - 1) * share)):.<{WIDTH}}"
