"""Dropping finalists and constants while the winner is chosen: into how many blocks, and by how sure a sign.

In: the select items. Out: blocks of them. `search/evaluators/dropping.py` says who is dropped after each block, and by
what statistics. The chance that a dropped model would have had the highest value on all items is about `ALPHA` at most,
however many models there are.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import pairwise

from evomerge.search.evaluators.dropping import Items, most_blocks, shuffled_blocks

ALPHA = 0.2
"""The chance that a model is dropped that would have had the highest value on all items. Most often it is ahead by a
hair then: experiments/dropping.md.
"""
BLOCKS = 20
"""Into how many blocks items are cut; after each but the last, models may be dropped."""
ACTIVE_ALPHA, LOOKS = 0.03, 12
"""The same where items come by activity (`activity.py`): the chance that a model is dropped which would have ended
ahead by more than does not matter; and into how many parts these items are cut."""
FIRST = 2
"""After so many blocks one model is scored on all items, to know which are active."""
STEP = 3
"""Of models along a line, every so many-th is scored on all items of a block."""
NEAR = 0.3
"""How far two of these may lie apart, if what lies between them is to be like them where they agree."""
FEW, FEWER = 400, 4
"""Below so many items of all tasks there are so many blocks at most: each look at few of few items errs more than it
saves (experiments/dropping.md)."""


def along(weights: Sequence[float]) -> bool:
    """Return whether constants lie along a line, in this order and near enough to each other."""
    steps = [after - before for before, after in pairwise(weights)]
    return all(step > 0 and STEP * step <= NEAR + 1e-9 for step in steps)


def blocks(sizes: Collection[int]) -> int:
    """Return into how many blocks items are cut.

    Args:
        sizes: the number of items of each task.
    """
    return min(BLOCKS if sum(sizes) >= FEW else FEWER, most_blocks(sizes))


def cut(ids: Items) -> list[dict[str, list[str]]]:
    """Cut items into blocks, in a random order that is the same for every model and every search.

    Args:
        ids: by task.

    Returns:
        The items of each block by task; each task has its share of every block.
    """
    return shuffled_blocks(ids, blocks([len(all_of_it) for all_of_it in ids.values()]))
