"""The budget of a search, of its settings: candidates, item evaluations and hours.

In: the settings, what the searcher will ask for, and what that costs. Out: a `Budget`, or a refusal of one that buys
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.search.deadline import Deadline
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
        ConfigError: it is less than that, or not positive.
    """
    dearest = max((part.gradient for part in parts), key=lambda gradient: price(0, gradient), default=False)
    items, least = settings["budget_items"], price(0, dearest)
    if items is not None and items < least + spent:
        what, setting = ("step of the gradient", "loss.inputs") if dearest else ("candidate", "fitness.items")
        first = f", after the {spent} that fitness.sampling=disagreement takes for base and experts" if spent else ""
        raise ConfigError(
            f"budget_items={items} is less than one {what} costs, {least} items{first}: raise it, or lower {setting}."
        )
    return Budget(settings["budget"], items and items - spent, price, interrupt, deadline or Deadline())
