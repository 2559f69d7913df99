"""The report of a selection: the models that a winner is held against, and itself, on the report split.

In: the judge, and merges by name. Out: their outcomes, each scored once; rows of scores, and paired differences; what
is true of tasks that were held out, and of the winner in the dtype of the checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import numpy as np

from evomerge.common.errors import EvomergeError, LiveModelError
from evomerge.fitness.base import Outcome
from evomerge.fitness.goal import Goal
from evomerge.fitness.items import HELD_OUT
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.stopping import Stopped
from evomerge.selection.judge import Asked, Judge
from evomerge.selection.statistics import Paired, Score, paired, score_of
from evomerge.selection.summary import GAIN, OVER, OVER_EXPERTS, HeldOut, Rescored


def reported(
    judge: Judge, merges: Mapping[str, tuple[str, Mapping[str, np.ndarray]]], split: str, metric: str
) -> dict[str, Outcome]:
    """Score the models of a report, each of them once.

    Args:
        judge: scores them.
        merges: by name, what each is and its coefficients; base and experts come before them.
        split: the report split, or the tasks that were held out.
        metric: in which they need numbers.
    """
    models: dict[str, tuple[str, Callable[[], Outcome]]] = {
        "base": ("the base", lambda: judge.base(split)),
        "experts": ("the experts", lambda: judge.experts(split)),
        **{name: (what, partial(judge.merged, merge, split)) for name, (what, merge) in merges.items()},
    }
    ends: list[Asked] = [("base", split, None), ("experts", split, None)]
    judge.begin([*ends, *((merge, split, None) for _, merge in merges.values())])
    outcomes = {}
    for name, (what, score) in models.items():
        with needed(what, split):
            outcomes[name] = score()
            check_finite(outcomes[name], metric)
    return outcomes


def rows_of(outcomes: Mapping[str, Outcome], metric: str, weights: Mapping[str, float] | None) -> dict[str, Score]:
    """Return the scores of the models of a report; experts are left out where no task has one."""
    report = {name: score_of(outcome, metric, weights) for name, outcome in outcomes.items() if outcome.results}
    if set(outcomes["experts"].results) != set(outcomes["base"].results) and "experts" in report:
        # a mean over fewer tasks would stand beside means over all
        report["experts"] = replace(report["experts"], mean=None, se=None)
    return report


def differences(outcomes: Mapping[str, Outcome], metric: str, weights: Mapping[str, float] | None) -> dict[str, Paired]:
    """Return what the winner of a report is above the best constant, the base, and each task's own expert: that without
    a mean where a task has none, and left out where all have none.
    """
    winner = outcomes["winner"]
    over = {GAIN: "best_constant", OVER: "base"}
    found = {name: paired(winner, outcomes[other], metric, weights) for name, other in over.items()}
    experts = outcomes["experts"]
    if not experts.results:
        return found
    own = Outcome(
        {task: winner.items[task] for task in experts.results}, {task: winner.results[task] for task in experts.results}
    )
    over_experts = paired(own, experts, metric, weights)
    if own.results.keys() != winner.results.keys():
        over_experts = replace(over_experts, diff=None, se=None)
    return {**found, OVER_EXPERTS: over_experts}


def held_out_of(outcomes: Mapping[str, Outcome], metric: str) -> HeldOut:
    """Return the scores on tasks that the search never saw: each counts the same there."""
    winner = outcomes["winner"]
    differences = {
        GAIN: paired(winner, outcomes["best_constant"], metric),
        OVER: paired(winner, outcomes["base"], metric),
    }
    return HeldOut(rows_of(outcomes, metric, None), differences)


def rescored_of(judge: Judge, winner: Mapping[str, np.ndarray], known: Outcome, goal: Goal) -> Rescored | None:
    """Score the winner once more, in the dtype of the checkpoint; what goes wrong there takes nothing from it."""
    if judge.other is None:
        return None
    metric, weights = goal.report_metric, goal.counts(known.results)
    try:
        outcome = judge.as_written(winner)
        check_finite(outcome, metric)
    except Stopped:
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        return Rescored(*judge.other, error=f"{type(error).__name__}: {error}".splitlines()[0])
    return Rescored(*judge.other, score_of(outcome, metric, weights), paired(outcome, known, metric, weights))


@contextmanager
def needed(what: str, split: str) -> Iterator[None]:
    """Say which model failed where the result cannot do without it, and what is left to do.

    Args:
        what: the model.
        split: whose items it is scored on.

    Raises:
        EvomergeError: it failed.
    """
    try:
        yield
    except (Stopped, TimeoutError, LiveModelError):  # `run.py` explains these, or they do so themselves
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        where = "tasks that are held out" if split == HELD_OUT else f"{split} split"
        raise EvomergeError(
            f"There is no result, since {what} cannot be scored on the {where}: {type(error).__name__}: "
            f"{str(error).rstrip('.')}. The trial log is whole: if the reason lies outside of the fitness, mend it and "
            f"run the same command again, which goes on from here. A fitness with other code is another search: give "
            f"it another hydra.run.dir; `evomerge export RUN --best` writes what this one has found."
        ) from error


def alike(one: Outcome, other: Outcome, metric: str) -> bool:
    """Return whether two models have the same result on every item."""
    if one.results.keys() != other.results.keys():
        return False
    return all(np.array_equal(one.results[task][metric], other.results[task][metric]) for task in one.results)
