"""Selection and honest numbers: which incumbent wins, and what it is worth on items that nothing has looked at.

In: per-item outcomes of models on the select and the report split. Out: scores with standard errors, and paired
differences on the same items. The loop never picks its own winner: the finalists (the searcher's incumbents) are scored
on the select split, the best of them is the winner, and it is scored once on the report split beside the best constant
(itself chosen on select), the experts and the base; tasks that were held out of the search are scored then, too.

Standard errors: of a task's mean, s/√n over its items; of the weighted mean over tasks, √Σ w² se²; of a difference, the
same on per-item differences.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.objectives import Objective, can_normalise
from evomerge.search.evaluators.dropping import Items
from evomerge.search.evaluators.scoring import check_finite
from evomerge.searchers.base import Incumbent
from evomerge.selection.dropping import FEW, FIRST, LOOKS, along, blocks
from evomerge.selection.forgetting import Forgetting, forgetting_of, taken
from evomerge.selection.front import Front
from evomerge.selection.judge import Judge
from evomerge.selection.limits import Limits, lacks_of, missed_of
from evomerge.selection.racing import Chosen, choose
from evomerge.selection.reporting import alike, differences, held_out_of, needed, reported, rescored_of, rows_of
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.summary import HeldOut, Rescored, Selected

logger = logging.getLogger(__name__)

CONSTANTS = (*(round(0.1 * i, 1) for i in range(1, 16)), 2.0, 2.5, 3.0, 4.0, 5.0, 7.0, 10.0)
"""The constants among which the best one is chosen, those within the bounds of the weight. Those above 1.5 are for
spectral transforms, which are often best there (experiments/methods)."""
TAKEN_AWAY = tuple(round(0.05 * i, 2) for i in range(-20, 1))
"""The same where something is to be forgotten: Ilharco et al. (2023, section 3) try these sizes, of the task vectors
of what is to be forgotten alone.
"""


@dataclass(frozen=True)
class Selection:
    """What the selection found: the entries of a `Summary` that have the same names, and the winner's coefficients.

    Attributes:
        coefficients: variable -> float64 (G, K).
    """

    report: dict[str, Score]
    paired: dict[str, Paired]
    alike: list[str]
    metric: str
    select: Selected
    rescored: Rescored | None
    coefficients: Mapping[str, np.ndarray]
    held_out: HeldOut | None = None
    forgetting: Forgetting | None = None
    limits: Limits | None = None
    front: Front | None = None


def select(judge: Judge, goal: Goal, incumbents: Mapping[str, Incumbent]) -> Selection:
    """Choose the winner on the select split and score it once on the report split, beside what it must beat.

    What decides is the search's own objective on the report metric: with `aggregate=worst`, the worst task. The best
    constant, as far as the space allows it, is a finalist as well, so that nobody is handed less for want of it.

    Args:
        judge: scores models on the two splits.
        goal: of the search.
        incumbents: the searcher's finalists by name.

    Raises:
        EvomergeError: no finalist could be scored, or one of the models of the report cannot be.
        Stopped: the run was asked to stop; what was scored is remembered.
    """
    metric, judged = goal.report_metric, judge.ids["select"]
    objective, weights = objective_of(judge, goal), goal.counts(judged)
    finalists = {name: judge.decode(one.x) for name, one in incumbents.items()}
    tried = constants_within(*judge.bounds, bool(goal.forget))
    constants = {str(constant): judge.constant(constant) for constant in tried}
    flat = _best(judge, constants, objective, along(tried))
    remember_whole(judge, constants, flat)
    constant = flat.name
    named = f"constant {constant}{taken(judge.negated)}"
    finalists[named] = judge.within(float(constant))  # the last in line: it wins only if it is better
    known = {named: flat.outcomes[constant]}
    if not judge.same(finalists[named], constants[constant]):  # the space cannot express it
        known = {}
    best = _best(judge, finalists, objective, known=known)
    remember_whole(judge, finalists, best)
    winner = best.name
    trials = {name: incumbents[name].trial if name in incumbents else None for name in finalists}
    merges = {
        "best_constant": (f"the best constant ({constant}{taken(judge.negated)})", constants[constant]),
        "winner": (f"the winner ({winner})", finalists[winner]),
    }
    outcomes = reported(judge, merges, "report", metric)
    kept = None
    if objective.base is not None and goal.forget:
        kept = next(condition.kept(best.outcomes[winner], objective.base) for condition in objective.conditions)
    return Selection(
        report=rows_of(outcomes, metric, weights),
        paired=differences(outcomes, metric, weights),
        alike=[name for name in outcomes if name != "winner" and alike(outcomes[name], outcomes["winner"], metric)],
        metric=metric,
        select=Selected(winner, best.values, constant, flat.values, {**flat.seen, **best.seen}, trials),
        rescored=rescored_of(judge, finalists[winner], outcomes["winner"], goal),
        coefficients=finalists[winner],
        held_out=held_out_of(reported(judge, merges, HELD_OUT, metric), metric) if HELD_OUT in judge.ids else None,
        forgetting=forgetting_of(outcomes, outcomes["base"], metric, goal, kept, judge.negated),
        limits=_limits(goal, objective, best.outcomes[winner], outcomes),
    )


def _best(
    judge: Judge,
    merges: Mapping[str, Mapping[str, np.ndarray]],
    objective: Objective,
    line: bool = False,
    known: Mapping[str, Outcome] | None = None,
) -> Chosen:
    """Choose the best of some merges on the select split; constants lie along a line, and outcomes may be known."""

    def score(name: str, part: Items) -> Outcome:
        return judge.merged(merges[name], "select", part)

    def begin(asked: Iterable[tuple[str, Items]]) -> None:
        judge.begin((merges[name], "select", part) for name, part in asked)

    return choose(merges, score, objective, judge.ids["select"], begin, line, known)


def _limits(goal: Goal, objective: Objective, select: Outcome, outcomes: Mapping[str, Outcome]) -> Limits | None:
    """Return what the winner makes of constraints; None where there are none.

    Args:
        goal: of the search.
        objective: on the select items.
        select: the winner there.
        outcomes: base and winner on the report split.
    """
    if objective.base is None or not goal.constraints:
        return None
    here = lacks_of(objective.conditions, select, objective.base)
    there = goal.conditions(outcomes["base"].results)
    missed = missed_of(objective.conditions, select, objective.base)
    return Limits(goal.constraints, here, lacks_of(there, outcomes["winner"], outcomes["base"]), goal.sure, missed)


def remember_whole(judge: Judge, candidates: Mapping[str, Mapping[str, np.ndarray]], chosen: Chosen) -> None:
    """Remember those that were scored on all select items, for whoever asks for them on all at once."""
    for name, outcome in chosen.outcomes.items():
        judge.remember(candidates[name], "select", outcome)
    judge.scored(chosen.spared)


def work(bounds: tuple[float, float], incumbents: int, sizes: Mapping[str, int], goal: Goal | None = None) -> int:
    """Return on how many items `select` scores models, in all, if it drops none of them; or `select_front`, which does
    not, if all finalists are points.

    Args:
        bounds: of the weight.
        incumbents: how many the searcher hands over.
        sizes: the items of each split.
        goal: of the search; base and experts, or the base, may have to be scored on the select split as well.
    """
    ends, forget = (2 * goal.normalised, bool(goal.forget)) if goal else (0, False)
    base = forget or bool(goal and goal.constraints)
    models = len(constants_within(*bounds, forget)) + incumbents + 1 + ends + base
    held_out = 4 * sizes.get(HELD_OUT, 0)  # base, experts, best constant and winner
    if goal and goal.several:
        return (models - base + 2) * sizes["select"] + (incumbents + 4) * sizes["report"] + held_out
    return models * sizes["select"] + 4 * sizes["report"] + held_out


def merges(bounds: tuple[float, float], incumbents: int, sizes: Collection[int], goal: Goal | None = None) -> int:
    """Return how many times `select` merges models, in all, if it drops none of them: anew for each block of items.

    Args:
        bounds: of the weight.
        incumbents: how many the searcher hands over.
        sizes: the number of select items of each task; none where nothing is dropped.
        goal: of the search.
    """
    forget = goal is not None and bool(goal.forget)
    reported = 2 + incumbents * bool(goal and goal.several)  # the best constant, and the winner or all points
    looks = blocks(sizes)
    if sum(sizes) >= FEW and looks > FIRST:  # by blocks, or after the first ones by activity
        looks = max(looks, FIRST + LOOKS + 2)
    return (len(constants_within(*bounds, forget)) + incumbents + 1) * looks + reported


def objective_of(judge: Judge, goal: Goal) -> Objective:
    """Return what decides on the select split: the objective of the search, on the metric of the report."""
    metric, judged, ends, known = goal.report_metric, judge.ids["select"], None, None
    if goal.forget or goal.constraints:
        with needed("the base", "select"):
            known = judge.base("select")
            check_finite(known, metric)
    if goal.normalised:
        with needed("the base, or an expert,", "select"):
            outcomes = judge.base("select"), judge.experts("select")
            for outcome in outcomes:
                check_finite(outcome, metric)
        base, experts = (outcome.scores() for outcome in outcomes)
        gains = {task: (base[task][metric], experts[task][metric]) for task in experts}
        if flat := [task for task, (low, high) in gains.items() if not can_normalise(low, high)]:
            logger.warning(
                "The winner is chosen by scores that are not normalised: on the select items the expert of %s is "
                "hardly better than the base.",
                ", ".join(flat),
            )
        ends = None if flat else gains
    return goal.objective(metric, judged, ends, known, goal.sure)


def constants_within(low: float, high: float, forget: bool = False) -> list[float]:
    """Return the constants to try: those that people try, within the bounds; else some within the bounds.

    Args:
        low: the lowest weight.
        high: the highest.
        forget: whether something is to be forgotten.
    """
    tried = TAKEN_AWAY if forget else CONSTANTS
    return [c for c in tried if low <= c <= high] or np.linspace(low, high, 15).tolist()
