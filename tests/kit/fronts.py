"""Fronts made by hand, and runs that have one, for tests of reports and tables."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from evomerge.search.journal import read_log
from evomerge.selection.front import Front, FrontPoint
from evomerge.selection.limits import Limits
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.trades import Trade, Trades
from tests.kit.reports import EXPERTS, GROUPS, finish, write_run

LIMIT = {"news": ">= 0.98 * base"}


def front(
    values: Sequence[str] = ("reviews", "news"),
    points: int = 4,
    experts: Sequence[str] = EXPERTS,
    minimised: Sequence[str] = (),
    missed: float | None = None,
    lacks: float | None = None,
) -> Front:
    """Return a front on which more of the first value costs the others.

    Args:
        values: their names.
        points: how many.
        experts: whose coefficients the points have.
        minimised: the values of which less is better.
        missed: by how much every point misses the constraint on the second value; None where there is none.
        lacks: how far every point is from holding it by standard errors; None where it need not.
    """

    def scores(place: float, se: float | None = 0.01) -> dict[str, Score]:
        """From the best first value (0) to the best of the others (1)."""
        each = {name: 0.8 - 0.3 * place if i == 0 else 0.5 + 0.1 * i + 0.25 * place for i, name in enumerate(values)}
        return {name: Score(mean, se, {name: mean}, {name: se}) for name, mean in each.items()}

    def gains(place: float) -> dict[str, Paired]:
        return {name: Paired(0.05 - 0.1 * place * (-1) ** i, 0.02) for i, name in enumerate(values)}

    wanting = {} if missed is None else {"news": missed}
    lacking = wanting if lacks is None else {"news": lacks}
    found = [
        FrontPoint(
            f"point_{i + 1}",
            f"front_{i + 1}",
            (1, i) if i else None,
            {"weight": {g: {e: 0.1 * k + 0.2 * i for k, e in enumerate(experts)} for g in GROUPS}},
            scores(i / points),
            scores(i / points),
            lacking,
            wanting,
            gains(i / points),
            gains(i / points - 1),
            {} if lacks is None else wanting,
        )
        for i in range(points)
    ]
    constants = [FrontPoint(f"constant 0.{i}", select=scores(0.9), report={}, lacks=lacking) for i in (2, 4, 6)]
    constants[1] = replace(constants[1], report=scores(0.9))
    pairs = [Trade(values[0], values[1], -0.5, 0.1, -0.7)]
    return Front(
        values=list(values),
        metrics=dict.fromkeys(values, "accuracy"),
        minimised=list(minimised),
        constraints={} if missed is None else LIMIT,
        rule="the knee of the front",
        chosen="point_2",
        points=found,
        constants=constants,
        base=FrontPoint("base", select=scores(2.0), report=scores(2.0)),
        experts=[FrontPoint("experts", select=scores(0.0), report=scores(0.0))],
        reference=dict.fromkeys(values, 0.1),
        hypervolume={"select": 0.2, "report": 0.15, "constants": 0.1},
        dominated=["front_9"],
        unsure=[] if lacks is None else ["front_8"],
        trades=Trades(40, pairs, dict.fromkeys(values, 0.25)),
    )


def write_front(path: Path, found: Front | None = None, tasks: Sequence[str] | None = None, **more: Any) -> Path:
    """Write a run that has a front, made by hand.

    Args:
        path: the run directory.
        found: the front.
        tasks: of the search, each of them a value of its own; the values of the front when left out.
        more: of `write_run`.
    """
    found = front() if found is None else found
    path = write_run(path, "objective=pareto", tasks=tasks or found.values, several=True, **more)
    one = found.winner
    sure = 2.0 if one.missed else 0.0
    limits = Limits(found.constraints, one.lacks, one.violations, sure, one.missed) if found.constraints else None
    chosen = {
        "winner": found.winner.finalist,
        "finalists": {point.finalist: 0.6 for point in found.points} | {"front_9": 0.5},
        "constant": "0.4",
        "constants": {"0.2": 0.5, "0.4": 0.5, "0.6": 0.5},
    }
    marks = {"winner": limits.marks} if limits and limits.marks else {}
    changes: Mapping[str, Any] = {"select": chosen, "front": asdict(found), "limits": limits and asdict(limits)}
    return finish(path, **changes, marks=marks, doubts=limits.doubts if limits else [])


def trials_of(path: Path) -> list[dict[str, Any]]:
    """Return the trials in the log of a run."""
    return [line for line in read_log(path / "trials.jsonl") if line["kind"] == "trial"]


def summary_of(path: Path) -> dict[str, Any]:
    """Return the summary of a run as it stands in its file."""
    return json.loads((path / "summary.json").read_text())
