"""The serial evaluator: from points to scored trials, one after the other on one live model.

In: a batch and the indices of its points that have no trial yet. Out: their trials, as they end. It owns merger,
fitness and objective, and chooses the items of the generation, the same for all its candidates. A bad candidate costs
one candidate: an exception, a NaN, a `sys.exit` (`exits.py`), a change of the live model (`guard.py`), a lack of
memory that smaller batches cannot mend (`memory.py`) or a hang (`limits.py`) becomes a failed trial with its error, and
the search goes on. Times go to a callback, never into a trial.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from evomerge.common.errors import ConfigError, EvomergeError, LiveModelError, NotFinite
from evomerge.common.exits import contained
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.finite import watched
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.merging.merger import Merger
from evomerge.models.guard import Guard
from evomerge.search.memory import free, lacks_memory, with_smaller_batches
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, Trial

failures = logging.getLogger(f"{__name__}.failures")
"""Is told of each candidate that fails."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one candidate went, in seconds."""

    batch: int
    index: int
    merge: float
    forward: float
    total: float


class Scorer:
    """A live model with what it takes to score it on the items of a split.

    Args:
        model: the live model.
        fitness: scores it.
        prepared: what the fitness prepared for these items.
        guard: of the model, such as its merger has; without one, a change of values cannot be undone.
    """

    def __init__(self, model: Any, fitness: Fitness, prepared: Any, guard: Guard | None = None) -> None:
        self.model, self.fitness, self.prepared = model, fitness, prepared
        self._guard = guard or Guard(model)

    def __call__(self, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model as it is now, in smaller batches where memory does not suffice.

        Raises:
            NotFinite: its logits are not.
            ModelChanged: the fitness has changed the model, which is put back.
            LiveModelError: the fitness has changed the model, which cannot be put back.
            Exited: the fitness has called `sys.exit`.
            TypeError: the fitness has returned no numbers.
            ValueError: it has scored other items, or returned another number of results.
        """

        def score() -> Outcome:
            return with_smaller_batches(self.fitness, lambda: self.fitness(self.model, self.prepared, ids))

        with watched(self.model), self._guard:
            outcome = contained(score)
        return _own(outcome, ids)


def _own(outcome: Any, ids: Mapping[str, Sequence[str]]) -> Outcome:
    """Return what a fitness has returned, its numbers copied: a fitness may write into its arrays again."""
    if not isinstance(outcome, Outcome):
        raise TypeError(f"the fitness returned {outcome!r:.100}, which is no Outcome")
    if dict(outcome.items) != ids or outcome.results.keys() != ids.keys():
        raise ValueError("the fitness scored other items than it was asked to")
    results = {
        task: {name: _numbers(values, name, task, len(ids[task])) for name, values in metrics.items()}
        for task, metrics in outcome.results.items()
    }
    return replace(outcome, results=results)


def _numbers(values: Any, name: str, task: str, n: int) -> np.ndarray:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise TypeError(f"the fitness returned no numbers as {name} of {task}, but {values!r:.100}") from error
    if numbers.shape != (n,):
        raise ValueError(
            f"the fitness returned an array of shape {numbers.shape} as {name} of {task}, which has {n} items"
        )
    return numbers


def prepare(fitness: Fitness, processor: Any, items: Mapping[str, Sequence[Item]], **more: Any) -> Any:
    """Return what a fitness prepares for some items.

    Raises:
        ConfigError: it fails; the message says how.
    """
    try:
        return contained(lambda: fitness.prepare(processor, items, **more))
    except EvomergeError:
        raise
    except Exception as error:  # whatever a user's fitness may raise
        raise ConfigError(f"The fitness cannot prepare its items: {type(error).__name__}: {error}") from error


class SerialEvaluator:
    """Scores the points of a batch one by one.

    Args:
        space: decodes points.
        merger: builds candidates in the live model.
        score: scores the live model on search items.
        subset: chooses the items of a generation.
        objective: makes values of outcomes.
        record: is told where the time of each candidate went.
        limit: of the time of a candidate.
    """

    def __init__(
        self,
        space: CoefficientSpace,
        merger: Merger,
        score: Scorer,
        subset: Subset,
        objective: Objective,
        record: Callable[[Timing], None] = lambda timing: None,
        limit: TimeLimit | None = None,
    ) -> None:
        self._space, self._merger, self._score = space, merger, score
        self._subset, self._objective, self._record = subset, objective, record
        self._limit = limit or TimeLimit()

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
        """Yield a trial for each missing point, in order."""
        ids = self._subset(batch.index)
        for index in missing:
            yield self._trial(batch, index, ids)

    def _trial(self, batch: Batch, index: int, ids: dict[str, list[str]]) -> Trial:
        started = time.perf_counter()
        try:
            outcome, merged, scored = self._limit(lambda: self._outcome(batch.points[index], ids))
            check_finite(outcome)
            values, violations = self._objective(outcome)
            if not np.isfinite(values).all():
                raise ArithmeticError(f"the objective is {values[0]}, not a finite number")
        except LiveModelError:  # every later score would be one of another model
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise
            return failed(batch.index, index, ids, error)
        forward = scored - merged if outcome.forward_seconds is None else outcome.forward_seconds
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
        )
        self._record(Timing(batch.index, index, merged - started, forward, time.perf_counter() - started))
        return trial

    def _outcome(self, point: np.ndarray, ids: dict[str, list[str]]) -> tuple[Outcome, float, float]:
        """Build a candidate and score it; say as well when it was built and when it was scored."""
        self._merger.apply(self._space.decode(point))
        merged = time.perf_counter()
        outcome = self._score(ids)
        return outcome, merged, time.perf_counter()


def failed(batch: int, index: int, ids: dict[str, list[str]], error: Exception) -> Trial:
    """Return the trial of a point whose model or fitness raised an error, and tell the user."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    failures.warning("Candidate %d of generation %d failed and is ranked last: %s", index, batch, text)
    if lacks_memory(error):
        free()
    if isinstance(error, torch.OutOfMemoryError):
        text = "OutOfMemoryError"  # how much memory was free, and who held the rest, is another number every time
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)  # no addresses in the log,
    text = re.sub(r"/(?:[^\s/'\"]+/)+", "…/", text)  # and no paths of this machine
    return Trial(batch, index, "failed", None, items=ids, error=text)


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what cannot go on, where a model or a user's fitness raises an error of its own.

    Args:
        what: the beginning of the message.

    Raises:
        ConfigError: it raised one.
        EvomergeError: an error of evomerge's own, as it is.
    """
    try:
        yield
    except EvomergeError:
        raise
    except Exception as error:  # of whatever kind
        raise ConfigError(f"{what}: {type(error).__name__}: {error}") from error


def check_finite(outcome: Outcome, metric: str | None = None) -> None:
    """Refuse results that are no finite numbers: a mean over them says nothing.

    Args:
        outcome: of a model.
        metric: the one that counts; all of them when left out.

    Raises:
        NotFinite: there are some; the message says of which metric and task, and how many.
    """
    for task, metrics in outcome.results.items():
        for name, results in metrics.items():
            bad = int((~np.isfinite(results)).sum())
            if bad and metric in (None, name):
                raise NotFinite(f"{name} of {bad} of {len(results)} items of {task} is not a finite number")
