"""Methods held against each other: each with its own best constant on select, the best of them tested on report.

In: for each contestant, coefficients of a few constants; outcomes on both splits. Out: the constant that each chooses,
the order on the select split, and for the few best the paired difference to task arithmetic on the report split, with
chances corrected by Holm. Nobody else is scored on the report items, so there is nothing to choose from there.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from evomerge.common.errors import EvomergeError, LiveModelError
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.search.evaluators.dropping import Items
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.stopping import Stopped
from evomerge.selection.choosing import remember_whole
from evomerge.selection.dropping import along
from evomerge.selection.judge import Judge
from evomerge.selection.racing import choose
from evomerge.selection.standings import OnReport
from evomerge.selection.statistics import Numbers, holm, paired, score_of, two_sided

TESTED = 5
"""How many are tested on the report split: the best on select, task arithmetic apart."""


@dataclass(frozen=True)
class Entered:
    """What a contestant reached on the select split.

    Attributes:
        constant: the one that it chose.
        values: what each of its constants reached, as `racing.py` has it.
        seen: on how many items each was scored; fewer than all for one that was dropped, or like its neighbours.
        outcome: of the chosen one, on all items.
    """

    constant: float
    values: Numbers
    seen: Mapping[str, int]
    outcome: Outcome


def enter(judge: Judge, objective: Objective, constants: Mapping[float, Mapping[str, np.ndarray]]) -> Entered:
    """Choose the best of a contestant's constants on the select split; those that are clearly behind are dropped.

    Args:
        judge: scores its merges.
        objective: makes the value of an outcome, the same for all contestants.
        constants: the coefficients of each.

    Raises:
        EvomergeError: none of them could be scored; the message says why.
        Stopped: the run was asked to stop; what was scored is remembered.
    """
    coefficients = {f"{constant:g}": each for constant, each in constants.items()}
    why = ""

    def score(name: str, part: Items) -> Outcome:
        nonlocal why
        try:
            return judge.merged(coefficients[name], "select", part)
        except (Stopped, LiveModelError):
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise; `choose` says it, too
            why = f"{type(error).__name__}: {error}".splitlines()[0]
            raise

    def begin(asked: Iterable[tuple[str, Items]]) -> None:
        judge.begin((coefficients[name], "select", part) for name, part in asked)

    try:
        found = choose(coefficients, score, objective, judge.ids["select"], begin, along(list(constants)))
    except EvomergeError as error:
        if isinstance(error, LiveModelError) or not why:
            raise
        raise EvomergeError(f"no merge of it could be scored: {why}") from error
    remember_whole(judge, coefficients, found)
    values = {name: value if math.isfinite(value) else None for name, value in found.values.items()}
    return Entered(float(found.name), values, found.seen, found.outcomes[found.name])


def order(values: Mapping[str, float]) -> list[str]:
    """Return contestants by what they reached, the best first; equals, but for the rounding of a sum, stay in order."""
    return sorted(values, key=lambda name: -round(values[name], 12))


def finalists(ranked: Sequence[str], reference: str) -> list[str]:
    """Return the names of those that are tested on the report split.

    Args:
        ranked: all, the best on select first.
        reference: what they are held against.
    """
    return [name for name in ranked if name != reference][:TESTED]


def held_against(
    outcomes: Mapping[str, Outcome | str], reference: Outcome, metric: str, weights: Mapping[str, float] | None
) -> dict[str, OnReport]:
    """Return what the best are worth, and which of them differ from task arithmetic.

    Args:
        outcomes: of each on the report split; the reason, where there is none.
        reference: the outcome of task arithmetic on the same items.
        metric: of the scores.
        weights: of the tasks in their mean.
    """
    found: dict[str, OnReport] = {}
    for name, outcome in outcomes.items():
        if isinstance(outcome, str):
            found[name] = OnReport(error=outcome)
            continue
        difference = paired(outcome, reference, metric, weights)
        found[name] = OnReport(score_of(outcome, metric, weights), difference, two_sided(difference))
    corrected = holm({name: one.chance for name, one in found.items()})
    return {name: replace(one, corrected=corrected[name]) for name, one in found.items()}


def on_split(judge: Judge, coefficients: Mapping[str, np.ndarray] | None, split: str, metric: str) -> Outcome | str:
    """Score a merge, or the base (None), on a split; return the reason, where there is no score.

    Raises:
        Stopped: the run was asked to stop.
        LiveModelError: nothing more can be scored.
    """
    try:
        outcome = judge.base(split) if coefficients is None else judge.merged(coefficients, split)
        check_finite(outcome, metric)
    except (Stopped, LiveModelError):
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise: it costs this one
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return outcome
