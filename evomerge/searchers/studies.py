"""A study of Optuna's, asked and told in batches: what the searchers by its samplers share.

In: a space, a start point, which is asked first, and a way to make a sampler of a seed. Out: points, and the batches
told to the study. It lives in memory: the trial log is the truth, and Optuna's storages write each parameter by itself
(seconds per trial with hundreds of coefficients). The sampler is made anew for every point with a seed that depends on
the search's seed and the number of the point, so a replay asks the same without pickles.

A point without a value is told as what is bad: -inf where there is one value. Of several, whose numbers must be finite,
it has the worst that were told and violates a constraint by more than any other; constraints are told as how much a
point lacks in all, by which Optuna ranks as Deb et al. (2002).
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable

import numpy as np
import optuna
from optuna.distributions import BaseDistribution, FloatDistribution
from optuna.samplers import BaseSampler, NSGAIISampler
from optuna.study import StudyDirection
from optuna.trial import TrialState, create_trial

from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch

FAILED = 1e100
"""How much a point without a value violates."""


class Study:
    """A study in memory.

    Args:
        space: the coefficient space.
        first: the points that are asked first, each (dim,).
        seed: any integer from 0.
        objectives: how many values a point has.
        sampler: makes a sampler of a seed.
        parents: whether the first points are the first generation of a genetic algorithm. Optuna does not count points
            that it has not drawn, and would draw a first generation after them.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        first: Iterable[np.ndarray],
        seed: int,
        objectives: int,
        sampler: Callable[[int], BaseSampler],
        parents: bool = False,
    ) -> None:
        bounds = zip(space.names, space.low.tolist(), space.high.tolist(), strict=True)
        self._box: dict[str, BaseDistribution] = {name: FloatDistribution(low, high) for name, low, high in bounds}
        self._seed, self._objectives, self._sampler, self._asks = seed, objectives, sampler, 0
        self._parents = parents
        self._study = _quiet_study(objectives)
        for x in first:
            self._study.enqueue_trial(dict(zip(space.names, x.tolist(), strict=True)))
        self._open: deque[list[optuna.trial.Trial]] = deque()
        self._worst = np.zeros(objectives)
        self._told = False

    def ask(self, count: int, choose: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Return points, (n, dim), which are told next but for those that are open.

        Args:
            count: how many are drawn.
            choose: returns the places of those of them, (count, dim), that are asked; None where all are. The study
                forgets the others.
        """
        drawn = [self._suggest() for _ in range(count)]
        points = np.array([[trial.params[name] for name in self._box] for trial in drawn])
        places = range(count) if choose is None else choose(points).tolist()
        for trial in (drawn[i] for i in range(count) if i not in places):
            self._study.tell(trial, state=TrialState.FAIL)
        self._open.append([drawn[i] for i in places])
        return points[places]

    def tell(self, batch: Batch) -> None:
        """Add the oldest open batch to the study."""
        asked = self._open.popleft()
        if self._objectives == 1:
            for trial, value in zip(asked, batch.values.tolist(), strict=True):
                self._study.tell(trial, value)
            return
        table, violated = batch.table(self._objectives), batch.violated
        if len(good := table[np.isfinite(table).all(axis=1)]):
            self._worst = np.minimum(good.min(axis=0), self._worst) if self._told else good.min(axis=0)
            self._told = True
        for trial, values, lacks in zip(asked, table, violated.tolist(), strict=True):
            trial.set_constraint("all", min(lacks, FAILED))
            self._study.tell(trial, (values if np.isfinite(values).all() else self._worst).tolist())

    def restate(self, points: np.ndarray, values: np.ndarray) -> None:
        """Forget what was told, but for these points, (n, dim), which have these values, (n,). None may be open."""
        study = _quiet_study(self._objectives)
        for point, value in zip(points.tolist(), values.tolist(), strict=True):
            params = dict(zip(self._box, point, strict=True))
            study.add_trial(create_trial(params=params, distributions=self._box, value=value))
        self._study = study

    def _suggest(self) -> optuna.trial.Trial:
        seed = int(np.random.SeedSequence([self._seed, self._asks]).generate_state(1)[0])
        self._asks += 1
        sampler = self._study.sampler = self._sampler(seed)
        trial = self._study.ask(self._box)
        if self._parents and isinstance(sampler, NSGAIISampler):
            sampler.get_trial_generation(self._study, self._study.get_trials(deepcopy=False)[trial.number])
        return trial


def _quiet_study(objectives: int) -> optuna.Study:
    """Make a study in memory. Optuna's own line about it is not shown; its logging stays as the program has it."""
    thread, logger = threading.get_ident(), logging.getLogger("optuna.storages._in_memory")

    def others(record: logging.LogRecord) -> bool:
        return record.thread != thread

    logger.addFilter(others)
    try:
        return optuna.create_study(directions=[StudyDirection.MAXIMIZE] * objectives)
    finally:
        logger.removeFilter(others)
