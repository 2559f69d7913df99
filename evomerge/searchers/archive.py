"""What a searcher remembers of what it was told, and hands over: the best points of one value, or a front of several.

In: batches with their trials. Out: incumbents by name. Of several values those points are handed over that no other one
dominates (see `domination.py`), those that lie well apart where there are too many; where all violate a constraint, the
one that lacks least.
"""

from __future__ import annotations

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import USUAL, Elite, Incumbent
from evomerge.searchers.domination import ranks, thinned
from evomerge.trials import Batch

SIZE = 12
"""How many points of a front are handed over, where nothing is said."""


class Archive:
    """The points that no other one dominates. Failed and censored points never enter.

    Args:
        size: how many are handed over at most.
        objectives: how many values a point has.

    Attributes:
        size: the same.

    Raises:
        ConfigError: none would be handed over.
    """

    def __init__(self, size: int, objectives: int) -> None:
        if size < 1:
            raise ConfigError(f"searcher.incumbents is {size}; at least one point of the front must be handed over.")
        self.size = size
        self._values, self._violated = np.zeros((0, objectives)), np.zeros(0)
        self._found: list[Incumbent] = []

    def update(self, batch: Batch) -> None:
        """Take in a batch. Of points with equal values the earlier one stays."""
        violated, objectives = batch.violated, self._values.shape[1]
        places = {i: trial for i, trial in enumerate(batch.trials) if trial and trial.full and violated[i] < np.inf}
        found = [Incumbent(batch.points[i].copy(), (trial.batch, trial.index)) for i, trial in places.items()]
        values = np.concatenate([self._values, batch.table(objectives)[list(places)]])
        violated, found = np.concatenate([self._violated, violated[list(places)]]), [*self._found, *found]
        front = np.flatnonzero(ranks(values, violated) == 0)
        kept = sorted(front[np.unique(values[front], axis=0, return_index=True)[1]])
        if kept and violated[kept[0]] > 0:
            kept = kept[:1]
        self._values, self._violated, self._found = values[kept], violated[kept], [found[i] for i in kept]

    @property
    def front(self) -> tuple[np.ndarray, np.ndarray]:
        """All its points, (n, dim), and their values, (n, m)."""
        return np.array([one.x for one in self._found]), self._values

    def incumbents(self) -> dict[str, Incumbent]:
        """Return them as `front_1`, `front_2`, ..., the best in the first value first."""
        kept = sorted(thinned(self._values, self.size), key=lambda i: tuple(-self._values[i]))
        return {f"front_{place}": self._found[i] for place, i in enumerate(kept, 1)}

    def middle(self) -> np.ndarray | None:
        """Return the point that is nearest to the best of all values, each as a share of its range over the front,
        (dim,): the compromise of Zeleny (1973). None where there is none.
        """
        if not self._found:
            return None
        spread = np.ptp(self._values, axis=0)
        apart = (self._values.max(axis=0) - self._values) / np.where(spread > 0, spread, 1.0)
        return self._found[int(np.argmin((apart**2).sum(axis=1)))].x


def memory(objectives: int, keep: int, incumbents: int) -> Elite | Archive:
    """Return what remembers the points that a searcher hands over.

    Args:
        objectives: how many values a point has.
        keep: how many of the best, where it has one.
        incumbents: how many of a front.
    """
    return Elite(keep) if objectives == 1 else Archive(incumbents, objectives)


def unfinished(batch: Batch | None) -> dict[str, Incumbent]:
    """Return the best point, or the front, of a generation that the budget cut short: the searcher was never told of
    it, but it was paid for.

    Args:
        batch: the last one that was begun; None where nothing was asked.
    """
    if batch is None or batch.complete:
        return {}
    objectives = max((len(trial.values) for trial in batch.trials if trial and trial.values), default=1)
    found = memory(objectives, 1, USUAL)
    found.update(batch)
    points = list(found.incumbents().values())
    return {"unfinished" if i == 1 else f"unfinished_{i}": one for i, one in enumerate(points, 1)}
