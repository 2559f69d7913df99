"""What races have saved: how many candidates they dropped, and what was spent.

In: the batches of a search with their trials. Out: numbers, for the end of a run, its summary and its report.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from evomerge.trials import Batch


@dataclass(frozen=True)
class Raced:
    """What came of the races of a search.

    Attributes:
        candidates: how many were scored by value.
        dropped: how many of them were dropped.
        spent: the item evaluations of all.
        without: those of the same candidates without a race.
    """

    candidates: int
    dropped: int
    spent: int
    without: int

    @property
    def sentence(self) -> str:
        """The same in words."""
        return (
            f"races dropped {self.dropped:,} of {self.candidates:,} candidates: {self.spent:,} item evaluations, where "
            f"all items of each had been {self.without:,} ({1 - self.spent / max(self.without, 1):.0%} saved)"
        )


def raced(batches: Sequence[Batch]) -> Raced | None:
    """Return what races have saved; None where nobody was dropped."""
    found, size = Raced(0, 0, 0, 0), 0
    for batch in batches:
        trials = [trial for trial in batch.trials if trial is not None and not batch.gradient]
        size = max((trial.spent for trial in trials if trial.full), default=size)
        found = Raced(
            found.candidates + len(trials),
            found.dropped + sum(trial.status == "censored" for trial in trials),
            found.spent + sum(trial.spent for trial in trials),
            found.without + sum(max(size, trial.spent) for trial in trials),
        )
    return found if found.dropped else None
