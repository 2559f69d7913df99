"""What is searched: where it comes from, the live model, task vectors, space, merger, fitness and items.

Plain data with a few operations. It is built by `runs/`, and knows no settings.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.fitness.base import Fitness
from evomerge.fitness.items import Item, Task
from evomerge.merging.merger import Merger
from evomerge.merging.methods import Method
from evomerge.models.live import LiveModel
from evomerge.space.coefficients import CoefficientSpace
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.chain import Chain


@dataclass(frozen=True)
class Sources:
    """Where models and tasks come from.

    Attributes:
        base: its directory.
        experts: their directories by name.
        tasks: by name.
        further: by task, the settings that only some fitnesses have (`FURTHER`), as they were given.
        hub: `owner/name@commit` of those that came from the hub, by expert; of the base under no name.
    """

    base: Path
    experts: dict[str, Path]
    tasks: dict[str, Task]
    further: dict[str, dict[str, Any]] = field(default_factory=dict)
    hub: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Problem:
    """What is searched.

    Attributes:
        sources: where models and tasks come from.
        live: the loaded base.
        vectors: base and task vectors, before any transform.
        space: the coefficient space.
        method: how candidates are built.
        merger: builds them, of the transformed task vectors if there are transforms.
        fitness: scores them.
        items: the items of each split by task.
        warnings: what the user should know about the sources.
        transforms: what is done to the task vectors before the search.
    """

    sources: Sources
    live: LiveModel
    vectors: TaskVectors
    space: CoefficientSpace
    method: Method
    merger: Merger
    fitness: Fitness
    items: dict[str, dict[str, list[Item]]]
    warnings: list[str]
    transforms: Chain = ()

    @property
    def experts(self) -> dict[str, str]:
        """The expert of each task, for those tasks that have one."""
        return {name: task.expert for name, task in self.sources.tasks.items() if task.expert}

    def coefficients(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Return coefficients with the given weights, (K,) for all groups, and every other variable at its start."""
        shape = (len(self.space.groups), len(self.space.rows))
        others = {
            variable.name: np.full(shape, variable.start)
            for variable in self.space.variables
            if variable.name != "weight"
        }
        return {"weight": np.broadcast_to(weights, shape), **others}

    def become(self, expert: str | None) -> None:
        """Overwrite the live model with an expert, as far as it is merged, or with the base (None).

        The expert is as it came: no transform touches it.
        """
        if expert is None:
            self.merger.restore()
        else:
            self.merger.load(self.vectors.added(expert))
