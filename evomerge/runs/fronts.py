"""What people read of a front: its tables, lines below them, and what the recipe of a point says of its worth.

In: the summary of a search with several values. Out: tables, sentences, plain data. Reports of finished runs are made
of it, so it loads no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.shown import Shown
from evomerge.runs.directory import Run
from evomerge.selection.front import Front, FrontPoint
from evomerge.selection.limits import Limits, lacking_of, said_of, unsure_of
from evomerge.selection.statistics import Paired, Score, plus_minus
from evomerge.selection.summary import Summary

POINT = "point_"
"""Before the number of a point."""


def front_tables(summary: Summary) -> list[Shown]:
    """Return the table of a front, and that of what each point gains over the best constant; none where there is one
    value.
    """
    front = summary.front
    if front is None:
        return []
    columns = ["", *(titled(front, name) for name in front.values)]
    items = summary.items["report"]
    where = f"the front of the search: {len(front.points)} points on {items} report items that it never saw"
    models = {**held_against(front), **{named(front, point): point for point in front.points}}
    rows = [[label, *(score_text(one.report.get(name)) for name in front.values)] for label, one in models.items()]
    over = {named(front, point): point.over for point in front.points}
    missed = [f"{point.name}: {said}" for point in front.points if (said := missed_of(summary.limits, point))]
    return [
        Shown(
            f"{where}; {better(front)}",
            columns,
            rows,
            missed,
        ),
        Shown(
            f"the same minus the best constant ({summary.select.constant}), item by item; {better(front)}",
            columns,
            [[label, *(paired_text(row.get(name)) for name in front.values)] for label, row in over.items()],
        ),
    ]


def held_against(front: Front) -> dict[str, FrontPoint]:
    """Return the models that points are held against, by what people call them."""
    experts = dict.fromkeys(["experts, each on its own task"], front.experts[0]) if front.experts else {}
    return {"base": front.base, **experts, f"best {front.best_constant.name}": front.best_constant}


def front_lines(summary: Summary) -> list[str]:
    """Return what is said below the tables of a front."""
    front = summary.front
    if front is None:
        return []
    volumes = front.hypervolume
    sure = summary.limits.surely if summary.limits else ""
    reasons = {
        "a point is better": front.dominated,
        "they violate constraints": front.violating,
        f"they hold constraints, but not{sure}": front.unsure,
    }
    out = [f"{len(those)} since {why}" for why, those in reasons.items() if those]
    lines = [
        f"the winner is {front.chosen}, by {front.rule}; `evomerge export RUN --point 1` writes another one",
        f"hypervolume {volumes['report']:.4g} on report, {volumes['select']:.4g} on select, where all constants cover "
        f"{volumes['constants']:.4g}{f', of models that hold the constraints{sure}' if sure else ''}",
    ]
    fell = [f"of the finalists fell out {', '.join(out)}"] if out else []
    return lines + fell + ([front.trades.said] if front.trades else [])


def gains_of(front: Front) -> str:
    """Return the paired difference of the chosen point to the best constant in each value, as a line."""
    each = [f"{name} {paired_text(front.winner.over.get(name)) or 'unknown'}" for name in front.values]
    return f"winner ({front.chosen}) - best {front.best_constant.name}: {', '.join(each)} (paired)"


def better(front: Front) -> str:
    """Return which scores are good."""
    if not front.minimised:
        return "higher is better"
    return f"higher is better, but lower in {', '.join(front.minimised)}"


def titled(front: Front, name: str) -> str:
    """Return the name of a value, with its metric where values have different ones."""
    return f"{name} ({front.metrics[name]})" if len(set(front.metrics.values())) > 1 else name


def named(front: Front, point: FrontPoint) -> str:
    """Return what a point is called, whether it is a constant, and whether it was chosen."""
    constant = f", {point.finalist}" if point.finalist.startswith("constant ") else ""
    return f"{point.name}{constant}{', the winner' if point.name == front.chosen else ''}"


def missed_of(limits: Limits | None, point: FrontPoint) -> str:
    """Return what a point lacks of the constraints on either split; nothing if it holds all."""
    if limits is None:
        return ""
    splits = {
        "select": lacking_of(limits, point.lacks, point.missed),
        "report": said_of(limits.wanted, point.violations),
    }
    return "; ".join(f"{said} on {split}" for split, said in splits.items() if said)


def score_text(score: Score | None) -> str:
    """Return a score for a table; nothing for one that is not there."""
    return "" if score is None else plus_minus(score.mean, score.se)


def paired_text(difference: Paired | None) -> str:
    """Return a difference for a table; nothing for one that is not there."""
    return "" if difference is None else plus_minus(difference.diff, difference.se, "+")


def find_point(run: Run, name: str) -> FrontPoint:
    """Return a point of a run's front.

    Args:
        run: the run.
        name: `3` or `point_3`.

    Raises:
        ConfigError: the search has no front, or not yet, or no such point.
    """
    front = run.summary.front if run.summary else None
    if run.summary is None:
        raise ConfigError(
            f"The search in {run.path} is not complete, so it has no front yet: run its command again to complete it, "
            f"or write --finalist NAME or --trial N."
        )
    if front is None:
        raise ConfigError(
            f"The search in {run.path} has one value, and so no front: leave --point out for its winner, or write "
            f"--finalist NAME or --trial N."
        )
    known = {point.name: point for point in front.points}
    if (full := name if name.startswith(POINT) else f"{POINT}{name}") not in known:
        what = "; ".join(f"{point.name} ({_values_of(front, point)})" for point in front.points)
        raise ConfigError(f"The front of {run.path} has no {full}. There are {what}.")
    return known[full]


def point_scores(summary: Summary, point: FrontPoint) -> dict[str, Any]:
    """Return what a recipe says of a point: which of the front it is, and its worth in each value beside others.

    Args:
        summary: of a search with several values.
        point: one of its front.
    """
    front = summary.front
    assert front is not None, "a point has a front"
    return {
        "point": point.name,
        "of": len(front.points),
        "finalist": point.finalist,
        "winner": front.chosen,
        "rule": front.rule,
        "values": {name: _value(front, point, name) for name in front.values},
        **({"constraints": dict(front.constraints)} if front.constraints else {}),
        **_lacks_of(summary.limits, point),
    }


def _lacks_of(limits: Limits | None, point: FrontPoint) -> dict[str, Any]:
    """Return how far a point violates constraints on each split; and by how many standard errors they had to hold on
    select, with those that do not.
    """
    if limits is None or not point.lacks:
        return {}
    found = {"violations": {"select": dict(point.missed or point.lacks), "report": dict(point.violations)}}
    return {**found, "sure": limits.sure, "unsure": unsure_of(point.lacks, point.missed)} if limits.sure else found


def recipe_scores(summary: Summary, point: FrontPoint) -> dict[str, Any]:
    """Return the scores of the recipe of a point that was not chosen."""
    return {
        "point": point.name,
        "note": "a point of the front, and not the winner; scored once on the report split",
        "metric": summary.metric,
        "split": "report",
        "items": summary.items["report"],
        "trials": summary.trials,
        "front": point_scores(summary, point),
    }


def _value(front: Front, point: FrontPoint, name: str) -> dict[str, Any]:
    """Return what a point is worth in one value, and the others beside it."""
    others: Mapping[str, Score | None] = {
        "base": front.base.report.get(name),
        "experts": front.experts[0].report.get(name) if front.experts else None,
        "best_constant": front.best_constant.report.get(name),
    }
    scores = {model: {"mean": score.mean, "se": score.se} for model, score in others.items() if score}
    own, over = point.report[name], asdict(point.over[name])
    return {
        "metric": front.metrics[name],
        "better": "lower" if name in front.minimised else "higher",
        "mean": own.mean,
        "se": own.se,
        **scores,
        "point_vs_best_constant": {"diff": over["diff"], "se": over["se"]},
    }


def _values_of(front: Front, point: FrontPoint) -> str:
    means = {name: point.report[name].mean for name in front.values}
    return ", ".join(f"{name} {'unknown' if mean is None else f'{mean:.4f}'}" for name, mean in means.items())
