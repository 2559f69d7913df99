"""What the facts of a run are made of: a scored trial, a finalist, and a number on each split."""

from __future__ import annotations

from dataclasses import dataclass

from evomerge.trials import Trial


@dataclass(frozen=True)
class Dot:
    """One scored trial: its number, and its value or its loss."""

    number: int
    value: float
    trial: Trial


@dataclass(frozen=True)
class Finalist:
    """One that took part in the final selection.

    Attributes:
        name: as the searcher calls it.
        select: what it reached on the select split; None if it could not be scored.
        seen: on how many select items; fewer than all if it was dropped. None in runs of version 0.2: on all.
        number: the trial that found it; None for one that no trial scored, such as a mean.
        search: what that trial reached on the search items, in the same metric.
        winner: whether it won.
    """

    name: str
    select: float | None
    seen: int | None
    number: int | None
    search: float | None
    winner: bool

    def dropped(self, items: int) -> bool:
        """Whether it was not scored on all of so many select items."""
        return self.select is not None and self.seen is not None and self.seen < items


@dataclass(frozen=True)
class SplitSizes:
    """One number on each split, as far as it is known."""

    search: float | None
    select: float | None
    report: float | None

    @property
    def optimism(self) -> float | None:
        """What is lost from the select split, on which the model was chosen, to the report split."""
        return None if self.select is None or self.report is None else self.select - self.report

    def less(self, other: SplitSizes) -> SplitSizes:
        """The differences, split by split."""
        pairs = zip((self.search, self.select, self.report), (other.search, other.select, other.report), strict=True)
        return SplitSizes(*(None if a is None or b is None else a - b for a, b in pairs))
