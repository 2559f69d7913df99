"""TPE: the tree-structured Parzen estimator (Bergstra et al. 2011; multivariate, Falkner et al. 2018), by Optuna.

In: a start point, scored first. Out: points where good trials are dense and bad ones are not. The study lives in
memory: the trial log is the truth, and Optuna's storages write each parameter by itself (seconds per trial with
hundreds of coefficients). The sampler is made anew for every ask with a seed that depends on the search's seed and
the number of the ask, so a replay asks the same without pickles.
"""

from __future__ import annotations

import logging
import math
import threading
from collections import deque

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import TPESampler

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Elite, Incumbent, Needs, Parents, Part, Turns, checked_lag, inside
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

    Raises:
        ConfigError: for a batch below 1, a lag below 0, or a start outside the bounds.
    """

    needs = Needs()

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
    ) -> None:
        if batch < 1:
            raise ConfigError(f"searcher.batch is {batch}; at least one point must be asked at a time.")
        self._names = space.names
        bounds = zip(space.names, space.low.tolist(), space.high.tolist(), strict=True)
        self._box: dict[str, BaseDistribution] = {name: FloatDistribution(low, high) for name, low, high in bounds}
        self._seed, self._batch, self._startup, self._candidates = seed, batch, startup, candidates
        self._asks = 0
        self._study = _quiet_study()
        self._study.enqueue_trial(dict(zip(space.names, inside(space, start).tolist(), strict=True)))
        self.lag = checked_lag(lag)
        self._open: deque[list[optuna.trial.Trial]] = deque()
        self._turns = Turns()
        self._elite = Elite(keep)

    def ask(self) -> Batch:
        """Return the next points, shape (batch, dim)."""
        asked = [self._suggest() for _ in range(self._batch)]
        points = np.array([[trial.params[name] for name in self._names] for trial in asked])
        batch = self._turns.asked(points, lag=self.lag)
        self._open.append(asked)
        return batch

    def tell(self, batch: Batch) -> None:
        """Add the trials to the study; failed points count as -inf, so the model avoids them."""
        self._turns.told(batch)
        for trial, value in zip(self._open.popleft(), batch.values.tolist(), strict=True):
            self._study.tell(trial, value)
        self._elite.update(batch)

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget."""
        return [Part(False, budget, self._elite.size, self.parents())]

    def parents(self) -> Parents:
        """Return how many points the model takes for good: a tenth, 25 at most, as Optuna does; all random ones."""
        told = self._batch * self._turns.index
        return Parents(min(math.ceil(told / 10), 25) if told >= self._startup else told, self._turns.index)

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the best points seen."""
        return self._elite.incumbents()

    def _suggest(self) -> optuna.trial.Trial:
        seed = int(np.random.SeedSequence([self._seed, self._asks]).generate_state(1)[0])
        self._asks += 1
        self._study.sampler = TPESampler(n_startup_trials=self._startup, n_ei_candidates=self._candidates, seed=seed)
        return self._study.ask(self._box)


def _quiet_study() -> optuna.Study:
    """Make a study in memory. Optuna's own line about it is not shown; its logging stays as the program has it."""
    thread, logger = threading.get_ident(), logging.getLogger("optuna.storages._in_memory")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        return optuna.create_study(direction="maximize")
    finally:
        logger.removeFilter(others)
