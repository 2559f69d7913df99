"""What the page of several runs shows: facts of each in, one context for the template out.

Runs are in the order of the select split: by the report split one would choose on it, and its numbers would no longer
be honest.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any
from urllib.parse import quote

from evomerge.report.bars import Value, bars
from evomerge.report.charts import Chart, overlay
from evomerge.report.concerns import concerns
from evomerge.report.facts import RunFacts
from evomerge.report.grids import CoefficientMap, grids
from evomerge.report.scales import shade
from evomerge.report.wording import deciding, metric, number, verdict, with_error

COLOURS, LINES = 6, 12
"""How many runs have a line of their own: that many colours, drawn through and dashed."""
SHOWN = 3
"""Of how many of the best runs the coefficients are drawn."""


def ranked(facts: Sequence[RunFacts]) -> list[RunFacts]:
    """Return the runs that have a winner, by what it reached on the select split, best first."""
    return sorted((one for one in facts if one.summary is not None), key=lambda one: -selected(one))


def selected(facts: RunFacts) -> float:
    """What the winner of a run reached on the select split."""
    assert facts.summary is not None
    return facts.summary.select.value


def short_names(facts: Sequence[RunFacts]) -> dict[str, str]:
    """Return the runs' names without the words that all of them begin with."""
    words = {one.name: one.name.split("-") for one in facts}
    together = zip(*words.values(), strict=False) if len(words) > 1 else ()
    common = len(list(takewhile(lambda same: len(set(same)) == 1, together)))
    return {name: "-".join(parts[common:]) or name for name, parts in words.items()}


def sweep_context(
    facts: Sequence[RunFacts], file: Path
) -> tuple[dict[str, Any], list[tuple[str, list[CoefficientMap]]]]:
    """Return what the template of a sweep shows, and the coefficients of the best runs by name.

    Args:
        facts: of each run.
        file: where the page will be, to which links are relative.
    """
    names, order = short_names(facts), ranked(facts)
    best = [(names[one.name], grids(one)) for one in order[:SHOWN]]
    pairs = [(one, grid.variable) for one, (_, found) in zip(order, best, strict=False) for grid in found]
    variables = list(dict.fromkeys(variable for _, variable in pairs))
    drawn = []
    for variable in variables:
        mine = [(name, grid) for name, found in best for grid in found if grid.variable == variable]
        centres = {grid.centre for _, grid in mine}
        scale = shade([x for _, grid in mine for x in grid.values], centres.pop() if len(centres) == 1 else None)
        drawn.append((variable, scale, mine))
    context = {
        "title": f"{len(facts)} searches",
        "where": file.resolve().parent.name,
        "headline": _headline(order, len(facts), names),
        "concerns": _concerns(facts, order),
        "rows": [_row(one, names, file) for one in order],
        "open": [
            (one.name, _link(one, file), f"{one.done:,}", f"{one.settings['budget']:,}")
            for one in facts
            if one not in order
        ],
        "metric": metric(order[0].measured) if order else "",
        "forest": _forest(order, names),
        "overlays": _overlays(order or list(facts), names),
        "heats": drawn,
    }
    return context, best


def _headline(order: Sequence[RunFacts], count: int, names: dict[str, str]) -> tuple[str, str]:
    if not order:
        return "No search has ended yet.", "There is nothing to compare before the first winner is scored."
    first = order[0].summary
    assert first is not None
    words = [verdict(one.summary.gain) for one in order if one.summary]
    tally = f"{words.count('better')} of {len(words)} searches found a merge that beats its best constant"
    if worse := words.count("worse"):
        tally += f", {worse} a worse one"
    diff = first.gain.diff
    gap = f"{with_error(abs(diff), first.gain.se)} {'above' if diff >= 0 else 'below'}" if diff is not None else ""
    return f"{tally}.", (
        f"That is by two standard errors or more on the report items. Best on the select split is "
        f"{names[order[0].name]}: its {metric(order[0].measured)} on {first.items['report']:,} report items is "
        f"{with_error(first.winner.mean, first.winner.se)}, "
        f"{gap or 'which cannot be held against'} that of the best constant on the same items."
    )


