"""Splits: from rows of a data set to disjoint lists of items, fixed by a seed.

A text or image that occurs twice, in whatever file, class or task, is used once: a content in two splits would make the
report dishonest. Report items come from the source's own test file where it has one.
"""

import zlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from evomerge.fitness.items import UNLABELED, Item


class Row(NamedTuple):
    """A content, a text or the pixels of an image, and the name of its class in the source."""

    content: Any
    label: str


Make = Callable[[Any, int], Item]
"""`(content, label) -> item`."""
Key = Callable[[Any], str | None]
"""What two contents have in common that count as the same; None for a content that is left out."""


def make_splits(
    name: str,
    rows: Iterable[Row],
    test_rows: Iterable[Row] | None,
    classes: Mapping[str, str],
    sizes: Mapping[str, int],
    seen: set[str],
    seed: int,
    *,
    make: Make,
    key: Key,
) -> dict[str, list[Item]]:
    """Draw the splits of a task.

    Args:
        name: of the task; together with the seed it fixes the draw.
        rows: contents to draw from.
        test_rows: those of the source's own test file, which give the report split; None: it is drawn from `rows`.
        classes: class name in the source -> readable name; rows of other classes are left out.
        sizes: split -> most items, in the order of the draw; where the data are few, all splits but the last (train)
            shrink alike so that they take at most half of them.
        seen: keys that are used up; those of the rows drawn from are added.
        seed: of the draw.
        make: makes an item.
        key: tells whether two contents are the same.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    indices = {label: index for index, label in enumerate(classes)}

    def distinct(some: Iterable[Row]) -> list[Row]:
        kept = []
        for row in some:
            known = key(row.content)
            if row.label in indices and known is not None and known not in seen:
                seen.add(known)
                kept.append(row)
        return [kept[i] for i in rng.permutation(len(kept))]

    # the test file goes first: where both files hold a content, the report keeps it
    report = None if test_rows is None else distinct(test_rows)
    pool = distinct(rows)
    *held_out, last = sizes
    if report is not None:
        held_out.remove("report")
    shrink = min(1.0, len(pool) / 2 / sum(sizes[split] for split in held_out))
    splits = {} if report is None else {"report": report[: sizes["report"]]}
    for split in held_out:
        count = int(shrink * sizes[split])
        splits[split], pool = pool[:count], pool[count:]
    splits[last] = pool[: sizes[last]]
    return {
        split: [make(content, UNLABELED if split == "unlabeled" else indices[label]) for content, label in drawn]
        for split, drawn in splits.items()
    }
