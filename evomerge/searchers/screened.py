"""CMA-ES whose generations are screened: a regression over the search so far ranks a larger generation, and only the
better part of it is scored (`screening.py`).

In: a start point. Out: batches of the points that are worth scoring. The others are told as worse than those that were
scored, in the order in which the regression has them, so CMA-ES learns from the whole generation. How well expected
values rank those that were found is measured in each generation; while they do not, all points are scored.

Which points are asked depends on what was told, and on nothing else, as with any searcher: so a search that was killed
goes on as it would have. Only points that are scored stand in the log, and count in a budget.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import replace

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Incumbent, Needs, Parents, Part, Turns
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.screening import AGREE, Screening
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason, Trial


class Screened:
    """Searcher by CMA-ES (`cmaes.py`) with screening.

    Args:
        space: the coefficient space.
        start: the initial mean, shape (dim,), within the bounds.
        seed: any integer from 0.
        share: of a generation that is scored; 1 / share times `popsize` points are drawn.
        agree: the mean rank correlation of expected and found values below which all points are scored.
        sigma: the initial step as a fraction of each coefficient's range.
        popsize: points of a generation that are scored; None for 4 + floor(3 ln dim).
        diagonal_above: the number of free coefficients above which the covariance is diagonal.
        keep: how many of the best points seen stay incumbents, beside the mean.

    Raises:
        ConfigError: for a share that is none, a correlation that is none, and what CMA-ES refuses.
    """

    needs = Needs()

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        share: float = 0.5,
        agree: float = AGREE,
        sigma: float = 0.15,
        popsize: int | None = None,
        diagonal_above: int = 24,
        keep: int = 4,
    ) -> None:
        if not 0 < share < 1:
            raise ConfigError(
                f"searcher.share={share} says which part of a generation is scored: write a number between 0 and 1, "
                f"such as 0.5, or searcher=cmaes to score all."
            )
        self._screening = Screening(space, agree)
        size = 4 + math.floor(3 * math.log(space.dim)) if popsize is None else popsize
        drawn = size if size < 2 else math.ceil(size / share)  # too few: CMA-ES says what to write
        self._inner = CmaEs(space, start, seed, sigma, drawn, diagonal_above, keep)
        self._scored = size
        self._turns = Turns()
        self._open = deque[
            tuple[Batch, np.ndarray, np.ndarray | None]
        ]()  # what was drawn, who of it is scored, expected

    def ask(self) -> Batch:
        """Return the better part of the next generation, in the order drawn; all of it while that is not known."""
        batch = self._inner.ask()
        found = self._screening.expected(batch.points)
        chosen = self._screening.better(found, self._scored)
        if chosen is None:
            chosen = np.arange(len(batch.points))
        asked = self._turns.asked(batch.points[chosen])
        self._open.append((batch, chosen, found))
        return asked

    def tell(self, batch: Batch) -> None:
        """Pass on the values, and those of the points that were left out as worse ones."""
        self._turns.told(batch)
        drawn, chosen, found = self._open.popleft()
        self._screening.learn(batch, None if found is None else found[chosen])
        points, trials = drawn.points.copy(), list(drawn.trials)
        points[chosen] = batch.points  # on a replay, those of the log
        for place, trial in zip(chosen.tolist(), batch.trials, strict=True):
            trials[place] = trial
        left = np.setdiff1d(np.arange(len(points)), chosen)
        if found is not None:
            left = left[np.argsort(-found[left], kind="stable")]
        bound = min(batch.values[np.isfinite(batch.values)], default=None)
        for place in left.tolist():
            bound = None if bound is None else math.nextafter(bound, -math.inf)
            known = None if bound is None else (float(bound),)
            trials[place] = Trial(batch.index, place, "failed" if known is None else "censored", known)
        self._inner.tell(replace(drawn, points=points, trials=trials))

    def stop(self) -> StopReason | None:
        """Return CONVERGED when steps no longer change any coefficient in float64."""
        return self._inner.stop()

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget, which hands over the mean as well."""
        return [replace(part, parents=self.parents()) for part in self._inner.parts(budget)]

    def cautions(self, budget: int) -> list[str]:
        """Say that the budget ends before anything is learned: the first generation is scored whole."""
        return self._inner.cautions(budget)

    def parents(self) -> Parents:
        """Return how many points of a generation count: those that the mean moves to, and all that are scored once it
        is screened, since those that are not are told as worse than any of them.
        """
        moved = self._inner.parents()
        return replace(moved, count=max(moved.count, self._scored), all_count="those that were screened all count")

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the mean of the distribution and the best points that were scored."""
        return self._inner.incumbents()
