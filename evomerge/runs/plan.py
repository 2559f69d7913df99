"""What a search will ask for, as far as its settings say: how many candidates, how many steps of a gradient.

In: the settings and the space. Out: the parts of the search in their order. It is a forecast, for estimates and for
what must be refused early: a searcher may end before, and the budget decides in the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.searchers.warm import constants
from evomerge.selection.choosing import CONSTANTS
from evomerge.space.coefficients import CoefficientSpace


@dataclass(frozen=True)
class Part:
    """So many candidates in a row, or so many steps of a gradient."""

    gradient: bool
    count: int


def plan(settings: Mapping[str, Any], space: CoefficientSpace, gradient: bool) -> list[Part]:
    """Return the parts of a search, those of no length left out; together they are at most the budget.

    Args:
        settings: of the search.
        space: the coefficient space.
        gradient: whether the searcher asks for gradients.
    """
    if not gradient:
        return _parts((False, settings["budget"]))
    searcher, warm = settings["searcher"], warm_up(settings, space)
    left = settings["budget"] - warm
    steps = searcher.get("first", searcher).get("steps")
    taken = left if steps is None else min(steps, left)
    return _parts(
        (False, min(warm, settings["budget"])), (True, taken), (False, ("second" in searcher) * (left - taken))
    )


def warm_up(settings: Mapping[str, Any], space: CoefficientSpace) -> int:
    """Return how many constants are scored before the searcher begins."""
    return len(constants(space)) if settings["start"] == "constants" and space.dim > 1 else 0


def affordable(parts: Sequence[Part], items: int | None, candidate: int, step: int) -> tuple[int, int]:
    """Return how many candidates and how many steps a budget of items buys.

    Args:
        parts: what will be asked for.
        items: the budget; None for no limit.
        candidate: the items of a candidate.
        step: the inputs of a step.
    """
    bought = {False: 0, True: 0}
    for part in parts:
        price = step if part.gradient else candidate
        count = part.count if items is None else min(part.count, items // price)
        bought[part.gradient] += count
        items = None if items is None else items - count * price
    return bought[False], bought[True]


def judged(settings: Mapping[str, Any], space: CoefficientSpace, steps: int, select: int, report: int) -> int:
    """Return how many item evaluations it takes at most, about, to choose the winner and to report it.

    Args:
        settings: of the search.
        space: the coefficient space.
        steps: how many steps of a gradient the searcher takes.
        select: the items of the select split.
        report: the items of the report split.
    """
    weight = next(variable for variable in space.variables if variable.name == "weight")
    models = sum(weight.low <= constant <= weight.high for constant in CONSTANTS) or len(CONSTANTS)
    searcher = settings["searcher"]
    for part in [searcher[name] for name in ("first", "second") if name in searcher] or [searcher]:
        models += part["keep"] + 1 if "keep" in part else 0  # and the mean
        models += steps // part["every"] + 1 if "every" in part else 0  # and the last
    models += 2 * settings["objective"]["normalised"]  # base and experts, between which the objective lies
    return models * select + 4 * report  # base, experts, best constant and winner


def _parts(*parts: tuple[bool, int]) -> list[Part]:
    return [Part(gradient, count) for gradient, count in parts if count > 0]
