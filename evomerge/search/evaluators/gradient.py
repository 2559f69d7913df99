"""The gradient evaluator: from points to trials that hold a loss and its gradient.

In: a batch that asks for gradients. Out: for each point a trial whose value is minus the loss on the inputs of that
step, the weighted mean over tasks of the mean over inputs, and whose gradient is with respect to the point. Tasks are
walked one after the other, each batch forward and backward before the next, so one graph is in memory at a time.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import LiveModelError
from evomerge.common.exits import contained
from evomerge.common.limits import TimeLimit
from evomerge.fitness.capabilities import Batched
from evomerge.fitness.objectives import task_weights
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.serial import Timing, failed
from evomerge.search.learning import Learning
from evomerge.search.memory import with_smaller_batches
from evomerge.trials import Batch, Trial

logger = logging.getLogger(__name__)

WINDOW = 64
"""How many of the last predictions of a task are looked at for a collapse."""
COLLAPSED = 0.95
"""The share of one class among them from which on predictions count as collapsed."""
SPREAD = 0.8
"""The largest share of one class among the first ones for that: of some tasks nearly all items are of one class."""

_Results = dict[str, dict[str, np.ndarray]]
"""Per-item results (n,) by task and name."""
_Gradients = dict[str, np.ndarray]
"""Gradients (G, K) by variable."""


class GradientEvaluator:
    """Takes loss and gradient at the points of a batch, one by one.

    Args:
        problem: what is searched.
        learning: the loss and its inputs; the problem's seed draws those of each step, its goal weighs the tasks.
        record: is told where the time of each step went.
        limit: of the time of a step.

    Attributes:
        size: the number of inputs of a step.
    """

    def __init__(
        self,
        problem: Problem,
        learning: Learning,
        record: Callable[[Timing], None] = lambda timing: None,
        limit: TimeLimit | None = None,
    ) -> None:
        self._problem, self._learning, self._record = problem, learning, record
        self._limit = limit or TimeLimit()
        self._guard = problem.merger.guard
        self._share = task_weights(problem.goal.weights, learning.items)
        items = {task: chosen for task, chosen in learning.items.items() if self._share[task] > 0}
        self._subset = Subset(
            items, learning.inputs * len(items), problem.sampling.seed, rotate=True, setting="loss.inputs"
        )
        self._wanted = problem.space.moves("weight")
        self._watch = _Watch()
        self.size = self._subset.size

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        """Yield a trial for each missing point, in order."""
        for trial in batch.trials:  # from the log: a search that goes on has seen what it would have seen otherwise
            if trial is not None:
                self._watch(trial.results)
        ids = self._subset(batch.index)
        for index in missing:
            trial = self._trial(batch, index, ids)
            self._watch(trial.results)
            yield trial

    def measure(self) -> float:
        """Return the seconds that loss and gradient take of the model as it is, without a merge."""
        started = time.perf_counter()
        self._walk(self._subset(0))
        return time.perf_counter() - started

    def _trial(self, batch: Batch, index: int, ids: dict[str, list[str]]) -> Trial:
        started = time.perf_counter()
        try:
            results, gradients, merged, walked = self._limit(lambda: self._step(batch.points[index], ids))
            scores = {task: {self._name: float(rows[self._name].mean())} for task, rows in results.items()}
            value = -sum(self._share[task] * row[self._name] for task, row in scores.items())
            if not np.isfinite(value):
                raise ArithmeticError(f"the {self._name} is {-value}, not a finite number")
            if not np.isfinite(gradients["weight"]).all():
                raise ArithmeticError(f"the gradient of the {self._name} is not finite")
            gradient = -self._problem.space.pullback(gradients, batch.points[index])
        except LiveModelError:  # every later loss would be one of another model
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise
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
        self._record(Timing(batch.index, index, merged - started, walked - merged, time.perf_counter() - started))
        return trial

    @property
    def _name(self) -> str:
        return self._learning.loss.name

    def _step(self, point: np.ndarray, ids: Mapping[str, Sequence[str]]) -> tuple[_Results, _Gradients, float, float]:
        """Build a candidate and take its loss and gradient; say as well when it was built and when they were taken."""
        self._problem.merger.apply(self._problem.space.decode(point))
        merged = time.perf_counter()
        results, gradients = self._walk(ids)
        return results, gradients, merged, time.perf_counter()

    def _walk(self, ids: Mapping[str, Sequence[str]]) -> tuple[_Results, _Gradients]:
        """Go forward and backward through the model as it is: per-item results, and gradients of the coefficients; in
        smaller batches where memory does not suffice, if the loss of an item does not depend on the others.
        """
        learning, whole = self._learning, None
        if learning.loss.joint:
            whole = (
                f"loss.marginal compares the inputs of a step with each other, so loss.inputs={learning.inputs} must "
                f"be in one batch, and there is not enough memory for that: lower it, or take another loss"
            )
            fitness = learning.fitness
            if isinstance(fitness, Batched) and fitness.batch_size < learning.inputs:  # halved by what was scored
                raise MemoryError(whole)

        def walk() -> tuple[_Results, _Gradients]:
            results = {
                task: {self._name: np.zeros(len(chosen)), "prediction": np.empty(len(chosen))}
                for task, chosen in ids.items()
            }
            return results, self._problem.merger.gradient(self._losses(ids, results), self._wanted)

        with self._guard:
            return contained(lambda: with_smaller_batches(learning.fitness, walk, whole))

    def _losses(self, ids: Mapping[str, Sequence[str]], results: _Results) -> Iterator[Tensor]:
        """Yield each batch's part of the loss, and note the results of its items; the loss of an item with several
        rows, the tokens of an answer, is their mean, and its prediction that of the first.
        """
        learning = self._learning
        for task, chosen in ids.items():
            for answers in learning.fitness.logits(self._problem.live.model, learning.prepared, {task: chosen}):
                answer = answers[task]
                target = answer.labels
                if learning.loss.taught:
                    target = torch.stack([learning.teachers[task][chosen[i]] for i in answer.positions])
                losses = learning.loss(answer.logits, target.to(answer.logits.device))
                rows = torch.tensor(answer.positions)
                losses = losses / torch.bincount(rows)[rows].to(losses.device)
                np.add.at(results[task][self._name], answer.positions, losses.detach().cpu().numpy())
                predictions = answer.logits.argmax(-1).cpu().numpy()
                results[task]["prediction"][answer.positions[::-1]] = predictions[::-1]
                yield losses.sum() * (self._share[task] / len(chosen))
            self._guard.check()  # or what a task leaves behind would be the next one's model


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
