"""What a search need not make of its settings: a merge of a family, a fitness, items.

In: an `Opened` family, a method and a space. Out: a `Merge` that builds candidates; with a fitness and items, all of it
as `Given`. The command's own searches are built of the same parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.machine import memory_limit
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.items import Item
from evomerge.fitness.splits import Splits
from evomerge.merging.buffers import Buffers
from evomerge.merging.merger import Merger
from evomerge.merging.method import Formed, Method, check_rows
from evomerge.models.buffers import AVERAGE, averaged, floating_buffers
from evomerge.runs.families import Opened
from evomerge.runs.transforms import make_chain
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.task_vectors.places import AUTO, Placed, choose_for
from evomerge.task_vectors.store import TaskVectors, task_vectors
from evomerge.task_vectors.stores import EXPERT, LOSSY
from evomerge.transforms.chain import Chain
from evomerge.transforms.store import transformed


@dataclass(frozen=True, eq=False)
class Merge:
    """What builds candidates of a family.

    Attributes:
        settings: the settings `method`, `transform` and `space`.
        method: how candidates are built.
        transforms: what is done to the task vectors before.
        vectors: base and task vectors, exact, before any transform.
        rows: what candidates are combined of: these after the transforms, as they are kept.
        space: the coefficient space.
        merger: builds them, in the live model of the family.
    """

    settings: dict[str, Any]
    method: Method
    transforms: Chain
    vectors: TaskVectors
    rows: TaskVectors
    space: CoefficientSpace
    merger: Merger


@dataclass(frozen=True, eq=False)
class Given:
    """What a search need not make of its settings.

    Attributes:
        family: base and experts.
        merge: builds candidates of them.
        fitness: scores them.
        items: of those tasks that are in memory, by name.
    """

    family: Opened | None = None
    merge: Merge | None = None
    fitness: Fitness | None = None
    items: Mapping[str, Splits] = field(default_factory=dict)

    @property
    def in_memory(self) -> bool:
        """Whether something of it exists in this program alone, so that no other process can make it of its name."""
        sources = self.family.sources if self.family else None
        models = [sources.base, *sources.experts.values()] if sources else []
        made = any(task.place is None for task in self.items.values()) or self.fitness is not None
        return made or any(not path.exists() for path in models)

    def placed(self, read: Mapping[str, Mapping[str, list[Item]]], tasks: Mapping[str, Any]) -> dict[str, Any]:
        """Return the items of each split by task, of those that were read and those that are in memory."""
        return {
            split: {task: self.items[task][split] if task in self.items else known[task] for task in tasks}
            for split, known in read.items()
        }


def make_merge(family: Opened, method: Method, settings: Mapping[str, Any], reporter: Progress) -> Merge:
    """Compute the task vectors, and make what builds candidates of them.

    Args:
        family: base and experts.
        method: how candidates are built.
        settings: the settings `method`, `transform` and `space`.
        reporter: tells the user what goes on.

    Raises:
        ConfigError: the method merges another number of experts.
    """
    check_rows(method, list(family.experts))
    cache, parameters, space = Path(family.settings["cache"]), family.parameters, settings["space"]
    transforms = make_chain(settings.get("transform") or [])
    store = family.settings.get("store", AUTO)
    if isinstance(method, Formed) and method.form.blends and store not in LOSSY:
        store = EXPERT  # θ_k itself: θ₀ + τ_k is it but for a rounding
    vectors = task_vectors(family.base, family.experts, parameters, cache, reporter.steps, store)
    rows = transformed(vectors, transforms, cache, reporter.steps, store)
    found = make_space(
        space["granularity"],
        parameters,
        rows.rows,
        method.variables,
        () if isinstance(method, Formed) and method.counts_zero else rows.zero,
        sharing=space["sharing"],
        frozen=space["frozen"],
        tied=space["tied"],
        bounds={name: (low, high) for name, (low, high) in (space["bounds"] or {}).items()},
        only=space.get("only"),  # runs of earlier versions have none of these three
        total=space.get("sum"),
        onto=space.get("map"),
        masked=space.get("masks"),
    )
    with reporter.working("preparing the merge"):
        pass  # a line in a pipe; a terminal shows what takes long, such as sorting, in bars of its own
    live, placed = family.live, _placed(family, rows, settings.get("evaluator") or {})
    with reporter.bars():
        merger = Merger(live.model, rows, found.groups, method, live.turn, live.narrow, reporter.steps, placed)
    if family.settings.get("buffers") == AVERAGE:
        own = floating_buffers(family.base)
        merger.buffers = Buffers(live.model, own, averaged(family.base, family.experts))
    return Merge(dict(settings), method, transforms, vectors, rows, found, merger)


def _placed(family: Opened, vectors: TaskVectors, evaluator: Mapping[str, Any]) -> Placed:
    """Choose where task vectors lie, by what is free; workers share the memory of their machine, and are told with how
    many.
    """
    workers = evaluator.get("workers", 1)
    live: dict[str, Tensor] = dict(family.live.model.named_parameters())
    on: dict[torch.device, int] = {}
    for parameter in live.values():
        on[parameter.device] = on.get(parameter.device, 0) + parameter.nbytes
    held = dict.fromkeys(vectors.parameters, 0)
    for deltas in vectors.deltas.values():
        for name in deltas:
            held[name] += deltas[name].nbytes
    return choose_for(
        str(family.settings.get("place", AUTO)),
        {name: str(parameter.device) for name, parameter in live.items()},
        {name: parameter.nbytes for name, parameter in live.items()},
        {name: vectors.base.tensor(name).nbytes for name in vectors.parameters},
        held,
        {
            str(device): torch.cuda.mem_get_info(device)[0] + size
            for device, size in on.items()
            if device.type == "cuda"
        },
        memory_limit() // (workers if isinstance(workers, int) else 1),
    )
