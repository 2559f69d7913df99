"""Splits: from rows of a data set to disjoint lists of items, fixed by a seed.

A text that occurs twice, in whatever file, class or task, is used once: a text in two splits would make the report
dishonest. Report items come from the source's own test file where it has one.
"""

import zlib
from collections.abc import Iterable, Mapping

import numpy as np

from evomerge.items import Item, make_item
from text_suite.readers import Row

MIN_WORDS = 3  # shorter texts say nothing of their class


def make_splits(
    name: str,
    rows: Iterable[Row],
    test_rows: Iterable[Row] | None,
    classes: Mapping[str, str],
    sizes: Mapping[str, int],
    seen: set[str],
    seed: int,
) -> dict[str, list[Item]]:
    """Draw the splits of a task.

    Args:
        name: of the task; together with the seed it fixes the draw.
        rows: texts to draw from.
        test_rows: texts of the source's own test file, which give the report split; None: it is drawn from `rows`.
        classes: class name in the source -> readable name; rows of other classes are left out.
        sizes: split -> most items, in the order of the draw; where the data are few, all splits but the last (train)
            shrink alike so that they take at most half of them.
        seen: normalised texts that are used up; the rows drawn from are added.
        seed: of the draw.
    """
    rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
    indices = {label: index for index, label in enumerate(classes)}
    # the test file goes first: where both files hold a text, the report keeps it
    report = None if test_rows is None else _distinct(test_rows, indices, seen, rng)
    pool = _distinct(rows, indices, seen, rng)
    *held_out, last = sizes
    if report is not None:
        held_out.remove("report")
    shrink = min(1.0, len(pool) / 2 / sum(sizes[split] for split in held_out))
    splits = {} if report is None else {"report": report[: sizes["report"]]}
    for split in held_out:
        count = int(shrink * sizes[split])
        splits[split], pool = pool[:count], pool[count:]
    splits[last] = pool[: sizes[last]]
    if "unlabeled" in splits:
        splits["unlabeled"] = [make_item(item.text) for item in splits["unlabeled"]]
    return splits


def _distinct(rows: Iterable[Row], indices: Mapping[str, int], seen: set[str], rng: np.random.Generator) -> list[Item]:
    items = []
    for text, label in rows:
        normal = " ".join(text.lower().split())
        if label in indices and normal not in seen and normal.count(" ") + 1 >= MIN_WORDS:
            seen.add(normal)
            items.append(make_item(text, indices[label]))
    return [items[i] for i in rng.permutation(len(items))]
