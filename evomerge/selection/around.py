"""The value around a winner: what becomes of it when its weights are scaled, all of them or those of one row.

In: the recipe of a merge. Out: models to be scored beside it on the same items, and what came out of it, with paired
standard errors against the winner. A sharp peak is a warning: such a merge may owe its value to the items that chose
it, and rounding or another version of an expert may lose it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from evomerge.selection.comparison import Comparison
from evomerge.selection.named import Model
from evomerge.selection.statistics import Paired, Score

FACTORS = (0.5, 0.7, 0.8, 0.9, 1.1, 1.2, 1.3, 1.5)
"""With which weights are multiplied."""
NEAR = (0.8, 1.2)
"""Between which factors nothing should be lost: a winner is called sharp that loses on both sides there."""
ALL = "all weights"


@dataclass(frozen=True)
class Point:
    """A winner whose weights were scaled.

    Attributes:
        factor: with which.
        score: what it is worth; without a number where it has no score.
        over: that minus the winner, paired.
        lacks: whether it keeps too little of the base's score, where something was to be forgotten,
        kept: and the share that it keeps; None where nothing was to be forgotten, or where it is not known.
    """

    factor: float
    score: Score
    over: Paired
    lacks: bool = False
    kept: float | None = None

    @property
    def errors(self) -> float | None:
        """How many standard errors it is above the winner; None where that is not known."""
        diff, se = self.over.diff, self.over.se
        return diff / se if diff is not None and se and math.isfinite(se) else None

    @property
    def below(self) -> bool:
        """Whether it is below the winner by more than two standard errors."""
        return self.over.diff is not None and self.over.se is not None and self.over.diff < -2 * self.over.se

    @property
    def above(self) -> bool:
        """Whether it is above the winner by more than two standard errors, and keeps enough."""
        return (
            not self.lacks
            and self.over.diff is not None
            and self.over.se is not None
            and self.over.diff > 2 * self.over.se
        )


@dataclass(frozen=True)
class Around:
    """The value around a winner in one direction.

    Attributes:
        row: whose weights were scaled: those of one expert, or `ALL`.
        points: by factor, the winner (1) among them.
    """

    row: str
    points: list[Point]

    @property
    def lower(self) -> list[float]:
        """The factors near 1 at which it is worse by more than two standard errors."""
        return [each.factor for each in self.points if NEAR[0] <= each.factor <= NEAR[1] and each.below]

    @property
    def unknown(self) -> list[float]:
        """The factors near 1 at which it has no score."""
        return [each.factor for each in self.points if NEAR[0] <= each.factor <= NEAR[1] and each.over.diff is None]

    @property
    def doubtful(self) -> list[float]:
        """The factors near 1 at which the standard error of its difference is not known."""
        near = [each for each in self.points if NEAR[0] <= each.factor <= NEAR[1] and each.over.diff is not None]
        return [each.factor for each in near if each.over.se is None or not math.isfinite(each.over.se)]

    @property
    def lacking(self) -> list[float]:
        """The factors at which it keeps too little of the base's score, where something was to be forgotten."""
        return [each.factor for each in self.points if each.lacks]

    @property
    def sharp(self) -> bool:
        """Whether it is worse on both sides."""
        return bool(self.lower) and min(self.lower) < 1 < max(self.lower)

    @property
    def higher(self) -> list[float]:
        """The factors at which it is better by more than two standard errors."""
        return [each.factor for each in self.points if each.above]

    @property
    def level(self) -> bool:
        """Whether no factor changes anything, as where weights are shares."""
        others, kept = [each for each in self.points if each.factor != 1], {each.kept for each in self.points}
        return all(each.over.diff == 0 and each.over.se == 0 for each in others) and len(kept) == 1


def neighbours(winner: Model, rows: Sequence[str] = ()) -> dict[str, Model]:
    """Return the models around a winner by name.

    Args:
        winner: a recipe.
        rows: the names of experts, or other rows, whose weights are scaled one by one as well.
    """
    return {
        name_of(row, factor): replace(winner, factor=factor, row=row if row in rows else None)
        for row in (ALL, *rows)
        for factor in FACTORS
    }


def around_of(result: Comparison, rows: Sequence[str] = ()) -> list[Around]:
    """Return what came of a winner, the first of a comparison, and its `neighbours`: of all weights, then by row."""
    first = next(iter(result.models))
    nothing = dict.fromkeys(result.models[first].tasks, 0.0)
    itself = Point(1.0, result.models[first], Paired(0.0, 0.0, nothing, nothing), *_kept(result, first))
    found = []
    for row in (ALL, *rows):
        names = {factor: name_of(row, factor) for factor in FACTORS}
        points = [
            Point(factor, result.models[name], result.paired[name], *_kept(result, name))
            for factor, name in names.items()
        ]
        found.append(Around(row, sorted([*points, itself], key=lambda point: point.factor)))
    return found


def _kept(result: Comparison, name: str) -> tuple[bool, float | None]:
    """Return whether a model keeps too little of the base's score, where something was to be forgotten, and what it
    keeps.
    """
    found = result.forgetting
    row = found.models.get(name) if found else None
    return (found.lacks(row.kept), row.kept) if found and row else (False, None)


def name_of(row: str, factor: float) -> str:
    """Return the name of a winner with scaled weights."""
    return f"{row} times {factor:g}"


def lines_of(found: Around) -> list[str]:
    """Return what follows of the values around a merge."""
    if found.level:
        return ["no factor changes a single result: by this method weights are shares, or nothing is merged there"]
    lines = []
    if found.lower:
        what = "a sharp peak" if found.sharp else "it falls off on one side"
        lines.append(f"{what}: {_times(found.lower)}, it is below the winner by more than two standard errors")
    elif found.unknown:
        lines.append(f"whether it is a sharp peak is not known: {_times(found.unknown)}, it has no score")
    elif found.doubtful:
        lines.append(
            f"whether it is a sharp peak is not known: {_times(found.doubtful)}, the difference to the winner has no "
            f"standard error, which takes two items of each task"
        )
    else:
        low, high = NEAR
        lines.append(
            f"no sharp peak: from times {low:g} to times {high:g} it is nowhere below the winner by more than two "
            f"standard errors"
        )
    if found.higher:
        lines.append(
            f"{_times(found.higher)}, it is above the winner by more than two standard errors: the search has not "
            f"reached the top in this direction"
        )
    if found.lacking:
        lines.append(f"{_times(found.lacking)}, it keeps too little of the base's score on the other tasks")
    return lines


def _times(factors: Sequence[float]) -> str:
    return ", ".join(f"times {factor:g}" for factor in factors)
