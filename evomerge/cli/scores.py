"""The tables of `evomerge evaluate`: models side by side, and what a merge is worth beside its parents.

In: a `Comparison`, or a `Worth`. Out: tables and lines on the reporter.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.progress import Reporter
from evomerge.common.names import mark_lines, marked
from evomerge.fitness.base import heading, title
from evomerge.runs.parents import table_of_worth
from evomerge.runs.table import APART, KEPT, forgotten, kept_cells
from evomerge.selection.comparison import Comparison
from evomerge.selection.statistics import Score, plus_minus
from evomerge.selection.worth import Worth

SAID = {
    "search": "search items, which guided the search: what it found looks better here than it is",
    "select": "select items, those that choose a winner",
    "report": "report items, those that neither guided nor chose",
    "held_out": f"items of tasks that were {APART}",
}


def show(result: Comparison, reporter: Reporter, harmful: Sequence[str] | None = None) -> None:
    """Print models side by side as one table, or two; below it, experts that a uniform average is better without."""
    if result.of_weights:
        _show_distances(result, reporter)
        return
    first, *_ = result.models
    told = result.measures
    tasks = max((list(row.tasks) for row in result.models.values()), key=len)  # `experts` may lack some
    kept = result.forgetting
    rows = [
        [
            _named(name, result),
            *_means(name, row, result),
            *(f"{row.tasks[task]:.3f}" if task in row.tasks else "" for task in tasks),
        ]
        for name, row in result.models.items()
    ]
    name = title(result.metric, told)
    better = forgotten(kept) if kept else "higher is better"
    columns = ["", *(KEPT if kept else ["mean ± se"]), *(heading(task, told) for task in tasks)]
    reporter.table(f"{name} on {result.items} {SAID[result.split]}; {better}", columns, rows, mark_lines(result.marks))
    _say_errors(result, reporter)
    if result.paired:
        differences = [
            [name, plus_minus(one.diff, one.se, "+"), _ratio(one.diff, one.se)] for name, one in result.paired.items()
        ]
        harm = ", ".join(harmful or ()) or "none of them"
        notes = [] if harmful is None else [f"better by more than two se without: {harm}"]
        what = f"forgotten more than by {first}" if kept else f"minus {first}"
        columns = ["", "difference ± se", "in se"]
        reporter.table(f"{what}, paired on the same items", columns, differences, notes)


def _show_distances(result: Comparison, reporter: Reporter) -> None:
    """Print how far models lie from the base: numbers without a standard error, since no item has a part in them."""
    rows = [
        [_named(name, result), "" if one.mean is None else f"{one.mean:.4f}"] for name, one in result.models.items()
    ]
    what = f"{result.metric} of the weights from the base's; 0 is the base"
    reporter.table(what, ["", result.metric], rows, mark_lines(result.marks))
    _say_errors(result, reporter)


def _say_errors(result: Comparison, reporter: Reporter) -> None:
    for name, error in result.errors.items():
        reporter.say(f"{name} has no score: {error}")


def _named(name: str, result: Comparison) -> str:
    """Return what a row is called."""
    return marked(name, result.marks, "experts, each on its own task" if name == "experts" else None)


def _means(name: str, row: Score, result: Comparison) -> list[str]:
    """Return the mean of a model; or its two means, where something was to be forgotten, and what it keeps."""
    found = result.forgetting
    cells = kept_cells(found.models.get(name)) if found else [plus_minus(row.mean, row.se)]
    return ["no score", *cells[1:]] if name in result.errors else cells


def show_worth(worth: Worth, reporter: Reporter) -> None:
    """Print what a merge is worth beside its parents."""
    table = table_of_worth(worth)
    reporter.table(table.title, table.columns, table.rows, table.notes)


def _ratio(value: float | None, error: float | None) -> str:
    return f"{value / error:+.1f}" if value is not None and error is not None and error > 0 else ""
