"""Which search items a generation sees: a seeded sample, the same for all its candidates.

In: the items of each task, and how they are drawn (`draws.py`). Out: ids by task, and where items are not equally
likely, how many each of them stands for. A sample is fixed for the whole search, or drawn anew for every generation; it
has its full size from the beginning, or grows while points are asked for. A fixed one that grows keeps what it has. All
of it depends on settings, on the number of the generation, on how many points it has and on how many were asked before
it, on nothing else.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import Draw, stratified
from evomerge.fitness.items import Item


@dataclass(frozen=True)
class Sample:
    """The items of a generation.

    Attributes:
        ids: by task, in the order of the items.
        weights: by task, how many items each of them stands for; empty where all stand for as many. Those of a fixed
            sample that has not its full size yet are in the same ratios, and smaller in all than the number of items.
    """

    ids: dict[str, list[str]]
    weights: dict[str, list[int]] = field(default_factory=dict)

    def weighed(self, outcome: Outcome) -> Outcome:
        """Return an outcome on these items with their weights, by which its scores are means."""
        return replace(outcome, weights=self.weights) if self.weights else outcome


@dataclass(frozen=True)
class Growth:
    """How large a sample is.

    Attributes:
        first: the share of its full size that it begins with.
        points: of the search; it grows evenly over their generations, of which the last one has the full size.
    """

    first: float
    points: int

    def share(self, before: int, count: int) -> float:
        """Return the share of the full size of a generation of so many points, after so many others; one that is the
        last has all of it, also where it is the first.
        """
        last = self.points - count  # so many points are before the last generation, if it is as large
        return self.first + (1 - self.first) * min(1.0, before / last) if last > 0 else 1.0


class Subset:
    """Chooses the items of a generation.

    Args:
        items: the search items by task.
        size: how many in all, shared evenly among the tasks; None for every item.
        seed: of the draw.
        rotate: draw anew for every generation, instead of once for the whole search.
        setting: what the user calls the size, for messages.
        draw: how items of a task are drawn; None for one that is not known yet (see `informed`): until then,
            stratified.
        growth: how the sample grows; None for its full size from the beginning.

    Attributes:
        size: how many items a candidate is scored on, at most.

    Raises:
        ConfigError: fewer items than tasks.
    """

    def __init__(
        self,
        items: Mapping[str, Sequence[Item]],
        size: int | None,
        seed: int,
        rotate: bool = False,
        setting: str = "fitness.items",
        draw: Draw | None = stratified,
        growth: Growth | None = None,
    ) -> None:
        if size is not None and size < len(items):
            raise ConfigError(
                f"{setting} is {size}, less than one for each of {len(items)} tasks: write at least {len(items)}."
            )
        share = (
            [None] * len(items)
            if size is None
            else [size // len(items) + (i < size % len(items)) for i in range(len(items))]
        )
        self._items = dict(items)
        self._share = {
            task: len(items[task]) if n is None else min(n, len(items[task]))
            for task, n in zip(items, share, strict=True)
        }
        self._seed, self._rotate, self._growth = seed, rotate, growth
        self._any = rotate or growth is not None or draw is None
        self._draw = draw or stratified
        self.size = sum(self._share.values())

    def informed(self, draw: Draw) -> Subset:
        """Return the same with a draw that was not known before."""
        other = copy.copy(self)
        other._draw = draw
        return other

    def every(self) -> dict[str, list[str]]:
        """Return the ids of all items that a generation may see, by task."""
        return {task: [item.id for item in items] for task, items in self._items.items()} if self._any else self(0)

    def __call__(self, generation: int) -> dict[str, list[str]]:
        """Return the ids of a generation by task, of a sample of full size."""
        return self.sample(generation).ids

    def sample(self, generation: int, before: int | None = None, count: int = 1) -> Sample:
        """Return the items of a generation.

        Args:
            generation: its number.
            before: how many points were asked before it; None for a sample of full size.
            count: how many points it has.
        """
        ids, weights = dict[str, list[str]](), dict[str, list[int]]()
        sizes = self._share if before is None else self._sizes(before, count)
        for number, (task, items) in enumerate(self._items.items()):
            rng = np.random.default_rng([self._seed, generation if self._rotate else 0, number])
            drawn = self._draw(task, items, (sizes if self._rotate else self._share)[task], rng)
            if not self._rotate:
                drawn = drawn.beginning(sizes[task], rng)
            order = np.argsort(drawn.places)
            ids[task] = [items[i].id for i in drawn.places[order]]
            if drawn.weights is not None:
                weights[task] = drawn.weights[order].tolist()
        return Sample(ids, weights)

    def _sizes(self, before: int, count: int) -> dict[str, int]:
        if self._growth is None:
            return self._share
        share = self._growth.share(before, count)
        return {task: min(n, max(1, round(share * n))) for task, n in self._share.items()}
