"""The front of a search with several values: its points, what they were held against, and which one was chosen.

Plain data, as `summary.json` has it. Scores and differences are as the metric has them, also of a value that is to be
small: `minimised` names those.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from evomerge.common.names import listed
from evomerge.selection.statistics import Paired, Score
from evomerge.selection.trades import Trades

Weights = Mapping[str, Mapping[str, Mapping[str, float]]]
"""Coefficients by variable, group and row."""


@dataclass(frozen=True)
class FrontPoint:
    """A model with several values.

    Attributes:
        name: `point_1` and so on of the front; `base`, `experts` or `constant 0.4` of what it is held against.
        finalist: what the searcher calls a point.
        trial: the batch and the index of its trial; None where no trial scored it.
        coefficients: of a point.
        select: its score in each value on the select split.
        report: the same on the report split; empty where it was not scored there.
        lacks: how far it is from holding each constraint on the select split, as a share of the limit; not positive
            where it holds by as many standard errors as it has to.
        violations: how far it violates each on the report split.
        over: in each value, the point minus the best constant on the report split.
        experts: the same minus the experts, each on its own task; without values that have a task without an expert.
        missed: how far it violates each limit itself on the select split; empty where `lacks` says it.
    """

    name: str
    finalist: str = ""
    trial: tuple[int, int] | None = None
    coefficients: Weights = field(default_factory=dict)
    select: Mapping[str, Score] = field(default_factory=dict)
    report: Mapping[str, Score] = field(default_factory=dict)
    lacks: Mapping[str, float | None] = field(default_factory=dict)
    violations: Mapping[str, float | None] = field(default_factory=dict)
    over: Mapping[str, Paired] = field(default_factory=dict)
    experts: Mapping[str, Paired] = field(default_factory=dict)
    missed: Mapping[str, float | None] = field(default_factory=dict)

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> FrontPoint:
        """Return it from the plain data that `asdict` makes."""
        scores = {split: {name: Score(**row) for name, row in content[split].items()} for split in ("select", "report")}
        paired = {what: {name: Paired(**row) for name, row in content[what].items()} for what in ("over", "experts")}
        place = content["trial"] and tuple(content["trial"])  # JSON has lists for pairs
        return cls(**{**content, **scores, **paired, "trial": place})


@dataclass(frozen=True)
class Front:
    """What the finalists of a search with several values came to.

    Attributes:
        values: their names.
        metrics: the metric of each.
        minimised: the values of which less is better.
        constraints: by name, what a winner had to keep.
        rule: how the winner is chosen, said beforehand.
        chosen: the name of the point that was chosen.
        points: the finalists that no other one dominates on the select split, best first value first.
        constants: all constants, on the select split; the best one, which the same rule chooses, on the report split
            as well.
        base: the base, on both.
        experts: each task with its own expert, on both; empty where no task has one.
        reference: by value, what is worse than the base or any constant on the select split. Hypervolume counts from
            there, so it says the same of all searches of these models on these items within the same bounds.
        hypervolume: of the points on `select` and on `report`, and of all `constants` on select; of those that hold all
            constraints on select, as surely as they have to.
        dominated: finalists that fell out, since a point is better.
        violating: finalists that fell out, since they violate a constraint on the select split.
        met: whether the point that was chosen keeps what the rule asks for, on the select split.
        trades: which values went against each other in the search; None where too few candidates have all of them.
        unsure: finalists that fell out, since they hold constraints there, but not by as many standard errors as they
            have to.
    """

    values: Sequence[str]
    metrics: Mapping[str, str]
    minimised: Sequence[str]
    constraints: Mapping[str, str]
    rule: str
    chosen: str
    points: Sequence[FrontPoint]
    constants: Sequence[FrontPoint]
    base: FrontPoint
    experts: Sequence[FrontPoint]
    reference: Mapping[str, float]
    hypervolume: Mapping[str, float]
    dominated: Sequence[str] = field(default_factory=list)
    violating: Sequence[str] = field(default_factory=list)
    met: bool = True
    trades: Trades | None = None
    unsure: Sequence[str] = field(default_factory=list)

    @property
    def winner(self) -> FrontPoint:
        """The point that was chosen."""
        return self.point(self.chosen)

    @property
    def best_constant(self) -> FrontPoint:
        """The constant that the same rule chooses."""
        return next(one for one in self.constants if one.report)

    @property
    def doubts(self) -> list[str]:
        """What must be said of the points, and of the one that was chosen."""
        found = []
        if not self.met:
            found.append(
                f"No point of the front keeps what objective.choose asks for on the select items ({self.rule}): "
                f"{self.chosen}, which lacks least, was chosen. Ask for less, or name another point: "
                f"`evomerge export RUN --point 1`."
            )
        if beaten := [point.name for point in self.points if self._beats(self.base, point)]:
            found.append(
                f"On the select items the base is as good as {listed(beaten)} in every value, and better in one: by "
                f"these values, nothing is gained there."
            )
        return found

    def _beats(self, one: FrontPoint, other: FrontPoint) -> bool:
        """Return whether a model dominates another one on the select split."""
        ahead = list[float]()
        for name in self.values:
            mine, theirs = one.select[name].mean, other.select[name].mean
            if mine is None or theirs is None:
                return False
            ahead.append(theirs - mine if name in self.minimised else mine - theirs)
        return min(ahead) >= 0 < max(ahead)

    def point(self, name: str) -> FrontPoint:
        """Return a point by its name.

        Raises:
            KeyError: there is none of that name.
        """
        return {one.name: one for one in self.points}[name]

    def to_plain(self) -> dict[str, Any]:
        """Return it as plain data, without what says nothing and came later than the rest."""
        content = asdict(self)
        models = [content["base"], *(one for name in ("points", "constants", "experts") for one in content[name])]
        for row in (content, *models):
            for name in ("missed", "unsure"):
                if not row.get(name):
                    row.pop(name, None)
        return content

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Front:
        """Return it from the plain data that `asdict` makes."""
        several = {
            name: [FrontPoint.from_plain(one) for one in content[name]] for name in ("points", "constants", "experts")
        }
        trades = Trades.from_plain(told) if (told := content.get("trades")) else None
        return cls(**{**content, **several, "base": FrontPoint.from_plain(content["base"]), "trades": trades})
