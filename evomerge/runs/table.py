"""What people read of a summary: the table of the report split, and what is said below it.

In: a summary. Out: a table, and lines. Reports of finished runs are made of it, so it loads no torch.
"""

from __future__ import annotations

from evomerge.common.names import mark_lines, marked
from evomerge.common.shown import Shown
from evomerge.fitness.base import heading, title
from evomerge.selection.statistics import plus_minus
from evomerge.selection.summary import START, Summary

LABELS = {
    "base": "base",
    "experts": "experts, each on its own task",
    "best_constant": "best constant",
    "winner": "winner",
}


def table_of(summary: Summary) -> Shown:
    """Return the table of the report split."""
    told = summary.measures
    rows = [
        [
            marked(name, summary.marks, LABELS[name]),
            plus_minus(row.mean, row.se),
            *("" if (score := row.tasks.get(task)) is None else f"{score:.3f}" for task in summary.base.tasks),
        ]
        for name, row in summary.report.items()
    ]
    where = f"{summary.items['report']} report items that the search never saw"
    return Shown(
        f"{title(summary.metric, told)} on {where}; higher is better",
        ["", "mean ± se", *(heading(task, told) for task in summary.base.tasks)],
        rows,
        [*mark_lines(summary.marks, LABELS), *rescored_of(summary)],
    )


def rescored_of(summary: Summary) -> list[str]:
    """Return a sentence on the winner in the dtype of the checkpoint, where the search has computed in another."""
    again = summary.rescored
    if again is None:
        return []
    how = f"Weights rounded to {again.dtype}, scored in {again.compute}"
    if (score := again.score) is None or (difference := again.paired) is None:
        return [f"{how}; the winner has no score in {again.dtype}: {again.error}"]
    return [
        f"{how}. In {again.dtype} the winner has {plus_minus(score.mean, score.se)}; the difference is "
        f"{plus_minus(difference.diff, difference.se, '+') or 'unknown'} (paired)."
    ]


def gain_of(summary: Summary) -> str:
    """Return the paired difference of the winner to the best constant, as a line."""
    difference = plus_minus(summary.gain.diff, summary.gain.se, "+") or "unknown"
    return f"winner - best constant ({summary.select.constant}): {difference} (paired)"


def starts_of(summary: Summary) -> list[str]:
    """Return what starts reached that were judged beside what was found, as a line; nothing where there are none."""
    chosen = summary.select
    said = {
        name: "no score" if value is None else f"{value:.4f}"
        for name, value in chosen.finalists.items()
        if name.startswith(START)
    }
    if not said:
        return []
    known = {
        f"winner ({chosen.winner})": chosen.value,
        f"constant {chosen.constant}": chosen.constants[chosen.constant],
    }
    said |= {name: "no score" if value is None else f"{value:.4f}" for name, value in known.items()}
    return [f"on the select items: {', '.join(f'{name} {value}' for name, value in said.items())}"]
