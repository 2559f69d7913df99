"""Which search items a generation sees: a seeded, stratified subset, the same for all its candidates.

In: the items of each task. Out: ids by task. Items are ordered by class, at random within a class, and every (N/n)-th
is taken from a random start: each class has its share, and each item the same chance (systematic sampling; Madow 1949).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.items import Item


class Subset:
    """Chooses the items of a generation.

    Args:
        items: the search items by task.
        size: how many in all, shared evenly among the tasks; None for every item.
        seed: of the draw.
        rotate: draw anew for every generation, instead of once for the whole search.
        setting: what the user calls the size, for messages.

    Attributes:
        size: how many items a candidate is really scored on.

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
        self._seed = seed
        self._rotate = rotate
        self.size = sum(self._share.values())

    def every(self) -> dict[str, list[str]]:
        """Return the ids of all items that a generation may see, by task."""
        return {task: [item.id for item in items] for task, items in self._items.items()} if self._rotate else self(0)

    def __call__(self, generation: int) -> dict[str, list[str]]:
        """Return the ids of a generation by task, in the order of the items."""
        chosen = {}
        for number, (task, items) in enumerate(self._items.items()):
            rng = np.random.default_rng([self._seed, generation if self._rotate else 0, number])
            order = np.lexsort((rng.random(len(items)), np.array([item.label for item in items])))
            n = self._share[task]
            picked = order[np.floor((rng.random() + np.arange(n)) * len(items) / n).astype(int)] if n else order[:0]
            chosen[task] = [items[i].id for i in sorted(picked)]
        return chosen
