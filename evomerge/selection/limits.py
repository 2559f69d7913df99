"""What a winner had to keep by the user's constraints, and whether it does.

In: how far models violate constraints, each as a share of its limit, or in the metric where that is 0. Out: sentences
for the summary, the tables, the card and the page, so that a winner that violates one is never taken for one that holds
all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition, read_limit

LEAST = "it violates constraints, as every finalist does, and was taken since it violates them least"
"""What is said of a winner that violates a constraint on the select split, since all finalists do."""


@dataclass(frozen=True)
class Limits:
    """Constraints of a search, and what the winner makes of them.

    Attributes:
        wanted: by name, what is to be kept, such as `>= 0.98 * base`.
        select: how far the winner is from holding each on the select split, as a share of the limit; not positive where
            it holds by as many standard errors as it had to.
        report: how far it violates each on the report split.
        sure: by how many standard errors they had to hold on the select split; what is lacked there includes these.
        missed: how far the winner violates each limit itself on the select split; empty where `select` says it.
    """

    wanted: Mapping[str, str]
    select: Mapping[str, float | None]
    report: Mapping[str, float | None]
    sure: float = 0.0
    missed: Mapping[str, float | None] = field(default_factory=dict)

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data, without what says nothing."""
        return {name: value for name, value in asdict(self).items() if name != "missed" or value}

    @property
    def held(self) -> bool:
        """Whether the winner holds all of them on the select split, as surely as it had to."""
        return not violated(self.select)

    @property
    def marks(self) -> list[str]:
        """What is otherwise in the row of the winner than its name says."""
        if self.held:
            return []
        why = f"no finalist holds all constraints{self.surely}, and it lacks least" if self.sure else LEAST
        return [f"{why}: {self.said}"]

    @property
    def doubts(self) -> list[str]:
        """What must be said of a winner that violates a constraint on either split."""
        lines, reached = [], self.held or (bool(self.missed) and not violated(self.missed))
        if not self.held:
            least, loosen = ("violates them", "") if not self.sure else ("lacks", ", or ask for less of objective.sure")
            lines.append(
                f"No finalist holds all constraints on the select items{self.surely}, so what is called the winner is "
                f"the one that {least} least: {self.said}. Loosen objective.constraints{loosen}, search longer, or "
                f"give the weights bounds up to 0, where the base is (space.bounds)."
            )
        if reached and violated(self.report):
            surer = f", or objective.sure={self.sure + 1:g}" if self.held else ""
            lines.append(
                f"The winner holds all constraints on the select items, and not on the report items: "
                f"{said_of(self.wanted, self.report)}. Ask for more (objective.constraints{surer}), or take more "
                f"select items (fitness.select_items)."
            )
        return lines

    @property
    def said(self) -> str:
        """What the winner lacks on the select split, in words."""
        return lacking_of(self, self.select, self.missed)

    @property
    def surely(self) -> str:
        """By how much they had to hold, where that is more than the limits say."""
        return surely(self.sure)


def surely(sure: float) -> str:
    """Return by how much constraints have to hold, in words; nothing where the limits themselves are enough."""
    return f" by {sure:g} standard errors" if sure else ""


def violated(lacks: Mapping[str, float | None]) -> dict[str, float]:
    """Return the constraints that are violated, and how far."""
    return {name: lack for name, lack in lacks.items() if lack is not None and lack > 0}


def said_of(wanted: Mapping[str, str], lacks: Mapping[str, float | None]) -> str:
    """Return by how much constraints are missed, in words."""
    return ", ".join(
        f"{name} {wanted[name]} is missed by {f'{lack:.4g}' if _is_zero(name, wanted[name]) else f'{lack:.1%}'}"
        for name, lack in violated(lacks).items()
    )


def unsure_of(lacks: Mapping[str, float | None], missed: Mapping[str, float | None]) -> list[str]:
    """Return the constraints that hold, but not by as many standard errors as they had to.

    Args:
        lacks: how far each is from holding so.
        missed: how far each is violated; empty where `lacks` says it.
    """
    return [name for name in violated(lacks) if missed and name not in violated(missed)]


def lacking_of(limits: Limits, lacks: Mapping[str, float | None], missed: Mapping[str, float | None]) -> str:
    """Return what a model lacks on the select split, in words: limits that it misses, and those that it holds, but not
    by as many standard errors as it had to.

    Args:
        limits: what was wanted, and how surely.
        lacks: how far it is from holding each so.
        missed: how far it violates each; empty where `lacks` says it.
    """
    unsure = [f"{name} {limits.wanted[name]} holds, but not{limits.surely}" for name in unsure_of(lacks, missed)]
    return ", ".join([*filter(None, [said_of(limits.wanted, missed or lacks)]), *unsure])


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


def missed_of(conditions: Sequence[Condition], outcome: Outcome, base: Outcome) -> dict[str, float]:
    """Return the same of the limits themselves, without standard errors; nothing where none were to be held by these.

    Args:
        conditions: of the objective.
        outcome: of a model.
        base: that of the base on the same items.
    """
    return lacks_of([replace(one, sure=0.0) for one in conditions if one.sure], outcome, base)
