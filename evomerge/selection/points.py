"""The points of a front and what they are held against, with their scores in each value on both splits.

In: outcomes on the select and on the report split. Out: a `FrontPoint` for each, a reference, and hypervolumes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.selection.front import FrontPoint
from evomerge.selection.limits import lacks_of, missed_of, unsure_of, violated
from evomerge.selection.rules import hypervolume
from evomerge.selection.statistics import Score
from evomerge.selection.valued import scores_on


@dataclass(frozen=True)
class Scale:
    """What makes scores and violations of outcomes.

    Attributes:
        select: the objective on the select split.
        report: the same on the report split, whose base is another outcome.
    """

    select: Objective
    report: Objective

    @property
    def _signs(self) -> np.ndarray:
        return np.array([-1.0 if value.minimise else 1.0 for value in self.select.values])

    def point(self, name: str, select: Outcome, report: Outcome | None = None) -> FrontPoint:
        """Return a model with its scores.

        Args:
            name: of it.
            select: its outcome on the select split,
            report: and on the report split; None where it was not scored there.
        """
        values = self.select.values
        return FrontPoint(
            name,
            select=scores_on(values, select),
            report=scores_on(values, report) if report else {},
            lacks=_lacks(self.select, select),
            violations=_lacks(self.report, report) if report else {},
            missed=self._missed(select),
        )

    def unsure(self, select: Outcome) -> bool:
        """Return whether a model holds all constraints on the select split, but not as surely as it has to."""
        lacks = _lacks(self.select, select)
        unsure = unsure_of(lacks, self._missed(select))
        return bool(unsure) and len(unsure) == len(violated(lacks))

    def reference(self, models: Sequence[FrontPoint]) -> dict[str, float]:
        """Return the worst score that any of some models has in each value on the select split."""
        worst = self._values([model.select for model in models]).min(axis=0) * self._signs
        return dict(zip(self.select.names, worst.tolist(), strict=True))

    def volume(self, models: Sequence[Mapping[str, Score]], reference: Mapping[str, float]) -> float:
        """Return the hypervolume of some models on one split, above a reference."""
        values = self._values(models)
        above = np.array([reference[name] for name in self.select.names]) * self._signs
        return hypervolume(values[np.all(np.isfinite(values), axis=1)], above)

    def _missed(self, select: Outcome) -> dict[str, float]:
        base = self.select.base
        return missed_of(self.select.conditions, select, base) if base else {}

    def _values(self, models: Sequence[Mapping[str, Score]]) -> np.ndarray:
        """Return values to be maximised, (n, m)."""
        rows = [[model[name].mean for name in self.select.names] for model in models]
        return np.array(rows, dtype=np.float64).reshape(len(models), len(self._signs)) * self._signs


def _lacks(objective: Objective, outcome: Outcome) -> dict[str, float]:
    return lacks_of(objective.conditions, outcome, objective.base) if objective.base else {}
