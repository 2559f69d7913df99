"""What a fitness is: it scores a live model on items and says how each item went; it aggregates nothing.

`prepare(processor, items)` is called once for a split and does everything that does not depend on the weights. The
fitness is then called for every candidate with the model, what was prepared, and the ids of the items to score.
`objectives.py` makes numbers to maximise of its outcome. A fitness reads and writes no global random state and caches
nothing that depends on the weights.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from evomerge.common.errors import ConfigError, SuiteError
from evomerge.fitness.items import Item


@dataclass(frozen=True)
class Outcome:
    """Per-item results of one model.

    Attributes:
        items: the ids of the items that were scored, by task.
        results: {task: {metric: float64 (n,)}} in the order of `items`; higher is better.
        forward_seconds: the time spent in forward passes, or None where the fitness cannot tell it from its own work.
    """

    items: Mapping[str, list[str]]
    results: Mapping[str, Mapping[str, np.ndarray]]
    forward_seconds: float | None = None

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the mean of every metric by task.

        Raises:
            ConfigError: of a task no item was scored, so it has no mean.
        """
        if empty := [task for task, ids in self.items.items() if not ids]:
            raise ConfigError(f"No item of the task {empty[0]} was scored: give it items, or leave the task out.")
        return {
            task: {metric: float(np.mean(values)) for metric, values in metrics.items()}
            for task, metrics in self.results.items()
        }


class Fitness(Protocol):
    """Scores a live model; see the module's docstring.

    Attributes:
        metrics: the names of the metrics it gives for every item.
        pure: whether results depend on nothing but weights, items and settings, so that an outcome can be remembered.
        digest: a hash of code that is not evomerge's own, or an empty string.

    One that scores items in batches has their size as `batch_size`, which is halved where memory does not suffice, and
    must not decide what comes out. A call may be broken off anywhere: what is kept for the next is put in place last.
    """

    metrics: tuple[str, ...]
    pure: bool
    digest: str

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> Any:
        """Return all that scoring these items needs beside the weights; the processor is the base's tokenizer or image
        processor.
        """
        ...

    def __call__(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model on the items with these ids, by task."""
        ...


@runtime_checkable
class Checking(Protocol):
    """A fitness that finds only with the model at hand that items cannot be scored."""

    def check(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> None:
        """Make all that scoring these items needs.

        Raises:
            EvomergeError: some of them cannot be scored, on whichever model.
        """
        ...


def check_items(fitness: Fitness, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]], split: str) -> None:
    """Refuse items that cannot be scored, before anything is.

    Args:
        fitness: scores them.
        model: the live model.
        prepared: what the fitness prepared for them.
        ids: all that may be asked for, by task.
        split: what they are of, for the message.

    Raises:
        SuiteError: there are some.
    """
    if isinstance(fitness, Checking):
        try:
            fitness.check(model, prepared, ids)
        except SuiteError as error:
            raise SuiteError(f"Of the {split} items, {error}") from error


@runtime_checkable
class Measuring(Protocol):
    """A fitness one of whose metrics is another number for every task."""

    def measures(self, metric: str) -> dict[str, str]:
        """Return what the numbers of a metric are, by task."""
        ...


def measures(fitness: Fitness, metric: str, tasks: Iterable[str]) -> dict[str, str]:
    """Return what the numbers of a metric are, by task: the metric itself where the fitness says nothing else."""
    told = fitness.measures(metric) if isinstance(fitness, Measuring) else {}
    return {task: told.get(task, metric) for task in tasks}


def title(metric: str, told: Mapping[str, str]) -> str:
    """Return the name of a metric over all tasks, with what it is where that is the same in all of them.

    Args:
        metric: its name.
        told: what `measures` returned; nothing for runs that did not keep it.
    """
    return (
        f"{metric} ({one})" if len(set(told.values())) == 1 and (one := next(iter(told.values()))) != metric else metric
    )


def heading(task: str, told: Mapping[str, str]) -> str:
    """Return the name of a task, with what it is measured by where that is another metric than that of other tasks."""
    return f"{task} ({told[task]})" if len(set(told.values())) > 1 and task in told else task
