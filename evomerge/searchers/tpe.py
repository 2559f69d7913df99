"""TPE: the tree-structured Parzen estimator (Bergstra et al. 2011; multivariate, Falkner et al. 2018), by Optuna.

In: a start point, scored first. Out: points where good trials are dense and bad ones are not; of several values, good
ones are those of the first fronts (Ozaki et al. 2022). How the study is kept, and asked again: see `studies.py`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from optuna.samplers import TPESampler

from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Parents, Part, Turns, checked_batch, checked_lag, inside
from evomerge.searchers.studies import Study
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason


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

    Raises:
        ConfigError: for a batch below 1, a lag below 0, or a start outside the bounds.
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
    ) -> None:
        self._batch, self._startup, self.lag = checked_batch(batch), startup, checked_lag(lag)
        # of several values, Optuna would take each coordinate by itself, which is slow and knows no directions
        own: dict[str, Any] = {"multivariate": True} if objectives > 1 else {}
        self._study = Study(
            *(space, [inside(space, start)], seed, objectives),
            lambda seed: TPESampler(n_startup_trials=startup, n_ei_candidates=candidates, seed=seed, **own),
        )
        self._turns = Turns()
        self._seen = memory(objectives, keep, incumbents)

    def ask(self) -> Batch:
        """Return the next points, shape (batch, dim)."""
        return self._turns.asked(self._study.ask(self._batch), lag=self.lag)

    def tell(self, batch: Batch) -> None:
        """Add the trials to the study; failed points count as -inf, so the model avoids them."""
        self._turns.told(batch)
        self._study.tell(batch)
        self._seen.update(batch)

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget."""
        return [Part(False, budget, self._seen.size, self.parents())]

    def parents(self) -> Parents:
        """Return how many points the next model takes for good, when one more batch is told: a tenth, 25 at most, as
        Optuna does; all of them while random ones come next, since a model will be made of them.
        """
        told = self._batch * (self._turns.index + 1)
        return Parents(min(math.ceil(told / 10), 25) if told >= self._startup else told, self._turns.index)

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen."""
        return self._seen.incumbents()
