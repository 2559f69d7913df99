"""The serial scorer: units are scored one after the other on one live model, and what goes wrong is contained.

In: units, each a point and the items to score it on. Out: what came of each, as it ends. The merger builds the
candidate, and the fitness scores the live model. An exception, a `sys.exit` (`exits.py`), a change of the live model
(`guard.py`), a lack of memory that smaller batches cannot mend (`memory.py`) or a hang (`limits.py`) is what came of
one unit, and the next one is scored as if nothing had happened.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch

from evomerge.common.errors import ConfigError, EvomergeError, LiveModelError, NotFinite
from evomerge.common.exits import contained
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.capabilities import Probable
from evomerge.fitness.finite import watched
from evomerge.fitness.items import Item
from evomerge.merging.merger import Merger
from evomerge.models.guard import Guard
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.memory import free, lacks_memory, with_smaller_batches
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Trial

T = TypeVar("T")
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


class LiveFitness:
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

        return _own(self._guarded(lambda: self.fitness(self.model, self.prepared, ids)), ids)

    def probabilities(self, fitness: Probable, ids: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Return what the model as it is now says of items; see `Probable`, which the fitness is.

        Raises:
            EvomergeError: as in a call.
        """
        return self._guarded(lambda: fitness.probabilities(self.model, self.prepared, ids))

    def _guarded(self, ask: Callable[[], T]) -> T:
        with watched(self.model), self._guard:
            return contained(lambda: with_smaller_batches(self.fitness, ask))


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


class SerialScorer:
    """Scores units one by one on a live model, merged once for units in a row that are of one candidate.

    Args:
        space: decodes points.
        merger: builds candidates in the live model.
        fitness: scores the live model.
        limit: of the time of a unit.
    """

    def __init__(
        self, space: CoefficientSpace, merger: Merger, fitness: LiveFitness, limit: TimeLimit | None = None
    ) -> None:
        self._space, self._merger, self._fitness, self._limit = space, merger, fitness, limit or TimeLimit()
        self._live: np.ndarray | None = None  # the point that the live model is merged at

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what came of each unit with its position, in order; the next one begins once this one is taken."""
        self._live = None
        for position, unit in enumerate(units):
            yield position, self._scored(unit)

    def _scored(self, unit: Unit) -> Scored:
        started = time.perf_counter()
        try:
            outcome, merged, ended = self._limit(lambda: self._outcome(unit))
        except LiveModelError:  # every later score would be one of another model
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise
            self._live = None
            return Scored(error)
        forward = ended - merged if outcome.forward_seconds is None else outcome.forward_seconds
        return Scored(outcome, merged - started, forward, time.perf_counter() - started)

    def _outcome(self, unit: Unit) -> tuple[Outcome, float, float]:
        """Build a candidate, if it is not there yet, and score it; say as well when it was built and scored."""
        if self._live is not unit.point:
            self._merger.apply(self._space.decode(unit.point))
            self._live = unit.point
        merged = time.perf_counter()
        outcome = self._fitness(unit.ids)
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
