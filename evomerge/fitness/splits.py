"""The items of a task in their three splits, made of a file, a directory, or what a program has in memory.

In: a path, or texts, pairs of text and label, mappings or `Item`s. Out: `Splits`, {search, select, report: [Item]}.
What is in memory is split as one file is: by the hash of each content, 40, 30 and 30 percent, so an item keeps its
split when others come or go.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from evomerge.common.errors import SuiteError
from evomerge.fitness.items import SPLITS, UNLABELED, Item, make_image_item, make_item, read_items, split_of


class Splits(dict[str, list[Item]]):
    """The items of one task by split.

    Attributes:
        place: the file or directory that they were read from; None for those that were made in memory.
        classes: the names of the classes; empty where labels are numbers.
    """

    def __init__(self, items: Mapping[str, list[Item]], place: Path | None = None, classes: Sequence[str] = ()) -> None:
        super().__init__(items)
        self.place, self.classes = place, tuple(classes)

    def __repr__(self) -> str:
        where = f" of {self.place}" if self.place else ""
        return f"<items{where}: {', '.join(f'{len(items)} {split}' for split, items in self.items())}>"

    def _repr_html_(self) -> str:
        return f"<p>{escape(repr(self))}</p>"


def split_items(source: str | Path | Iterable[Any], classes: Sequence[str] = ()) -> Splits:
    """Return the items of a task by split.

    Args:
        source: a `.jsonl` or `.txt` file, a directory with search.jsonl, select.jsonl and report.jsonl; or, in memory,
            texts, pairs (text, label), mappings {text, label} or {image, label}, or items; or {split: any of these}.
        classes: the names of the classes, where labels are names.

    Raises:
        SuiteError: something cannot be read, or a split has no items.
    """
    if isinstance(source, str | Path):
        named = tuple(classes) or None
        return Splits(
            {split: read_items(source, split, named, labelled=False) for split in SPLITS}, Path(source), classes
        )
    if isinstance(source, Mapping):
        if missing := [split for split in SPLITS if split not in source]:
            raise SuiteError(f"the items have no split {missing[0]!r}: give {', '.join(SPLITS)}, or one list for all.")
        for split in SPLITS:
            if not isinstance(source[split], Iterable) or isinstance(source[split], str | bytes):
                raise SuiteError(f"the split {split!r} is {source[split]!r:.100}: give a list of items.")
        found = {split: [_item(one, classes) for one in source[split]] for split in SPLITS}
    elif not isinstance(source, Iterable) or isinstance(source, bytes):
        raise SuiteError(
            f"{source!r:.100} holds no items: give a file (.jsonl, .txt), a directory, texts, or pairs (text, label)."
        )
    else:
        distinct: dict[str, Item] = {}
        for item in (_item(one, classes) for one in source):
            distinct.setdefault(item.content, item)
        found = {split: [item for item in distinct.values() if split_of(item.content) == split] for split in SPLITS}
    if empty := [split for split, items in found.items() if not items]:
        raise SuiteError(
            f"there are no items for the split {empty[0]!r} (search takes 40 %, select 30 %, report 30 % of the "
            f"contents): give more of them, or {{'search': [...], 'select': [...], 'report': [...]}}."
        )
    return Splits(found, None, classes)


def _item(given: Any, classes: Sequence[str]) -> Item:
    if isinstance(given, Item):
        return given
    if isinstance(given, str | int):
        return make_item(str(given))
    if isinstance(given, Mapping):
        content, label = given.get("image", given.get("text")), given.get("label")
    else:
        content, label = given if isinstance(given, tuple | list) and len(given) == 2 else (None, None)
    if isinstance(label, str) and label in classes:
        label = list(classes).index(label)
    if not isinstance(content, str | int | bytes) or isinstance(label, str) or (label is not None and int(label) < 0):
        raise SuiteError(
            f"{given!r:.100} is no item: give a text, a pair (text, label) with the number of the class or its name in "
            f"`classes`, {{'text': ..., 'label': ...}}, {{'image': bytes, 'label': ...}}, or an Item."
        )
    number = UNLABELED if label is None else int(label)
    return make_image_item(content, number) if isinstance(content, bytes) else make_item(str(content), number)
