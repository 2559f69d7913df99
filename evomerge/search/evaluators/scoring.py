"""A live model as what scores items: the fitness is called under guard, and what goes wrong has a name.

In: a live model and items that a fitness has prepared. Out: a checked `Outcome`. A `sys.exit` (`exits.py`), a change of
the live model (`guard.py`) and logits that are not finite become errors; a lack of memory is met with smaller batches
(`memory.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, TypeVar

import numpy as np

from evomerge.common.errors import ConfigError, EvomergeError, NotFinite
from evomerge.common.exits import contained
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.capabilities import Probable
from evomerge.fitness.finite import watched
from evomerge.fitness.items import Item
from evomerge.models.guard import Guard
from evomerge.search.memory import Halving
from evomerge.search.stopping import Stopped

T = TypeVar("T")


class LiveFitness:
    """A live model with what it takes to score it on the items of a split.

    Args:
        model: the live model.
        fitness: scores it.
        prepared: what the fitness prepared for these items.
        guard: of the model, such as its merger has; without one, a change of values cannot be undone.
        renew: called before each scoring; where the model is a copy of another one, it writes that one into it.
        weights: by name, what is told of the weights beside what the fitness says: a metric that is the same number for
            every item.
    """

    def __init__(
        self,
        model: Any,
        fitness: Fitness,
        prepared: Any,
        guard: Guard | None = None,
        renew: Callable[[], None] = lambda: None,
        weights: Mapping[str, Callable[[], float]] | None = None,
    ) -> None:
        self.model, self.fitness, self.prepared, self._renew = model, fitness, prepared, renew
        self._guard, self.weights = guard or Guard(model), weights or {}
        self._halving = Halving(fitness)

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

        told = {name: tell() for name, tell in self.weights.items()}
        return _own(self._guarded(ids, lambda: self.fitness(self.model, self.prepared, ids)), ids, told)

    def probabilities(self, fitness: Probable, ids: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Return what the model as it is now says of items; see `Probable`, which the fitness is.

        Raises:
            EvomergeError: as in a call.
        """
        return self._guarded(ids, lambda: fitness.probabilities(self.model, self.prepared, ids))

    def _guarded(self, ids: Mapping[str, Sequence[str]], ask: Callable[[], T]) -> T:
        self._renew()
        with watched(self.model), self._guard:
            return contained(lambda: self._halving(ids, ask))


def _own(outcome: Any, ids: Mapping[str, Sequence[str]], told: Mapping[str, float]) -> Outcome:
    """Return what a fitness has returned, its numbers copied, since it may write into its arrays again; and what is
    told of the weights.
    """
    if not isinstance(outcome, Outcome):
        raise TypeError(f"the fitness returned {outcome!r:.100}, which is no Outcome")
    if dict(outcome.items) != ids or outcome.results.keys() != ids.keys():
        raise ValueError("the fitness scored other items than it was asked to")
    results = {
        task: {name: _numbers(values, name, task, len(ids[task])) for name, values in metrics.items()}
        | {name: np.full(len(ids[task]), value) for name, value in told.items()}
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


@contextmanager
def explained(what: str) -> Iterator[None]:
    """Say what cannot go on, where a model or a user's fitness raises an error of its own.

    Args:
        what: the beginning of the message.

    Raises:
        ConfigError: it raised one.
        EvomergeError: an error of evomerge's own, as it is.
        Stopped: it was asked to stop, as it is.
    """
    try:
        yield
    except (EvomergeError, Stopped):
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
