"""TPE: the tree-structured Parzen estimator (Bergstra et al. 2011; multivariate, Falkner et al. 2018), by Optuna.

In: a start point, scored first. Out: points where good trials are dense and bad ones are not; of several values, good
ones are those of the first fronts (Ozaki et al. 2022). How the study is kept, and asked again: see `studies.py`.

With a `share` below 1 more points are drawn than are scored, and a regression over the search says which
(`screening.py`). TPE goes by what the regression says of the scored points as well, in place of their values: so it
can compare generations that were scored on other items. Both go by the last 300 points (`RECENT`). What is left out is
no trial, and TPE is told nothing of it. The scored points of which most is expected are handed over beside the best
seen, which are the luckiest of many.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.samplers import TPESampler

from evomerge.common.errors import ConfigError
from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Parents, Part, Turns, checked_batch, checked_lag, inside
from evomerge.searchers.screening import Screening
from evomerge.searchers.studies import Study
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

PART = 8
"""Over so many points at least it is measured how well the regression ranks: one batch may be a single point."""
LEADERS = 3
"""So many points are handed over for what is expected of them."""


class Tpe:
    """Searcher by Optuna's TPE sampler.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: any integer from 0.
        batch: points asked at once; 1 learns from every trial.
        startup: how many random points come before the model.
        candidates: how many draws the acquisition chooses from.
        lag: how many batches are asked ahead of the oldest that is not told yet; the model takes points without a value
            for bad ones (Optuna's constant liar), so that open batches lie apart.
        keep: how many of the best points seen stay incumbents.
        incumbents: how many points of a front do, where a point has several values.
        objectives: how many values a point has.
        share: of the points drawn that is scored; 1 for all.

    Raises:
        ConfigError: for a batch below 1, a lag below 0, a share that is none or that has several values to go by, or a
            start outside the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        batch: int = 1,
        startup: int = 10,
        candidates: int = 24,
        keep: int = 5,
        lag: int = 0,
        incumbents: int = SIZE,
        objectives: int = 1,
        share: float = 1.0,
    ) -> None:
        if not 0 < share <= 1:
            raise ConfigError(
                f"searcher.share={share} says which part of the points drawn is scored: write a number up to 1, such "
                f"as 0.125, or 1 to score all."
            )
        if share < 1 and objectives > 1:
            raise ConfigError(
                f"searcher.share={share} leaves out points by one value, and there are {objectives}: write "
                f"searcher.share=1."
            )
        if share < 1 and lag:
            raise ConfigError(
                f"searcher.share={share} chooses by all that was asked before, which searcher.lag={lag} leaves open: "
                f"write searcher.lag=0, or searcher.share=1."
            )
        self._batch, self._startup, self.lag = checked_batch(batch), startup, checked_lag(lag)
        # of several values, Optuna would take each coordinate by itself, which is slow and knows no directions
        own: dict[str, Any] = {"multivariate": True} if objectives > 1 else {}
        self._study = Study(
            *(space, [inside(space, start)], seed, objectives),
            lambda seed: TPESampler(n_startup_trials=startup, n_ei_candidates=candidates, seed=seed, **own),
        )
        self._drawn = math.ceil(self._batch / share)
        self._screening = Screening(space, part=PART) if share < 1 else None
        self._expected: np.ndarray | None = None  # of the points that were asked
        self._turns = Turns()
        self._seen = memory(objectives, keep, incumbents)

    def ask(self) -> Batch:
        """Return the next points, shape (batch, dim)."""
        if self._screening is not None and self._turns.index:  # before, the study knows what is asked first
            self._study.restate(*self._screening.smoothed())
        points = self._study.ask(self._drawn, None if self._screening is None else self._chosen)
        return self._turns.asked(points, lag=self.lag)

    def tell(self, batch: Batch) -> None:
        """Add the trials to the study; failed points count as -inf, so the model avoids them."""
        self._turns.told(batch)
        self._study.tell(batch)
        if self._screening is not None:
            self._screening.learn(batch, self._expected)
        self._seen.update(batch)

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget."""
        leaders = LEADERS if self._screening else 0
        return [Part(False, budget, self._seen.size + leaders, self.parents())]

    def parents(self) -> Parents:
        """Return how many points the next model takes for good, when one more batch is told: a tenth, 25 at most, as
        Optuna does; all of them while random ones come next, since a model will be made of them, and where a regression
        goes by them. It takes out what a batch of several points has in common.
        """
        told = self._batch * (self._turns.index + 1)
        if self._screening is not None:
            alone = self._batch == 1
            count, earlier = (told, self._turns.index) if alone else (self._batch, None)
            return Parents(count, earlier, "a regression goes by all of them")
        return Parents(min(math.ceil(told / 10), 25) if told >= self._startup else told, self._turns.index)

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen, and those of which most is expected."""
        best = self._seen.incumbents()
        leaders = self._screening.leaders(LEADERS) if self._screening else []
        new = [one for one in leaders if not any(np.array_equal(one.x, other.x) for other in best.values())]
        return {**best, **{f"expected_{i + 1}" if i else "expected": one for i, one in enumerate(new)}}

    def _chosen(self, points: np.ndarray) -> np.ndarray:
        """Return the places of the points that are scored: the first of them while nothing says which are better."""
        assert self._screening is not None
        found = self._screening.expected(points)
        places = self._screening.better(found, self._batch)
        if places is None:
            places = np.arange(self._batch)
        self._expected = None if found is None else found[places]
        return places
