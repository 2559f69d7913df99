"""May these models be averaged at all: the loss along the straight line between two of them.

In: a problem, and pairs of its models. Out: a `Curve` for each, at eleven points (1 - α) θ_A + α θ_B, all on the same
search items. The barrier is how far the loss rises above the straight line between the two ends (Frankle et al. 2020,
section 3; Garipov et al. 2018): models of one task without a barrier lie in one valley, and an average of them loses
nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.limits import TimeLimit
from evomerge.common.names import unknown
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import check_items
from evomerge.problem import Problem
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.selection.contenders import Contender, in_place
from evomerge.selection.evaluation import outcome_of
from evomerge.selection.statistics import paired, score_of
from evomerge.space.named import name_coefficients

BASE = "base"
ALPHAS = tuple(i / 10 for i in range(11))


@dataclass(frozen=True)
class Curve:
    """The loss along the line between two models.

    Attributes:
        one: the name of the first,
        other: and of the second.
        losses: at each of `ALPHAS`: minus the metric that a search maximises.
        barrier: how far the loss is above the straight line between its ends, where it is farthest; 0 if it never is.
        se: the standard error of that difference, paired; None where nobody knows, and where the loss is never above
            the line: the ends are on it by definition. It was taken where the barrier is highest, so the barrier is a
            little too high by chance.
        above_mean: the highest loss minus the mean of both ends.
    """

    one: str
    other: str
    losses: tuple[float, ...]
    barrier: float
    se: float | None
    above_mean: float

    @property
    def flat(self) -> bool:
        """Whether there is no barrier beyond two standard errors."""
        return self.barrier <= 2 * (self.se or 0.0)


def curves(
    problem: Problem, pairs: Iterable[tuple[str, str]], reporter: Progress, limit: TimeLimit | None = None
) -> list[Curve]:
    """Return the curve of each pair; the base is in the live model afterwards.

    Args:
        problem: base and experts, merged by `linear` without transforms.
        pairs: names of experts, or `base`.
        reporter: tells the user what goes on.
        limit: of the time that one point may take.

    Raises:
        ConfigError: a name that is none, a model beside itself, or another method.
        EvomergeError: a point has no score.
    """
    pairs = list(pairs)
    _check(problem, pairs)
    subset, goal = make_subsets(problem)["search"], problem.goal
    ids, score, limit = subset(0), live_fitness(problem, problem.items["search"]), limit or TimeLimit()
    check_items(problem.fitness, problem.live.model, score.prepared, ids, "search")
    timed = partial(limit.first, share=1.0)

    def outcome(one: str, other: str, alpha: float) -> Outcome:
        contender = _point(problem, one, other, alpha)
        found = outcome_of(contender, problem, score, ids, goal.metric, timed)
        if isinstance(found, str):
            raise EvomergeError(f"The line from {one} to {other} has no score at {alpha:g}: {found}")
        return found

    result = []
    with reporter.counting("scoring along straight lines", len(pairs) * len(ALPHAS)) as count:
        for one, other in pairs:
            found = []
            for alpha in ALPHAS:
                found.append(outcome(one, other, alpha))
                count(1)
            result.append(curve_of(one, other, found, goal.metric, goal.weights))
    return result


def curve_of(
    one: str, other: str, outcomes: Sequence[Outcome], metric: str, weights: Mapping[str, float] | None = None
) -> Curve:
    """Return what outcomes at `ALPHAS` say.

    Args:
        one: the model at 0.
        other: that at 1.
        outcomes: on the same items.
        metric: which is maximised; losses are minus it.
        weights: of the tasks.
    """
    losses = [-(score_of(each, metric, weights).mean or 0.0) for each in outcomes]
    chord = [
        paired(_between(outcomes, alpha, metric), each, metric, weights)
        for alpha, each in zip(ALPHAS, outcomes, strict=True)
    ]
    highest = int(np.argmax([difference.diff or 0.0 for difference in chord]))
    barrier = max(0.0, chord[highest].diff or 0.0)
    se = chord[highest].se if barrier else None
    return Curve(one, other, tuple(losses), barrier, se, max(losses) - (losses[0] + losses[-1]) / 2)


def _between(outcomes: Sequence[Outcome], alpha: float, metric: str) -> Outcome:
    """Return the results on the straight line between those of both ends, item by item."""
    first, last = outcomes[0], outcomes[-1]
    results = {
        task: {metric: (1 - alpha) * rows[metric] + alpha * last.results[task][metric]}
        for task, rows in first.results.items()
    }
    return Outcome(first.items, results)


def _point(problem: Problem, one: str, other: str, alpha: float) -> Contender:
    if alpha in (0.0, 1.0):
        name = other if alpha else one
        expert = None if name == BASE else name
        return in_place(partial(problem.become, expert), {"expert": expert} if expert else BASE, problem.contents)
    given = {one: 1 - alpha, other: alpha}
    coefficients = problem.space.constant(np.array([given.get(row, 0.0) for row in problem.space.rows]))
    named = name_coefficients(coefficients, problem.space.groups, problem.space.rows)
    return in_place(partial(problem.merger.apply, coefficients), named, problem.contents)


def _check(problem: Problem, pairs: Sequence[tuple[str, str]]) -> None:
    if problem.method.name != "linear" or problem.transforms:
        raise ConfigError("A straight line between models is a linear merge: leave out method= and transform=.")
    known = (BASE, *problem.vectors.rows)
    for pair in pairs:
        for name in pair:
            if name not in known:
                raise ConfigError(f"--curve: {unknown('model', name, known)}")
        if pair[0] == pair[1]:
            raise ConfigError(f"--curve {pair[0]}:{pair[1]} is one model twice: name two.")
