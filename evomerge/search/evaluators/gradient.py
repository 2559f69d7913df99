"""The gradient evaluator: from points to trials that hold a loss and its gradient.

In: a batch that asks for gradients. Out: for each point a trial whose value is minus the loss on the inputs of that
step, the weighted mean over tasks of the mean over inputs, and whose gradient is with respect to the point. A scorer
takes the step in units, which several devices may share; their gradients are added up in the order of the units.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

from evomerge.common.limits import TimeLimit
from evomerge.fitness.objectives import task_weights
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.blocks import cut, cut_tasks, scored_whole
from evomerge.search.evaluators.serial import SerialScorer, Timing, failed
from evomerge.search.evaluators.steps import Steps
from evomerge.search.evaluators.units import Model, Scored, Scorer, Unit
from evomerge.search.learning import Learning
from evomerge.trials import Batch, Trial

logger = logging.getLogger(__name__)

WINDOW = 64
"""How many of the last predictions of a task are looked at for a collapse."""
COLLAPSED = 0.95
"""The share of one class among them from which on predictions count as collapsed."""
SPREAD = 0.8
"""The largest share of one class among the first ones for that: of some tasks nearly all items are of one class."""


class GradientEvaluator:
    """Takes loss and gradient at the points of a batch, one by one.

    Args:
        problem: what is searched.
        learning: the loss and its inputs; the problem's seed draws those of each step, its goal weighs the tasks.
        record: is told where the time of each step went.
        limit: of the time of a step.
        scorer: takes the steps; None for the live model of the problem, within that limit.
        blocks: into how many the inputs of a step are cut; those of a task stay together where the loss compares them.

    Attributes:
        size: the number of inputs of a step.
    """

    def __init__(
        self,
        problem: Problem,
        learning: Learning,
        record: Callable[[Timing], None] = lambda timing: None,
        limit: TimeLimit | None = None,
        scorer: Scorer | None = None,
        blocks: int = 1,
    ) -> None:
        self._problem, self._learning, self._record, self._blocks = problem, learning, record, blocks
        self._scorer = scorer or SerialScorer(problem, {}, limit, steps=Steps(problem, learning))
        self._share = task_weights(problem.goal.weights, learning.items)
        items = {task: chosen for task, chosen in learning.items.items() if self._share[task] > 0}
        self._subset = Subset(
            items, learning.inputs * len(items), problem.sampling.seed, rotate=True, setting="loss.inputs"
        )
        self._watch = _Watch()
        self.size = self._subset.size

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        """Let the scorer begin, and yield a trial for each missing point, in order."""
        for trial in batch.trials:  # from the log: a search that goes on has seen what it would have seen otherwise
            if trial is not None:
                self._watch(trial.results)
        ids = self._subset(batch.index)
        points = [batch.points[index] for index in missing]
        return self._trials(batch, missing, ids, self._begin(points, ids))

    def measure(self) -> float:
        """Return the seconds that loss and gradient take of the base, without a merge.

        Raises:
            Exception: whatever the model or the loss raises.
        """
        (scored,) = self._begin(["base"], self._subset(0), first=True)
        if isinstance(scored.outcome, Exception):
            raise scored.outcome
        return scored.total - scored.merge

    def _begin(self, models: Sequence[Model], ids: dict[str, list[str]], first: bool = False) -> Iterator[Scored]:
        parts = (cut_tasks if self._learning.loss.joint else cut)(ids, self._blocks)
        scale = {task: self._share[task] / len(chosen) for task, chosen in ids.items()}
        units = [Unit(model, part, scale=scale, first=first) for model in models for part in parts]
        return scored_whole(self._scorer(units), [len(parts)] * len(models), ids)

    def _trials(
        self, batch: Batch, missing: Sequence[int], ids: dict[str, list[str]], found: Iterator[Scored]
    ) -> Iterator[Trial]:
        for index in missing:
            trial = self._trial(batch, index, ids, next(found))
            self._watch(trial.results)
            yield trial
        deque(found, maxlen=0)  # to its end: the scorer learns that all was taken

    def _trial(self, batch: Batch, index: int, ids: dict[str, list[str]], scored: Scored) -> Trial:
        started, outcome = time.perf_counter(), scored.outcome
        if isinstance(outcome, Exception):
            return failed(batch.index, index, ids, outcome)
        results, gradients, name = outcome.results, scored.gradients or {}, self._learning.loss.name
        try:
            scores = {task: {name: float(rows[name].mean())} for task, rows in results.items()}
            value = -sum(self._share[task] * row[name] for task, row in scores.items())
            if not np.isfinite(value):
                raise ArithmeticError(f"the {name} is {-value}, not a finite number")
            if not np.isfinite(gradients["weight"]).all():
                raise ArithmeticError(f"the gradient of the {name} is not finite")
            gradient = -self._problem.space.pullback(gradients, batch.points[index])
        except Exception as error:  # whatever is wrong with the numbers
            return failed(batch.index, index, ids, error)
        trial = Trial(
            batch=batch.index,
            index=index,
            status="ok",
            values=(value,),
            scores=scores,
            items=ids,
            results={task: {name: row.tolist() for name, row in rows.items()} for task, rows in results.items()},
            gradient=gradient.tolist(),
        )
        total = scored.total + time.perf_counter() - started
        self._record(Timing(batch.index, index, scored.merge, scored.forward, total))
        return trial


class _Watch:
    """Warns, once for each task, when predictions that were of several classes have collapsed to one."""

    def __init__(self) -> None:
        self._seen: dict[str, list[np.ndarray]] = {}  # of the last steps, as many as give WINDOW predictions
        self._first: dict[str, float] = {}  # the share of the most frequent class when there were enough of them
        self._told: set[str] = set()

    def __call__(self, results: Mapping[str, Mapping[str, Sequence[float | None]]]) -> None:
        for task, rows in results.items():
            seen = self._seen.setdefault(task, [])
            seen.append(np.array(rows["prediction"]))
            while sum(map(len, seen[1:])) >= WINDOW:
                seen.pop(0)
            labels, counts = np.unique(np.concatenate(seen), return_counts=True)
            if counts.sum() < WINDOW or task in self._told:
                continue
            share = counts.max() / counts.sum()
            first = self._first.setdefault(task, share)
            if first <= SPREAD and share >= COLLAPSED:
                self._told.add(task)
                logger.warning(
                    "The predictions of task %s have collapsed to class %d (%.0f %% of the last %d inputs). Try "
                    "loss=entropy_marginal, a lower searcher.lr, or a loss that cannot collapse (loss=jensen_shannon).",
                    *(task, labels[counts.argmax()], 100 * share, counts.sum()),
                )
