"""The selection of a search with several values: a front of finalists, one of them chosen, each scored once on report.

In: the judge, the goal and the searcher's finalists. Out: a `Selection` with its `Front`. All models are scored on all
select items. Finalists that another one dominates there fall out, and so do those that violate a constraint, as long
as one holds all of them (`searchers/domination.py`). One of the points that are left is chosen by the rule that the
user named beforehand (`rules.py`). The best constant is the one that this rule chooses among the constants, with the
same care. Each point is then scored once on the report split.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

import numpy as np

from evomerge.common.errors import EvomergeError, LiveModelError
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.objectives import Objective
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.stopping import Stopped
from evomerge.searchers.base import Incumbent
from evomerge.searchers.domination import ranks
from evomerge.selection.choosing import Selection, constants_within
from evomerge.selection.front import Front, FrontPoint
from evomerge.selection.judge import Judge
from evomerge.selection.limits import Limits, violated
from evomerge.selection.points import Scale
from evomerge.selection.reporting import alike, differences, held_out_of, needed, reported, rescored_of, rows_of
from evomerge.selection.rules import Rule, rule_of
from evomerge.selection.statistics import score_of
from evomerge.selection.summary import Selected
from evomerge.selection.valued import paired_on

logger = logging.getLogger(__name__)

Merge = Mapping[str, np.ndarray]
"""Coefficients by variable, (G, K)."""


@dataclass(frozen=True)
class _Judged:
    """Models on the select split: what could be scored, in the order of their names.

    Attributes:
        outcomes: by name.
        values: (n, m), to be maximised.
        lacks: (n, c), how far each constraint is violated.
        front: the names of those that no other one dominates.
        chosen: the name of the one that the rule chooses of these.
        met: whether it keeps what the rule asks for.
    """

    outcomes: Mapping[str, Outcome]
    values: np.ndarray
    lacks: np.ndarray
    front: Sequence[str]
    chosen: str
    met: bool


def select_front(judge: Judge, goal: Goal, incumbents: Mapping[str, Incumbent]) -> Selection:
    """Find the front of the finalists on the select split, choose one of its points, and score each on report.

    The best constant, as far as the space allows it, is a finalist as well, so that nobody is handed less for want of
    it.

    Args:
        judge: scores models on the two splits.
        goal: of the search, which has several values.
        incumbents: the searcher's finalists by name.

    Raises:
        EvomergeError: no finalist could be scored, or one of the models of the report cannot be.
        Stopped: the run was asked to stop; what was scored is remembered.
    """
    metric = goal.report_metric
    ends = _ends(judge, metric)
    objective = goal.objective(metric, judge.ids["select"], None, ends["base"], goal.sure)
    rule = rule_of(goal.choose, objective.values, ends["base"])
    constants = {str(constant): judge.constant(constant) for constant in constants_within(*judge.bounds)}
    flat = _judged(judge, constants, objective, rule)
    finalists = {name: judge.decode(one.x) for name, one in incumbents.items()}
    finalists[f"constant {flat.chosen}"] = judge.within(float(flat.chosen))
    found = _judged(judge, finalists, objective, rule)
    names = {f"point_{i}": name for i, name in enumerate(_in_order(found, finalists), 1)}
    merges = {
        "best_constant": (f"the best constant ({flat.chosen})", constants[flat.chosen]),
        **{name: (f"{name} of the front ({finalist})", finalists[finalist]) for name, finalist in names.items()},
    }
    outcomes = reported(judge, merges, "report", metric)
    judge.scored((len(finalists) - len(names)) * judge.sizes["report"])  # they need no report
    scale = Scale(objective, goal.objective(metric, judge.ids["report"], None, outcomes["base"]))
    points = _points(judge, scale, found, names, finalists, incumbents, outcomes)
    front = _front(goal, rule, scale, points, (flat, found), ends, outcomes)
    limits = _limits(goal, front)
    rows = {name: outcomes[name] for name in ("base", "experts", "best_constant")} | {"winner": outcomes[front.chosen]}
    weights, winner = goal.counts(judge.ids["select"]), finalists[found.chosen]
    apart = {"best_constant": merges["best_constant"], "winner": (f"the winner ({found.chosen})", winner)}
    return Selection(
        report=rows_of(rows, metric, weights),
        paired=differences(rows, metric, weights),
        alike=[name for name in rows if name != "winner" and alike(rows[name], rows["winner"], metric)],
        metric=metric,
        select=_selected(goal, found, flat, finalists, constants, incumbents),
        rescored=rescored_of(judge, winner, rows["winner"], goal),
        coefficients=winner,
        held_out=held_out_of(reported(judge, apart, HELD_OUT, metric), metric) if HELD_OUT in judge.ids else None,
        limits=limits,
        front=front,
    )


def _limits(goal: Goal, front: Front) -> Limits | None:
    """Return what the winner makes of constraints; None where there are none."""
    if not goal.constraints:
        return None
    winner = front.winner
    return Limits(goal.constraints, winner.lacks, winner.violations, goal.sure, winner.missed)


def _points(
    judge: Judge,
    scale: Scale,
    found: _Judged,
    names: Mapping[str, str],
    finalists: Mapping[str, Merge],
    incumbents: Mapping[str, Incumbent],
    outcomes: Mapping[str, Outcome],
) -> list[FrontPoint]:
    """Return the points of the front.

    Args:
        judge: knows coefficients by name.
        scale: makes scores of outcomes.
        found: the finalists on the select split.
        names: of the points -> what the searcher calls them.
        finalists: their coefficients.
        incumbents: the searcher's finalists.
        outcomes: points, best constant and experts on the report split.
    """
    values = scale.select.values
    return [
        replace(
            scale.point(name, found.outcomes[finalist], outcomes[name]),
            finalist=finalist,
            trial=incumbents[finalist].trial if finalist in incumbents else None,
            coefficients=judge.named(finalists[finalist]),
            over=paired_on(values, outcomes[name], outcomes["best_constant"]),
            experts=paired_on(values, outcomes[name], outcomes["experts"]),
        )
        for name, finalist in names.items()
    ]


def _front(
    goal: Goal,
    rule: Rule,
    scale: Scale,
    points: Sequence[FrontPoint],
    judged: tuple[_Judged, _Judged],
    ends: Mapping[str, Outcome],
    outcomes: Mapping[str, Outcome],
) -> Front:
    """Return the front with what it is held against.

    Args:
        goal: of the search.
        rule: by which a point was chosen.
        scale: makes scores of outcomes.
        points: of the front, in their order.
        judged: constants and finalists on the select split.
        ends: base and experts on the select split.
        outcomes: base, experts, best constant and points on the report split.
    """
    flat, found = judged
    best = {flat.chosen: outcomes["best_constant"]}
    constants = [scale.point(f"constant {name}", one, best.get(name)) for name, one in flat.outcomes.items()]
    base = scale.point("base", ends["base"], outcomes["base"])
    reference = scale.reference([base, *constants])
    lacking = {name for name, lacks in zip(found.outcomes, found.lacks, strict=True) if np.any(lacks > 0)}
    out = [name for name in found.outcomes if name in lacking and name not in found.front]
    unsure = [name for name in out if scale.unsure(found.outcomes[name])]
    of_select, of_report = attrgetter("select"), attrgetter("report")
    splits = {"select": (points, of_select), "report": (points, of_report), "constants": (constants, of_select)}
    return Front(
        values=list(scale.select.names),
        metrics={value.name: value.metric for value in scale.select.values},
        minimised=[value.name for value in scale.select.values if value.minimise],
        constraints=dict(goal.constraints),
        rule=rule.text,
        chosen=next(point.name for point in points if point.finalist == found.chosen),
        points=points,
        constants=constants,
        base=base,
        experts=[scale.point("experts", ends["experts"], outcomes["experts"])] if ends["experts"].results else [],
        reference=reference,
        hypervolume={
            split: scale.volume([row(one) for one in models if not violated(one.lacks)], reference)
            for split, (models, row) in splits.items()
        },
        dominated=[name for name in found.outcomes if name not in [*found.front, *out]],
        violating=[name for name in out if name not in unsure],
        unsure=unsure,
        met=found.met,
    )


def _selected(
    goal: Goal,
    found: _Judged,
    flat: _Judged,
    finalists: Mapping[str, Merge],
    constants: Mapping[str, Merge],
    incumbents: Mapping[str, Incumbent],
) -> Selected:
    """Return what was compared on the select split; the one number of each is its mean over the tasks."""

    def means(judged: _Judged, names: Iterable[str]) -> dict[str, float]:
        weights = goal.weights
        scores = {name: score_of(one, goal.report_metric, weights).mean for name, one in judged.outcomes.items()}
        return {name: -math.inf if (mean := scores.get(name)) is None else mean for name in names}

    seen = {name: sum(map(len, one.items.values())) for name, one in {**flat.outcomes, **found.outcomes}.items()}
    return Selected(
        winner=found.chosen,
        finalists=means(found, finalists),
        constant=flat.chosen,
        constants=means(flat, constants),
        seen={name: seen.get(name, 0) for name in (*constants, *finalists)},
        trials={name: incumbents[name].trial if name in incumbents else None for name in finalists},
    )


def _ends(judge: Judge, metric: str) -> dict[str, Outcome]:
    """Score base and experts on the select split."""
    judge.begin([("base", "select", None), ("experts", "select", None)])
    found = dict[str, Outcome]()
    for name, score in {"base": judge.base, "experts": judge.experts}.items():
        with needed(f"the {name}", "select"):
            found[name] = score("select")
            check_finite(found[name], metric)
    return found


def _judged(judge: Judge, merges: Mapping[str, Merge], objective: Objective, rule: Rule) -> _Judged:
    """Score merges on the select split, and find their front and which of it the rule chooses.

    Raises:
        EvomergeError: none could be scored.
    """
    judge.begin((merge, "select", None) for merge in merges.values())
    found = dict[str, tuple[Outcome, tuple[float, ...], tuple[float, ...]]]()
    for name, merge in merges.items():
        try:
            outcome = judge.merged(merge, "select")
            values, lacks = objective(outcome)
            if not all(map(math.isfinite, (*values, *lacks))):
                raise ArithmeticError(f"its values are {values}, not finite numbers")
            found[name] = outcome, values, lacks
        except (Stopped, LiveModelError):
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise: it costs this candidate
            logger.warning("%s could not be scored and is not chosen: %s: %s", name, type(error).__name__, error)
    if not found:
        raise EvomergeError(f"None of {', '.join(merges)} could be scored on the select split; the warnings say why.")
    outcomes = {name: outcome for name, (outcome, _, _) in found.items()}
    values = np.array([values for _, values, _ in found.values()], dtype=np.float64)
    lacks = np.array([lacks for _, _, lacks in found.values()], dtype=np.float64)
    front = np.flatnonzero(ranks(values, np.maximum(lacks, 0.0).sum(axis=1)) == 0)
    names = [list(outcomes)[i] for i in front]
    order = sorted(range(len(names)), key=names.__getitem__)  # of those that are equal in all, no order decides
    place, met = rule([outcomes[names[i]] for i in order], values[front[order]])
    return _Judged(outcomes, values, lacks, names, names[order[place]], met)


def _in_order(found: _Judged, finalists: Mapping[str, Merge]) -> list[str]:
    """Return the finalists of a front, the best first value first; of those that are one point, one: that which was
    chosen, if it is among them.
    """
    places, kept = {name: i for i, name in enumerate(found.outcomes)}, list[str]()
    for name in sorted(found.front, key=lambda name: name != found.chosen):
        if not any(_same(finalists[name], finalists[other]) for other in kept):
            kept.append(name)
    return sorted(kept, key=lambda name: (-found.values[places[name], 0], places[name]))


def _same(one: Merge, other: Merge) -> bool:
    return all(np.array_equal(one[variable], other[variable]) for variable in one)
