"""What a winner had to keep by the user's constraints, and whether it does.

In: how far models violate constraints, each as a share of its limit, or in the metric where that is 0. Out: sentences
for the summary, the tables, the card and the page, so that a winner that violates one is never taken for one that holds
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition, read_limit

LEAST = "it violates constraints, as every finalist does, and was taken since it violates them least"
"""What is said of a winner that violates a constraint on the select split, since all finalists do."""


@dataclass(frozen=True)
class Limits:
    """Constraints of a search, and what the winner makes of them.

    Attributes:
        wanted: by name, what is to be kept, such as `>= 0.98 * base`.
        select: how far the winner violates each on the select split, as a share of the limit; not positive where it
            holds.
        report: the same on the report split.
        sure: by how many standard errors they had to hold on the select split; what is lacked there includes these.
    """

    wanted: Mapping[str, str]
    select: Mapping[str, float | None]
    report: Mapping[str, float | None]
    sure: float = 0.0

    @property
    def held(self) -> bool:
        """Whether the winner holds all of them on the select split."""
        return not violated(self.select)

    @property
    def marks(self) -> list[str]:
        """What is otherwise in the row of the winner than its name says."""
        counted = f", {self.sure:g} standard errors included" if self.sure else ""
        return [] if self.held else [f"{LEAST}: {said_of(self.wanted, self.select)}{counted}"]

    @property
    def doubts(self) -> list[str]:
        """What must be said of a winner that violates a constraint on either split."""
        lines = []
        if not self.held:
            lines.append(
                f"No finalist holds all constraints on the select items{self._surely}, so what is called the winner is "
                f"the one that violates them least: {said_of(self.wanted, self.select)}. Loosen objective.constraints, "
                f"search longer, or give the weights bounds up to 0, where the base is (space.bounds)."
            )
        elif violated(self.report):
            lines.append(
                f"The winner holds all constraints on the select items, and not on the report items: "
                f"{said_of(self.wanted, self.report)}. Ask for more (objective.constraints, or objective.sure="
                f"{self.sure + 1:g}), or take more select items (fitness.select_items)."
            )
        return lines

    @property
    def _surely(self) -> str:
        """By how much they had to hold, where that is more than the limits say."""
        return f" by {self.sure:g} standard errors" if self.sure else ""


def violated(lacks: Mapping[str, float | None]) -> dict[str, float]:
    """Return the constraints that are violated, and how far."""
    return {name: lack for name, lack in lacks.items() if lack is not None and lack > 0}


def said_of(wanted: Mapping[str, str], lacks: Mapping[str, float | None]) -> str:
    """Return by how much constraints are missed, in words."""
    return ", ".join(
        f"{name} {wanted[name]} is missed by {f'{lack:.4g}' if _is_zero(name, wanted[name]) else f'{lack:.1%}'}"
        for name, lack in violated(lacks).items()
    )


def _is_zero(name: str, text: str) -> bool:
    """Return whether a limit is the number 0, of which nothing is a share: what is lacked is then in the metric."""
    _, number, fixed = read_limit(f"objective.constraints.{name}", text)
    return fixed and number == 0


def lacks_of(conditions: Sequence[Condition], outcome: Outcome, base: Outcome) -> dict[str, float]:
    """Return how far an outcome violates each constraint, by name; nothing where it lacks a task, as experts may.

    Args:
        conditions: of the objective, those without a name left out.
        outcome: of a model.
        base: that of the base on the same items.
    """
    named = {condition.name: condition for condition in conditions if condition.name}
    whole = all(task in outcome.results for one in named.values() for task in one.weights)
    return {name: one.violation(outcome, base) for name, one in named.items()} if whole else {}
