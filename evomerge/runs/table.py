"""What people read of a summary: the table of the report split, those beside it, and what is said below.

In: a summary. Out: tables, and lines. Reports of finished runs are made of it, so it loads no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from evomerge.common.names import mark_lines, marked
from evomerge.common.shown import Shown
from evomerge.fitness.base import heading, title
from evomerge.runs.beside import Beside
from evomerge.runs.fronts import front_tables, gains_of
from evomerge.runs.parents import table_of_gains, table_of_worth
from evomerge.selection.forgetting import Forgetting, Kept
from evomerge.selection.statistics import Score, plus_minus
from evomerge.selection.summary import GAIN, OVER, START, Summary

LABELS = {
    "base": "base",
    "experts": "experts, each on its own task",
    "best_constant": "best constant",
    "winner": "winner",
}
APART = "held out: the search never saw these"
"""What is said of tasks that took no part in a search."""


def tables_of(summary: Summary, beside: Beside | None = None) -> list[Shown]:
    """Return those of the front, if there is one, the table of the report split, what the winner gains and keeps, the
    table of tasks that were held out, if there are any, and what the winner is worth, if it stands beside its parents.
    """
    apart = table_of_gains(summary), held_out_of(summary), beside and table_of_worth(beside.worth)
    return [*front_tables(summary), table_of(summary), *(table for table in apart if table)]


def table_of(summary: Summary) -> Shown:
    """Return the table of the report split; where something was to be forgotten, with both means."""
    told, forgetting = summary.measures, summary.forgetting
    where = f"{summary.items['report']} report items that the search never saw"
    notes = [*mark_lines(summary.marks, LABELS), *rescored_of(summary)]
    if summary.front:
        notes.append(f"the winner is {summary.front.chosen} of the front; means over all tasks are none of its values")
    if forgetting:
        rows = [
            [name, *kept_cells(forgetting.models.get(key)), *scores]
            for (name, _, *scores), key in zip(_rows(summary, summary.report), summary.report, strict=True)
        ]
        return Shown(
            f"{title(summary.metric, told)} on {where}; {forgotten(forgetting)}",
            ["", *KEPT, *(heading(task, told) for task in summary.base.tasks)],
            rows,
            notes,
        )
    return Shown(
        f"{title(summary.metric, told)} on {where}; higher is better",
        ["", "mean ± se", *(heading(task, told) for task in summary.base.tasks)],
        _rows(summary, summary.report),
        notes,
    )


def held_out_of(summary: Summary) -> Shown | None:
    """Return the table of tasks that the search never saw; None where there are none."""
    found = summary.held_out
    if not found:
        return None
    told, where = found.measures, f"{summary.items['held_out']} report items"
    return Shown(
        f"{APART}; {title(summary.metric, told)} on {where}; higher is better",
        ["", "mean ± se", *(heading(task, told) for task in found.report["base"].tasks)],
        _rows(summary, found.report),
        held_out_lines(summary),
    )


def held_out_lines(summary: Summary) -> list[str]:
    """Return the paired differences on tasks that the search never saw, a line each."""
    found = summary.held_out
    if not found:
        return []
    others = {GAIN: f"best constant ({summary.constant})", OVER: "base"}
    return [
        f"winner - {other}: {plus_minus(one.diff, one.se, '+') or 'unknown'} (paired)"
        for name, other in others.items()
        for one in [found.paired[name]]
    ]


KEPT = ("to forget ± se", "control ± se", "kept ± se")
"""Columns for what was forgotten and what was kept."""


def kept_cells(row: Kept | None) -> list[str]:
    """Return the cells below `KEPT`."""
    if row is None:
        return [""] * len(KEPT)
    each = [plus_minus(one.mean, one.se) for one in (row.forget, row.control)]
    error = f" ± {row.se:.1%}" if row.se is not None and math.isfinite(row.se) else ""
    return [*each, "" if row.kept is None else f"{row.kept:.1%}{error}"]


def forgotten(found: Forgetting) -> str:
    """Return what is better, where something is to be forgotten."""
    tasks, share = ", ".join(found.tasks), f"{found.share:.4g}"
    return f"lower is better on what is to be forgotten ({tasks}); {share} of the base's control score is to be kept"


def rescored_of(summary: Summary) -> list[str]:
    """Return a sentence on the winner in the dtype of the checkpoint, where the search has computed in another."""
    again = summary.rescored
    if again is None:
        return []
    how = f"Weights rounded to {again.dtype}, scored in {again.compute}"
    if (score := again.score) is None or (difference := again.paired) is None:
        return [f"{how}; the winner has no score in {again.dtype}: {again.error}"]
    of = ", minus the mean over the tasks to forget" if summary.forgetting else ""
    return [
        f"{how}. In {again.dtype} the winner has {plus_minus(score.mean, score.se)}{of}; the difference is "
        f"{plus_minus(difference.diff, difference.se, '+') or 'unknown'} (paired)."
    ]


def gain_of(summary: Summary) -> str:
    """Return the paired difference of the winner to the best constant, as a line; where there are several values, in
    each of them.
    """
    if summary.front:
        return gains_of(summary.front)
    difference = plus_minus(summary.gain.diff, summary.gain.se, "+") or "unknown"
    if summary.forgetting:
        return f"the winner forgets more than the best constant ({summary.constant}) by {difference} (paired)"
    return f"winner - best constant ({summary.constant}): {difference} (paired)"


def starts_of(summary: Summary) -> list[str]:
    """Return what starts reached that were judged beside what was found, as a line; nothing where there are none. One
    that was not scored on all items has a value by those that it was scored on, which is said.
    """
    chosen, whole = summary.select, summary.items["select"]

    def shown(value: float | None, seen: int) -> str:
        early = f" (scored on {seen} of {whole} items)" if seen < whole else ""
        return "no score" if value is None else f"{value:.4f}{early}"

    said = {
        name: shown(value, chosen.seen.get(name, whole))
        for name, value in chosen.finalists.items()
        if name.startswith(START)
    }
    if not said:
        return []
    said[f"winner ({chosen.winner})"] = shown(chosen.value, whole)
    said[f"constant {summary.constant}"] = shown(chosen.constants[chosen.constant], whole)
    return [f"on the select items: {', '.join(f'{name} {value}' for name, value in said.items())}"]


def _rows(summary: Summary, report: Mapping[str, Score]) -> list[list[str]]:
    """Return a row for each model of a report: its name, its mean, and its score on each task of the base."""
    return [
        [
            marked(name, summary.marks, LABELS[name]),
            plus_minus(row.mean, row.se),
            *("" if (score := row.tasks.get(task)) is None else f"{score:.3f}" for task in report["base"].tasks),
        ]
        for name, row in report.items()
    ]
