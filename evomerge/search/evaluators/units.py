"""Units, and what scores them: a model and a block of items are what a device does in one go.

In: units. Out: what came of each, as they end. An evaluator makes trials of units and does not know who scores them:
one live model (`serial.py`), or many (`pool.py`). What judges finished models asks in units as well.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from evomerge.fitness.base import Outcome


@dataclass(frozen=True)
class Named:
    """A model by what it is called, which workers find by themselves: plain data, such as `selection/named.py` has."""

    what: Mapping[str, Any]


Model = np.ndarray | Mapping[str, np.ndarray] | Literal["base", "experts"] | Named
"""What is scored: a point (dim,), coefficients {variable: (G, K)}, the base, or each task with its own expert."""


@dataclass(frozen=True)
class Unit:
    """A model, and a block of item ids by task. Units of one candidate share the object that is its model.

    Attributes:
        model: what is scored.
        ids: the items.
        split: whose items they are.
        written: whether it is scored in the dtype of the checkpoint, where the live model computes in another one.
        first: whether it may be the first that is scored at all, and pay for what is set up lazily.
        under: settings of a method, transforms and a space, where the model is one of others than the search's.
        scale: of a step of the gradient, with what the loss of an input of each task is multiplied in the sum that the
            gradient is of; None where the fitness scores.
    """

    model: Model
    ids: Mapping[str, list[str]]
    split: str = "search"
    written: bool = False
    first: bool = False
    scale: Mapping[str, float] | None = None
    under: Mapping[str, Any] | None = None

    @property
    def size(self) -> int:
        """The number of its items."""
        return sum(map(len, self.ids.values()))

    def share(self, candidate: int | None) -> float:
        """Return how many times the items of a candidate it scores, where it may take longer by as much."""
        return self.size / candidate if candidate and self.scale is None else 1.0


@dataclass(frozen=True)
class Scored:
    """What came of a unit: an outcome, or the error of model or fitness; where the seconds went; and of a step the
    gradient, (G, K) by variable.
    """

    outcome: Outcome | Exception
    merge: float = 0.0
    forward: float = 0.0
    total: float = 0.0
    gradients: Mapping[str, np.ndarray] | None = None


class Scorer(Protocol):
    """Scores units, and may begin a later one before an earlier one has ended."""

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what came of each unit with its position, as they end, in whatever order.

        A scorer that works beside its caller begins when it is called. Once a unit of a candidate has failed, later
        ones of it may be answered with that error and not be scored.

        Raises:
            LiveModelError: a live model cannot be put back, so every later score would be one of another model.
        """
        ...
