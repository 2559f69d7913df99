"""The tables of `evomerge evaluate`: models side by side, and what a merge is worth beside its parents.

In: a `Comparison`, or a `Worth`. Out: tables and lines on the reporter.
"""

from __future__ import annotations

from collections.abc import Sequence

from evomerge.cli.progress import Reporter
from evomerge.common.names import mark_lines, marked
from evomerge.fitness.base import heading, title
from evomerge.runs.table import APART, KEPT, forgotten, kept_cells
from evomerge.selection.evaluation import Comparison
from evomerge.selection.statistics import Paired, Score, plus_minus
from evomerge.selection.worth import ENSEMBLE, Worth

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
    rows = [
        [
            task,
            f"{one.base:.3f}",
            f"{one.merge:.3f}",
            f"{one.score:.3f}",
            one.best,
            "" if one.kept is None else f"{one.kept:.0%}",
            plus_minus(one.over, one.se, "+"),
        ]
        for task, one in worth.tasks.items()
    ]
    columns = ["", "base", "merge", "best\nexpert", "which is", "of its gain\nkept", "merge - best expert"]
    kept = (
        [f"{worth.kept:.0%} of the best experts' gains are kept, as a mean over tasks"]
        if worth.kept is not None
        else []
    )
    passed = [task for task, one in worth.tasks.items() if one.passes]
    lines = [
        *kept,
        f"merge - base: {plus_minus(worth.over_base.diff, worth.over_base.se, '+')} (paired)",
        f"merge - {worth.single}, the best single expert over all tasks: "
        f"{plus_minus(worth.over_single.diff, worth.over_single.se, '+')} (paired)",
        *([_over_ensemble(worth.over_ensemble)] if worth.over_ensemble else []),
        f"above every expert by more than two standard errors: {', '.join(passed) or 'on no task'}",
    ]
    reporter.table(f"what {worth.merge} is worth beside base and experts", columns, rows, lines)


def _over_ensemble(over: Paired) -> str:
    """Return what the merge is worth beside the mean of what all experts say."""
    difference = plus_minus(over.diff, over.se, "+") or "unknown"
    return f"merge - {ENSEMBLE}, a forward pass of each in place of one: {difference} (paired)"


def _ratio(value: float | None, error: float | None) -> str:
    return f"{value / error:+.1f}" if value is not None and error is not None and error > 0 else ""
