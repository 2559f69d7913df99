"""The winner beside its parents, and the value around it, as a page shows them.

In: the facts of a run. Out: rows of texts, and a drawing. What needed more scores than a search has is there once
somebody has asked for it (`runs/beside.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from evomerge.common.names import mark_lines, marked
from evomerge.fitness.base import heading, negated, title
from evomerge.report.charts import Chart, Line, Mark, Rule, joined, up
from evomerge.report.facts import RunFacts
from evomerge.report.scales import axis
from evomerge.report.wording import metric, number, verdict, with_error
from evomerge.runs.beside import AROUND, WORTH, Beside, outdated, read_around, read_worth
from evomerge.runs.parents import Gain, apart, further_lines, gains_of, gains_of_worth, percent
from evomerge.selection.around import Around, lines_of
from evomerge.selection.comparison import Comparison
from evomerge.selection.statistics import Paired
from evomerge.selection.worth import BASE, ENSEMBLE, WINNER

FLAGS = {WORTH: "--worth", AROUND: "--around"}


@dataclass(frozen=True)
class Cell:
    """A text, and `better`, `worse`, `same` or nothing: what two standard errors allow to say of it."""

    text: str
    verdict: str = ""


def parents(facts: RunFacts) -> dict[str, Any] | None:
    """Return what a page shows of a winner beside its parents; None where nothing is known."""
    beside = read_worth(facts.run)
    gains = gains_of_worth(beside) if beside else gains_of(facts.summary) if facts.summary else []
    old = [f"evomerge evaluate {facts.run.path} {FLAGS[name]}" for name in outdated(facts.run)]
    if not gains and not old:
        return None
    return {
        "gains": [_row(one) for one in gains],
        "of_expert": any(one.of_expert is not None for one in gains),
        "matrix": _matrix(beside) if beside else None,
        "lines": [*further_lines(beside.worth), *_again(facts, beside)] if beside else [],
        "outdated": old,
    }


def around(facts: RunFacts) -> dict[str, Any] | None:
    """Return what a page shows of a winner whose weights were scaled; None where that is not known."""
    found = read_around(facts.run)
    if found is None:
        return None
    result, (whole, *rows) = found
    notes = [f"{each.row}: {line}" for each in rows for line in lines_of(each)]
    return {
        "chart": _curve(result, whole),
        "where": f"{result.items} {result.split} items",
        "factors": [f"times {point.factor:g}" for point in whole.points],
        "rows": [(one.row, [_over(point.over) for point in one.points]) for one in rows],
        "lines": [*lines_of(whole), *notes],
    }


def _over(over: Paired | None) -> Cell:
    """Return a paired difference in a cell."""
    return Cell("–") if over is None or over.diff is None else Cell(_difference(over), verdict(over))


def _difference(over: Paired) -> str:
    return with_error(over.diff, over.se, sign=True)


def _row(one: Gain) -> tuple[str, Cell, str, str, str, Cell]:
    kept, of_expert = (percent(share) or "–" for share in (one.kept, one.of_expert))
    return one.task, _over(one.over_base), one.expert, kept, of_expert, _over(one.over_expert)


def _matrix(beside: Beside) -> dict[str, Any]:
    """Return every model on every task; the best expert of a task is told apart."""
    result, held = beside.result, beside.held_out
    parts = [(result, beside.worth), *([(held, beside.worth.held_out)] if held and beside.worth.held_out else [])]
    names = [BASE, *beside.experts, *([ENSEMBLE] if ENSEMBLE in result.models else []), WINNER]
    labels = {name: f"expert {name}" for name in beside.experts}
    rows = [
        (
            marked(name, result.marks, labels.get(name)),
            name == WINNER,
            with_error(result.models[name].mean, result.models[name].se),
            [
                (number(part.models[name].tasks.get(task), 3), one.best == name)
                for part, worth in parts
                for task, one in worth.tasks.items()
            ],
        )
        for name in names
    ]
    what = f"{metric(title(result.metric, result.measures))} on {result.items} report items"
    columns = [heading(task, beside.measures) for task in beside.worth.tasks]
    if held:
        what += f", and on {held.items} of tasks that were held out, which no mean counts"
        columns += [apart(heading(task, beside.measures)) for task in held.models[WINNER].tasks]
    notes = mark_lines({name: result.marks[name] for name in names if name in result.marks}, labels)
    return {"columns": columns, "rows": rows, "what": what, "notes": notes}


def _again(facts: RunFacts, beside: Beside) -> list[str]:
    """Say where the winner has another score in this table than in the report."""
    here, there = beside.result.models[WINNER].mean, facts.summary.winner.mean if facts.summary else None
    if here is None or there is None or number(here) == number(there):
        return []
    return [f"The winner was scored anew for this table, with {number(here)} where the report has {number(there)}."]


def _curve(result: Comparison, whole: Around) -> Chart:
    """Return the value of a winner by the factor of all its weights, with its error beside that of the winner."""
    known = [(point, point.score.mean) for point in whole.points if point.score.mean is not None]
    of = metric(negated(title(result.metric, result.measures), result.forgetting.tasks if result.forgetting else ()))
    x = axis([point.factor for point in whole.points], "all weights times", pad=0.04)
    reach = [value + way * (point.over.se or 0.0) for point, value in known for way in (-1, 1)]
    y = axis(reach, of)
    level = next(value for point, value in known if point.factor == 1)
    marks = [
        Mark(
            *(x.at(point.factor), up(y, value), "winner" if point.factor == 1 else "dot"),
            f"times {point.factor:g}: {number(value)}, {_difference(point.over)} beside the winner",
        )
        for point, value in known
    ]
    errors = "".join(
        f"M{x.at(point.factor)} {up(y, value - point.over.se)}V{up(y, value + point.over.se)}"
        for point, value in known
        if point.over.se
    )
    lines = [Line(joined([(point.factor, value) for point, value in known], x, y), "thin")]
    lines += [Line(errors, "error")] if errors else []
    factors = ", ".join(f"{point.factor:g}" for point, _ in known)
    words = f"{of} of the winner with all its weights times {factors}; {number(level)} as it is."
    legend = [("winner", "the winner"), ("dot", "its weights scaled"), ("error", "standard error of the difference")]
    rules = [Rule(up(y, level), "winner", f"winner: {number(level)}")]
    return Chart(x, y, words, marks, lines, rules, legend, height=220)
