"""What a winner is worth beside its parents, as people read it: what it gains over the base and keeps of its experts.

In: a summary, or a `Worth` with the scores it was made of. Out: rows, tables and lines. Reports of finished runs are
made of them, so this loads no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.common.shown import Shown
from evomerge.fitness.base import heading
from evomerge.runs.beside import Beside
from evomerge.selection.comparison import Comparison
from evomerge.selection.statistics import Paired, plus_minus
from evomerge.selection.summary import OVER, OVER_EXPERTS, Summary
from evomerge.selection.worth import BASE, ENSEMBLE, OfTask, Worth, share_kept, share_of, turned

MEAN = "mean over tasks"
NO_SHARE = "tasks that were held out have no share that is kept: to the search no expert is their own"


@dataclass(frozen=True)
class Gain:
    """What a winner gains and keeps on one task, or over all.

    Attributes:
        task: its name, as a heading, or `MEAN`.
        over_base: the winner minus the base.
        expert: the expert it is held against: the best on that task, or the best one over all; empty for the task's
            own.
        kept: the share of that expert's gain over the base that the winner has; None where that gains nothing.
        over_expert: the winner minus that expert; None where a task has none.
        of_expert: the winner's score over that expert's on the task; over all, the mean of these. None where scores
            below 0 have no such share.
    """

    task: str
    over_base: Paired
    expert: str
    kept: float | None
    over_expert: Paired | None
    of_expert: float | None = None


def gains_of(summary: Summary) -> list[Gain]:
    """Return what the winner of a search gains over the base and keeps of each task's own expert, over all tasks first;
    nothing where that was not kept, where something is to be forgotten, or where there are several values.
    """
    if OVER not in summary.paired or summary.forgetting or summary.front:
        return []
    over, own, told = summary.paired[OVER], summary.paired.get(OVER_EXPERTS), summary.measures
    rows = []
    for task in summary.base.tasks:
        lost = own if own and task in own.tasks else None
        kept, of_expert = (_against(each, summary, task) if lost else None for each in (share_kept, share_of))
        rows.append(Gain(heading(task, told), _on(over, task), "", kept, lost and _on(lost, task), of_expert))
    return _with_mean(rows, over, "", own if own and own.diff is not None else None)


def gains_of_worth(beside: Beside) -> list[Gain]:
    """Return what a winner gains over the base and keeps of the best expert of each task, over all tasks of the search
    first, where it is held against the best one over all, and tasks that were held out last.
    """
    worth, told = beside.worth, beside.measures
    rows = _with_mean(_gains(beside.result, worth, told), worth.over_base, worth.single, worth.over_single)
    if not (beside.held_out and worth.held_out):
        return rows
    return [*rows, *(replace(one, task=apart(one.task)) for one in _gains(beside.held_out, worth.held_out, told))]


def apart(task: str) -> str:
    """Return what a task that was held out of the search is called beside those of the search."""
    return f"{task} (held out)"


def _gains(result: Comparison, worth: Worth, told: Mapping[str, str]) -> list[Gain]:
    over = {name: turned(result.paired[name]) for name in (BASE, *(one.best for one in worth.tasks.values()))}
    return [
        Gain(heading(task, told), _on(over[BASE], task), one.best, one.kept, _on(over[one.best], task), one.of_best)
        for task, one in worth.tasks.items()
    ]


def table_of_gains(summary: Summary) -> Shown | None:
    """Return what `gains_of` says as a table; None where it says nothing."""
    rows = [
        [
            one.task,
            plus_minus(one.over_base.diff, one.over_base.se, "+"),
            percent(one.kept),
            percent(one.of_expert),
            plus_minus(one.over_expert.diff, one.over_expert.se, "+") if one.over_expert else "",
        ]
        for one in gains_of(summary)
    ]
    title = "what the winner gains over the base, and keeps of the gain of each task's own expert; paired"
    columns = ["", "winner - base ± se", "kept", "of its\nscore", "winner - expert ± se"]
    return Shown(title, *_filled(columns, rows)) if rows else None


def table_of_worth(worth: Worth) -> Shown:
    """Return what a merge is worth beside its parents, with what follows below."""
    rows = [
        [
            task,
            f"{one.base:.3f}",
            f"{one.merge:.3f}",
            f"{one.score:.3f}",
            one.best,
            percent(one.kept),
            percent(one.of_best),
            plus_minus(one.over, one.se, "+"),
        ]
        for task, one in _with_held_out(worth).items()
    ]
    columns = [
        "",
        "base",
        "merge",
        "best\nexpert",
        "which is",
        "of its gain\nkept",
        "of its\nscore",
        "merge - best expert",
    ]
    return Shown(f"what {worth.merge} is worth beside base and experts", *_filled(columns, rows), lines_of(worth))


def _filled(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> tuple[list[str], list[list[str]]]:
    """Return columns and rows without the share of a score, where no row has one."""
    there = [at for at, name in enumerate(columns) if name != "of its\nscore" or any(row[at] for row in rows)]
    return [columns[at] for at in there], [[row[at] for at in there] for row in rows]


def lines_of(worth: Worth) -> list[str]:
    """Return what a merge is worth over all tasks, a line each."""
    kept = (
        [f"{worth.kept:.0%} of the best experts' gains are kept, as a mean over tasks"]
        if worth.kept is not None
        else []
    )
    return [*kept, *_over_both(worth), *further_lines(worth)]


def further_lines(worth: Worth) -> list[str]:
    """Return what a merge is beside the ensemble of the experts, where it passes all of them, and what it is on tasks
    that were held out, a line each.
    """
    passed = [task for task, one in _with_held_out(worth).items() if one.passes]
    return [
        *([_over_ensemble(worth.over_ensemble)] if worth.over_ensemble else []),
        f"above every expert by more than two standard errors: {', '.join(passed) or 'on no task'}",
        *([f"held out: {line}" for line in _over_both(worth.held_out)] if worth.held_out else []),
        *([NO_SHARE] if worth.apart or worth.held_out else []),
    ]


def _over_both(worth: Worth) -> list[str]:
    """Return what a merge is beside the base and the best single expert, a line each."""
    return [
        f"merge - base: {plus_minus(worth.over_base.diff, worth.over_base.se, '+')} (paired)",
        f"merge - {worth.single}, the best single expert over {'these' if worth.apart else 'all'} tasks: "
        f"{plus_minus(worth.over_single.diff, worth.over_single.se, '+')} (paired)",
    ]


def _with_held_out(worth: Worth) -> dict[str, OfTask]:
    """Return what a merge is worth on each task, by what the task is called."""
    more = worth.held_out.tasks if worth.held_out else {}
    return {**worth.tasks, **{apart(task): one for task, one in more.items()}}


def _over_ensemble(over: Paired) -> str:
    """Return what the merge is worth beside the mean of what all experts say."""
    difference = plus_minus(over.diff, over.se, "+") or "unknown"
    return f"merge - {ENSEMBLE}, a forward pass of each in place of one: {difference} (paired)"


def _with_mean(rows: Sequence[Gain], over: Paired, expert: str, over_expert: Paired | None) -> list[Gain]:
    """Return rows of tasks, before them that of all where there are several."""
    shares = [one.kept for one in rows if one.kept is not None]
    kept = sum(shares) / len(shares) if shares else None
    scores = [one.of_expert for one in rows if one.of_expert is not None]
    of_expert = sum(scores) / len(scores) if len(scores) == len(rows) > 0 else None
    return [*([Gain(MEAN, over, expert, kept, over_expert, of_expert)] if len(rows) > 1 else []), *rows]


def _against(share: Callable[[float, float, float], float | None], summary: Summary, task: str) -> float | None:
    """Return a share of base, winner and a task's own expert."""
    rows: Mapping[str, float | None] = {name: row.tasks.get(task) for name, row in summary.report.items()}
    base, winner, expert = rows["base"], rows["winner"], rows.get("experts")
    return None if base is None or winner is None or expert is None else share(base, winner, expert)


def percent(share: float | None) -> str:
    """Return a share as people read it; nothing for none."""
    return "" if share is None else f"{share:.0%}"


def _on(over: Paired, task: str) -> Paired:
    """Return a difference on one task."""
    return Paired(over.tasks.get(task), over.tasks_se.get(task))
