"""Units, and what scores them: a point and a block of items are what a device does in one go.

In: units. Out: what came of each, as they end. An evaluator makes trials of units and does not know who scores them:
one live model (`serial.py`), or many.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.fitness.base import Outcome


@dataclass(frozen=True)
class Unit:
    """A point, (dim,), and a block of item ids by task. Units of one candidate share the array of its point."""

    point: np.ndarray
    ids: Mapping[str, list[str]]


@dataclass(frozen=True)
class Scored:
    """What came of a unit: an outcome, or the error of model or fitness; and where the seconds went."""

    outcome: Outcome | Exception
    merge: float = 0.0
    forward: float = 0.0
    total: float = 0.0


class Scorer(Protocol):
    """Scores units, and may begin a later one before an earlier one has ended."""

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what came of each unit with its position, as they end, in whatever order.

        Raises:
            LiveModelError: a live model cannot be put back, so every later score would be one of another model.
        """
        ...
