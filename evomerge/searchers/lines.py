"""Lines between models that are good at one value each: rewarded soups (Ramé et al. 2023).

In: a space in which each expert has coordinates of its own. Out: first the start point and each expert alone, with a
weight of 1, or as near as the bounds allow; then, generation by generation, the middles of lines between points of the
front: coefficients are interpolated, so is the model under method=linear. Lines are drawn between neighbours, those
whose values lie furthest apart first, so that the front fills up evenly. Two points are neighbours where no third one
is nearer to both (the relative neighbourhood graph, Toussaint 1980). The end is where every such line was halved.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.archive import SIZE, Archive
from evomerge.searchers.base import MANY, Incumbent, Needs, Part, Turns, inside
from evomerge.searchers.experts import Experts
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

SAME = 1e-6
"""How far apart two points may be, and be one."""


class Lines:
    """Searcher that interpolates between points of the front.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: not used; every searcher takes one.
        batch: how many lines are halved at once.
        incumbents: how many points of the front are handed over.
        objectives: how many values a point has.

    Raises:
        ConfigError: for one value, a batch below 1, or a start outside the bounds; experts share a coordinate, or
            cannot be left out within the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        batch: int = 6,
        incumbents: int = SIZE,
        objectives: int = 1,
    ) -> None:
        if objectives < 2:
            raise ConfigError(
                "searcher=lines draws lines between models that are best at different values, and this search has one: "
                "write objective=pareto, or another searcher."
            )
        if batch < 1:
            raise ConfigError(f"searcher.batch is {batch}; at least one line must be halved at a time.")
        experts = Experts(space, space.nearest({"weight": 1.0}), "lines")
        alone = [experts.point([row]) for row in experts.free]
        self._next, self._asked, self._batch = np.array([inside(space, start), *alone]), list[np.ndarray](), batch
        self._turns, self._seen = Turns(), Archive(incumbents, objectives)
        self._any = Archive(incumbents, objectives)  # by values alone

    def ask(self) -> Batch:
        """Return the start and each expert alone, then middles of lines, shape (n, dim)."""
        self._asked += [*self._next]
        return self._turns.asked(self._next)

    def tell(self, batch: Batch) -> None:
        """Take the points in, and find the next lines."""
        self._turns.told(batch)
        self._seen.update(batch)
        self._any.update(replace(batch, trials=[trial and replace(trial, violations=()) for trial in batch.trials]))
        self._next = np.array(self._middles())

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED where every line between neighbours was halved."""
        return None if len(self._next) else StopReason.EXHAUSTED

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget; the lines may end before."""
        return [Part(False, budget, self._seen.size)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the front of the points seen."""
        return self._seen.incumbents()

    def _middles(self) -> list[np.ndarray]:
        points, values = self._seen.front
        if len(points) < 2:  # as long as constraints leave one point: what holds them may lie on any line
            points, values = self._any.front
        spread = np.ptp(values, axis=0) if len(values) else np.ones(1)
        scaled = values / np.where(spread > 0, spread, 1.0)
        apart = np.linalg.norm(scaled[:, None] - scaled[None, :], axis=-1)
        between = np.maximum(apart[:, None, :], apart[None, :, :])  # of i and j to a third one
        pairs = [(i, j) for i in range(len(points)) for j in range(i) if not (between[i, j] < apart[i, j]).any()]
        found: list[np.ndarray] = []
        for i, j in sorted(pairs, key=lambda pair: (-apart[pair], pair)):
            middle = (points[i] + points[j]) / 2
            if len(found) < self._batch and not any(np.abs(middle - x).max() < SAME for x in (*self._asked, *found)):
                found.append(middle)
        return found
