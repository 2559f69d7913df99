"""What a fitness is: it scores a live model on items and says how each item went; it aggregates nothing.

`prepare(processor, items)` is called once for a split and does everything that does not depend on the weights. The
fitness is then called for every candidate with the model, what was prepared, and the ids of the items to score.
`objectives.py` makes numbers to maximise of its outcome. A fitness reads and writes no global random state and caches
nothing that depends on the weights.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.items import Item


@dataclass(frozen=True)
class Outcome:
    """Per-item results of one model.

    Attributes:
        items: the ids of the items that were scored, by task.
        results: {task: {metric: float64 (n,)}} in the order of `items`; higher is better.
        forward_seconds: the time spent in forward passes, or None where the fitness cannot tell it from its own work.
        weights: by task, how many items each of them stands for; empty where all stand for as many. No fitness sets it.
    """

    items: Mapping[str, list[str]]
    results: Mapping[str, Mapping[str, np.ndarray]]
    forward_seconds: float | None = None
    weights: Mapping[str, Sequence[int]] = field(default_factory=dict)

    def scores(self) -> dict[str, dict[str, float]]:
        """Return the mean of every metric by task, over items as they are weighed.

        Raises:
            ConfigError: of a task no item was scored, so it has no mean.
        """
        if empty := [task for task, ids in self.items.items() if not ids]:
            raise ConfigError(f"No item of the task {empty[0]} was scored: give it items, or leave the task out.")
        return {
            task: {metric: self._mean(task, values) for metric, values in metrics.items()}
            for task, metrics in self.results.items()
        }

    def _mean(self, task: str, values: np.ndarray) -> float:
        weights = self.weights.get(task)
        return float(np.mean(values) if weights is None else np.average(values, weights=weights))


class Fitness(Protocol):
    """Scores a live model; see the module's docstring. What it can do beside that stands in `capabilities.py`.

    Attributes:
        metrics: the names of the metrics it gives for every item.
        pure: whether results depend on nothing but weights, items and settings, so that an outcome can be remembered.

    A call may be broken off anywhere: what is kept for the next is put in place last.
    """

    metrics: tuple[str, ...]
    pure: bool

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]]) -> Any:
        """Return all that scoring these items needs beside the weights; the processor is the base's tokenizer or image
        processor.
        """
        ...

    def __call__(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Outcome:
        """Score the model on the items with these ids, by task."""
        ...


def title(metric: str, told: Mapping[str, str]) -> str:
    """Return the name of a metric over all tasks, with what it is where that is the same in all of them.

    Args:
        metric: its name.
        told: what `measures` returned; nothing for runs that did not keep it.
    """
    return (
        f"{metric} ({one})" if len(set(told.values())) == 1 and (one := next(iter(told.values()))) != metric else metric
    )


def negated(metric: str, forget: Sequence[str]) -> str:
    """Return the name of what is maximised: the metric, or minus it where tasks are to be forgotten."""
    return f"negated {metric} of {', '.join(forget)}" if forget else metric


def heading(task: str, told: Mapping[str, str]) -> str:
    """Return the name of a task, with what it is measured by where that is another metric than that of other tasks."""
    return f"{task} ({told[task]})" if len(set(told.values())) > 1 and task in told else task
