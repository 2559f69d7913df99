"""The budget of a search, of its settings: candidates, item evaluations and hours.

In: the settings, what the searcher will ask for, and what that costs. Out: a `Budget`, or a refusal of one that buys
nothing; what it buys; and how samples grow with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.fitness.draws import DISAGREEMENT
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.runs.responses import responses_cost
from evomerge.runs.sampled import drawn_by, estimate_of
from evomerge.search.deadline import Deadline
from evomerge.search.evaluators.splits import make_subsets
from evomerge.search.stopping import Budget, Interrupt, Price
from evomerge.searchers.base import Part


def make_budget(
    settings: Mapping[str, Any],
    parts: Sequence[Part],
    price: Price,
    interrupt: Interrupt,
    deadline: Deadline | None = None,
    spent: int = 0,
) -> Budget:
    """Return the budget of a search, which must buy one of each that will be asked for.

    Args:
        settings: of the search.
        parts: what will be asked for.
        price: of candidates and of steps of the gradient.
        interrupt: a request to stop.
        deadline: the end of its hours.
        spent: the item evaluations that come before the first candidate.

    Raises:
        ConfigError: as `check_budget`.
    """
    check_budget(settings, parts, price, spent)
    items = settings["budget_items"]
    return Budget(settings["budget"], items and items - spent, price, interrupt, deadline or Deadline())


def check_budget(settings: Mapping[str, Any], parts: Sequence[Part], price: Price, spent: int) -> None:
    """Refuse a budget that does not buy one of each that will be asked for; see `make_budget`.

    Raises:
        ConfigError: it is one, or not positive.
    """
    dearest = max((part.gradient for part in parts), key=lambda gradient: price(0, gradient), default=False)
    items, least = settings["budget_items"], price(0, dearest)
    if items is None or items >= least + spent:
        return
    what, setting = ("step of the gradient", "loss.inputs") if dearest else ("candidate", "fitness.items")
    first = f", after the {spent} that {_first(settings)} takes for base and experts" if spent else ""
    other = f"lower {setting}" if items > spent else f"leave {_first(settings)} out" if spent else "leave it out"
    raise ConfigError(
        f"budget.items={items} is less than one {what} costs, {least} items{first}: raise it, or {other}."
    )


def _first(settings: Mapping[str, Any]) -> str:
    """Return the settings for which base and experts are scored before the first candidate."""
    form = estimate_of(settings)[0]
    drawn = f"fitness.sampling={DISAGREEMENT}" if drawn_by(settings) == DISAGREEMENT else ""
    return " and ".join(filter(None, [drawn, f"fitness.estimate={form}" if form else ""]))


def affordable(parts: Sequence[Part], limit: float, prices: Mapping[bool, float]) -> list[Part]:
    """Return what a budget buys of each part: the earlier ones are paid first.

    Args:
        parts: what will be asked for.
        limit: the budget, in items or in seconds.
        prices: of a candidate (False) and of a step (True), in the same.
    """
    bought: list[Part] = []
    for part in parts:
        price = prices[part.gradient]
        count = min(part.count, int(limit // price)) if price else part.count
        bought += [replace(part, count=count)] if count else []
        limit -= count * price
    return bought


def paid(problem: Problem, settings: Mapping[str, Any], parts: Sequence[Part], subset: Subset, step: int | None) -> int:
    """Return how many candidates and steps a search may begin for sure. Where samples grow, earlier parts cost what
    their items are, and the last one is begun as far as it is paid for at full size (`Budget`).

    Args:
        problem: what is searched.
        settings: of the search.
        parts: what will be asked for.
        subset: chooses the search items.
        step: the inputs of a step of the gradient; None where there are none.
    """
    if settings["budget_items"] is None:
        return settings["budget"]
    left, count, scored = settings["budget_items"] - responses_cost(problem), 0, 0
    for number, part in enumerate(parts):
        full = (part.gradient and step) or subset.size
        bought = min(part.count, max(left // full, 0))
        count += bought
        if bought < part.count:
            break
        grown = full if part.gradient else sum(map(len, subset.sample(number, scored, bought).ids.values()))
        left, scored = left - bought * grown, scored + bought * (not part.gradient)
    return count


def grown(problem: Problem, settings: Mapping[str, Any], parts: Sequence[Part], step: int | None = None) -> Problem:
    """Return the problem with samples that have their full size in the last generation by value that its budget buys;
    as it is where they do not grow; without growth where only steps of a gradient are taken.

    Args:
        problem: what is searched.
        settings: of the search.
        parts: what will be asked for.
        step: the inputs of a step of the gradient; None where there are none.
    """
    growth, items = problem.sampling.growth, settings["budget_items"]
    if growth is None:
        return problem
    if all(part.gradient for part in parts):
        return replace(problem, sampling=replace(problem.sampling, growth=None))
    if items is not None:
        subset = make_subsets(problem)["search"]
        mean = (sum(map(len, subset.sample(0, 0).ids.values())) + subset.size) / 2
        left = items - responses_cost(problem) - subset.size  # one candidate less, as sizes are rounded
        parts = affordable(parts, max(left, 0), {False: mean, True: step or 1})
    points = sum(part.count for part in parts if not part.gradient)
    return replace(problem, sampling=replace(problem.sampling, growth=replace(growth, points=max(points, 1))))