def _concerns(facts: Sequence[RunFacts], order: Sequence[RunFacts]) -> list[str]:
    found = []
    if waiting := [one.name for one in facts if one.summary is None]:
        found.append(f"{len(waiting)} of {len(facts)} runs have no winner yet: {', '.join(waiting)}.")
    if several := [one.name for one in order if one.front]:
        found.append(
            f"{len(several)} of the searches have several values: their winner is the point of the front that was "
            f"chosen, and its number here is the mean over all tasks, which is none of its values. Their pages show "
            f"the fronts."
        )
    judged = {
        json.dumps([one.report_metric, list(one.forget), one.summary.items["report"], dict(one.summary.base.tasks)])
        for one in order
        if one.summary
    }
    if len(judged) > 1:
        found.append(
            "The runs were not all judged on the same report items with the same metric: the base itself scores "
            "differently. Compare a winner with its own best constant, and not with other runs."
        )
    for one in order:
        if texts := concerns(one, grids(one)):
            more = f" And {len(texts) - 1} more on its page." if len(texts) > 1 else ""
            found.append(f"{one.name}: {texts[0]}{more}")
    return found


def _link(facts: RunFacts, file: Path) -> str:
    page = facts.run.path.resolve() / "report.html"
    return quote(os.path.relpath(page, file.resolve().parent).replace(os.sep, "/"))


def _row(facts: RunFacts, names: dict[str, str], file: Path) -> dict[str, str]:
    summary = facts.summary
    assert summary is not None
    return {
        "name": names[facts.name],
        "link": _link(facts, file),
        "select": number(selected(facts)),
        "winner": with_error(summary.winner.mean, summary.winner.se),
        "difference": with_error(summary.gain.diff, summary.gain.se, sign=True),
        "verdict": verdict(summary.gain),
        "constant": f"{number(summary.best_constant.mean)} ({summary.constant})",
        "trials": f"{summary.trials:,}" + (f", {summary.failed:,} failed" if summary.failed else ""),
    }


def _forest(order: Sequence[RunFacts], names: dict[str, str]) -> Any:
    values = []
    for one in order:
        assert one.summary is not None
        if one.summary.gain.diff is not None:
            values.append(Value(names[one.name], "run", one.summary.gain.diff, one.summary.gain.se))
    return bars([("Winner − best constant", values)], "difference", sign=True) if values else None


def _goes_by(facts: RunFacts) -> str:
    """What a search of one value goes by, with the weights of tasks: other weights make another number."""
    worst = facts.aggregate == "worst"
    text = f"{'worst task’s ' * worst}{deciding(facts, facts.metric)}"
    weights = {} if worst else facts.settings["objective"]["weights"] or {}
    said = ", ".join(f"{task} {weight:g}" for task, weight in weights.items())
    return f"{text}, weighed {said}," if said else text


def _overlays(order: Sequence[RunFacts], names: dict[str, str]) -> list[tuple[str, Chart]]:
    """Return a drawing for each quantity that runs have in common: the metric of their searches, or a loss."""
    kinds = {one.name: "run" for one in order}
    for i, one in enumerate(order[:LINES]):
        kinds[one.name] = f"s{i % COLOURS + 1}" + (" dashed" if i >= COLOURS else "")
    found: dict[str, list[tuple[str, str, list[tuple[int, float]]]]] = {}
    for one in order:
        if one.losses:
            title = f"{one.loss}, mean of the last ten steps"
            found.setdefault(title, []).append((names[one.name], kinds[one.name], one.smooth_losses))
        if one.by_value and not one.value_names:
            title = f"best {_goes_by(one)} so far"
            found.setdefault(title, []).append((names[one.name], kinds[one.name], one.best_so_far))
    return [(t[0].upper() + t[1:], overlay(lines, stairs=t.endswith("so far"))) for t, lines in found.items()]
