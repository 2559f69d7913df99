"""The evaluator of values: from points to scored trials.

In: a batch and the indices of its points that have no trial yet. Out: their trials, in the order asked. It chooses the
items of the generation, the same for all its candidates, makes a unit of each candidate and a trial of what its scorer
says of it. A bad candidate costs one candidate: whatever a model or a user's fitness raises, and a NaN, becomes a
failed trial with its error, and the search goes on. Times go to a callback, never into a trial.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import LESS_EVEN, ByDisagreement
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Sample, Subset
from evomerge.fitness.spread import Spread
from evomerge.search.evaluators.blocks import cut, scored_whole
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.evaluators.serial import Timing, failed
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.trials import Batch, Trial


class ValueEvaluator:
    """Scores the points of a batch.

    Args:
        score: scores units of search items.
        subset: chooses the items of a generation.
        objective: makes values of outcomes.
        record: is told where the time of each candidate went.
        blocks: into how many the items of a candidate are cut.
        spread: says on which items candidates were far apart so far, where items are chosen by that.
        estimate: makes of an outcome the one that values are made of, on all search items; None for that of the sample.
    """

    def __init__(
        self,
        score: Scorer,
        subset: Subset,
        objective: Objective,
        record: Callable[[Timing], None] = lambda timing: None,
        blocks: int = 1,
        spread: Spread | None = None,
        estimate: Callable[[Outcome], Outcome] | None = None,
    ) -> None:
        self._estimate = estimate or (lambda outcome: outcome)
        self._score, self._subset, self._objective, self._record = score, subset, objective, record
        self._blocks, self._before = blocks, dict[int, int]()
        self._asked, self._spread = 0, spread
        self._untaken: list[Batch] = []  # whose trials the spread has not taken yet

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        """Let the scorer begin, and yield a trial for each missing point, in order, as soon as those before it have
        ended too.
        """
        sample = self.sample(batch)
        ids, parts = sample.ids, cut(sample.ids, self._blocks)
        points = [batch.points[index] for index in missing]
        answers = self._score([Unit(point, part) for point in points for part in parts])
        return self._trials(batch, missing, sample, scored_whole(answers, [len(parts)] * len(points), ids))

    def sample(self, batch: Batch) -> Sample:
        """Return the items of a batch; batches are told of in the order asked, those that the log holds as well."""
        if batch.index not in self._before:
            self._before[batch.index] = self._asked
            self._asked += len(batch.points)
            if self._spread:
                self._adapt(batch, self._spread)
        return self._subset.sample(batch.index, self._before[batch.index], len(batch.points))

    def _adapt(self, batch: Batch, spread: Spread) -> None:
        """Let the items of a batch be chosen by the trials of those before it, which are told."""
        for trial in (trial for past in self._untaken for trial in past.trials if trial is not None and trial.values):
            spread.take(trial)
        self._untaken = [batch]
        if (apart := spread.deviations()) is not None:
            self._subset = self._subset.informed(ByDisagreement(apart, LESS_EVEN))

    def _trials(self, batch: Batch, missing: Sequence[int], sample: Sample, found: Iterator[Scored]) -> Iterator[Trial]:
        for index in missing:
            yield self.trial(batch, index, sample, next(found))
        deque(found, maxlen=0)  # to its end: the scorer learns that all was taken

    def trial(self, batch: Batch, index: int, sample: Sample, scored: Scored) -> Trial:
        """Return the trial of a point, of what its scorer says of it on these items."""
        started, outcome = time.perf_counter(), scored.outcome
        if isinstance(outcome, Exception):
            return failed(batch.index, index, sample.ids, outcome)
        try:
            outcome = sample.weighed(outcome)
            check_finite(outcome)
            values, violations = self._objective(self._estimate(outcome))
            if not np.isfinite(values).all():
                wrong = next(value for value in values if not np.isfinite(value))
                raise ArithmeticError(f"the objective is {wrong}, not a finite number")
        except Exception as error:  # such as an objective of somebody's own
            return failed(batch.index, index, sample.ids, error)
        trial = Trial(
            batch=batch.index,
            index=index,
            status="ok",
            values=values,
            violations=violations,
            scores=outcome.scores(),
            items=outcome.items,
            results={
                task: {name: each.tolist() for name, each in metrics.items()}
                for task, metrics in outcome.results.items()
            },
            weights=outcome.weights,
        )
        total = scored.total + time.perf_counter() - started
        self._record(Timing(batch.index, index, scored.merge, scored.forward, total))
        return trial
