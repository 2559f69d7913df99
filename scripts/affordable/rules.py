"""Rules that rank the candidates of a generation by so many item evaluations.

To add one, add an entry to `RULES`: a function from a draw and a budget to a `Choice`. Where the budget suffices to
score all candidates on all items, every rule does that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from affordable.draws import RIGHT, Draw
from affordable.estimates import ESTIMATES, Estimate, by_both, by_probability
from affordable.samples import Growing, disagreement, even, stratified
from evomerge.search.evaluators.dropping import TOGETHER, Race


class Choice(NamedTuple):
    """Candidates, best first (n,), and the item evaluations that it took to say so."""

    order: np.ndarray
    spent: int


Rule = Callable[[Draw, int], Choice]
"""(draw, budget in item evaluations) -> choice."""


def everything(draw: Draw) -> Choice:
    """Rank by all answers."""
    return Choice(_ranked(draw.decides @ draw.known.shares), draw.whole)


def _ranked(values: np.ndarray, stages: np.ndarray | None = None) -> np.ndarray:
    """Return candidates by the stage that they came to, then by value; the earlier one of equals first."""
    values = np.round(values, 10)  # sums in another order end in other last bits
    return np.lexsort((-values, -(np.zeros(len(values)) if stages is None else stages)))


def of_all_alike(estimate: Estimate) -> Rule:
    """Return the rule that scores all candidates on the same items, as many as the budget allows."""

    def rule(draw: Draw, budget: int) -> Choice:
        size = sum(even(draw, budget // len(draw.rows)))
        return Choice(_ranked(estimate(draw, size)), size * len(draw.rows))

    return rule


def fewer_candidates(draw: Draw, budget: int) -> Choice:
    """Score as many candidates as the budget allows on all items; the others come after them, as they are drawn."""
    count = budget // draw.decides.shape[1]
    values = np.where(np.arange(len(draw.rows)) < count, draw.decides @ draw.known.shares, -math.inf)
    return Choice(_ranked(values), count * draw.decides.shape[1])


def staged(
    keep: Callable[[int, int], Sequence[int]], smooth_first: bool = False, by_disagreement: bool = False
) -> Rule:
    """Return the rule that spends equal parts of the budget on fewer and fewer candidates.

    Args:
        keep: from how many candidates and parents there are to how many candidates are scored in each stage.
        smooth_first: whether log-probability says who goes on; what decides says who is best in the last stage.
        by_disagreement: whether items come earlier on which base and experts disagree.
    """

    def rule(draw: Draw, budget: int) -> Choice:
        grow, counts = Growing(draw, by_disagreement), keep(len(draw.rows), draw.parents)
        left, seen, spent = np.arange(len(draw.rows)), 0, 0
        values, stages = np.zeros(len(draw.rows)), np.zeros(len(draw.rows))
        for stage, count in enumerate(counts):
            share = (budget - spent) // (len(counts) - stage)
            left = left[_ranked(values[left])[:count]]
            sample = grow(seen + share // len(left))
            spent += (len(sample.items) - seen) * len(left)
            seen = len(sample.items)
            answers = draw.smooth if smooth_first and stage + 1 < len(counts) else draw.decides
            values[left], stages[left] = answers[np.ix_(left, sample.items)] @ sample.weights, stage
        return Choice(_ranked(values, stages), spent)

    return rule


def halves(count: int, parents: int = 1) -> list[int]:
    """Return count, half of it, half of that, until two are left (sequential halving, Karnin et al. 2013)."""
    return [count, *halves(math.ceil(count / 2))] if count > 2 else [count]


def to_parents(count: int, parents: int) -> list[int]:
    """Return count, as many as lie halfway to the parents, and the parents."""
    return [count, (count + parents + 1) // 2, parents]


def quarter(count: int, parents: int) -> list[int]:
    """Return count, and a quarter of it: screening."""
    return [count, math.ceil(count / 4)]


def racing(alpha: float = 0.2, by_disagreement: bool = False, to_the_end: bool = False) -> Rule:
    """Return the rule that scores block by block and drops who will hardly be among the parents (`Race`), until the
    budget is spent.

    As in evomerge, a candidate must end above the last of the parents, and those are in no danger.

    Args:
        alpha: the share of the parents that may be dropped by mistake, about.
        by_disagreement: whether items come earlier on which base and experts disagree; the race takes them for drawn
            with equal chances.
        to_the_end: whether it goes on until all items are seen, whatever the budget.
    """

    def rule(draw: Draw, budget: int) -> Choice:
        n, size, tasks = len(draw.rows), draw.decides.shape[1], len(draw.known.of_tasks)
        budget = draw.whole if to_the_end else budget
        block = max(TOGETHER, tasks, min(math.ceil(size / 20), budget // n // 4))
        looks = math.ceil(size / block)
        grow = Growing(draw, by_disagreement)
        sizes = {str(t): len(items) for t, items in enumerate(draw.known.of_tasks)}
        race = Race(
            sizes, {str(t): w for t, w in enumerate(draw.known.bank.weights.tolist())}, looks - 1, alpha * draw.parents
        )
        left, seen, spent = np.arange(n), 0, 0
        values, stages = np.zeros(n), np.zeros(n)
        for look in range(1, looks + 1):
            sample = grow(min(size, seen + block, seen + (budget - spent) // len(left)))
            spent += (len(sample.items) - seen) * len(left)
            seen = len(sample.items)
            values[left], stages[left] = draw.decides[np.ix_(left, sample.items)] @ sample.weights, look
            if seen == size or budget - spent < len(left):
                break
            if len(left) > draw.parents:
                task = draw.known.task[sample.items]
                rows = {i: {t: draw.decides[i, sample.items[task == int(t)]] for t in sizes} for i in left.tolist()}
                best = left[_ranked(values[left])[: draw.parents]].tolist()
                left = np.setdiff1d(left, race.drop(rows, rows[best[-1]], best))
        return Choice(_ranked(values, stages), spent)

    return rule


SUBSETS = {name: of_all_alike(estimate) for name, estimate in ESTIMATES.items()}
RULES: dict[str, Rule] = {
    "fewer candidates, all items": fewer_candidates,
    **SUBSETS,
    "log-probability": of_all_alike(by_probability(stratified)),
    "log-probability, disagreement": of_all_alike(by_probability(disagreement)),
    "what decides and log-probability": of_all_alike(by_both),
    "racing": racing(),
    "racing, disagreement": racing(by_disagreement=True),
    "halving": staged(halves),
    "halving, disagreement": staged(halves, by_disagreement=True),
    "down to the parents": staged(to_parents),
    "down to the parents, disagreement": staged(to_parents, by_disagreement=True),
    "screening by log-probability": staged(quarter, smooth_first=True),
    "halving by log-probability": staged(halves, smooth_first=True),
    "halving by log-probability, disagreement": staged(halves, smooth_first=True, by_disagreement=True),
}
"""By name, the rules that are compared at equal cost."""
RACES: dict[str, Rule] = {
    f"racing, α = {alpha:g}": racing(alpha, to_the_end=True) for alpha in (0.02, 0.05, 0.1, 0.2, 0.4)
}
"""Those that spend what they need."""
BINARY = tuple(name for name in RULES if "IRT" in name)
"""Rules that need right and wrong answers."""
BESIDE = tuple(name for name in RULES if "log-probability" in name)
"""Rules that look at log-probability beside what decides."""


def rules_for(metric: str) -> dict[str, Rule]:
    """Return the rules that make sense where this metric decides."""
    unfit = BESIDE if metric != RIGHT else ()
    unfit += BINARY if metric != RIGHT else ()
    return {name: rule for name, rule in RULES.items() if name not in unfit}


def chosen(rule: Rule, draw: Draw, budget: int) -> Choice:
    """Return what a rule says; where the budget suffices for everything, that of all answers."""
    return everything(draw) if budget >= draw.whole else rule(draw, budget)
