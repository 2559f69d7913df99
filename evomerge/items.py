"""Items: the texts with labels that a candidate is scored on.

In: a directory with `search.jsonl`, `select.jsonl` and `report.jsonl` (a suite's task), or one `.jsonl` file of the
user's own. Out: lists of `Item`. One file is split by the hash of each text, so an item keeps its split when lines are
added, removed or reordered, and a text cannot be in two splits. Search items guide the search, select items choose
the winner, report items are looked at once.
"""

import hashlib
import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evomerge.errors import SuiteError

SPLITS = ("search", "select", "report")
EXAMPLE = '{"text": "...", "label": 0}'
UNLABELED = -1  # label of an item whose class is not given

_UPPER = {"search": 40, "select": 70, "report": 100}  # of ONE file: percentiles of the hash, so 40 / 30 / 30 percent
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One text with its class: `label` indexes the task's classes, -1 where it is not given."""

    id: str
    text: str
    label: int


def _sha256(content: object) -> str:
    # ASCII escapes: also a lone surrogate has bytes; sorted and without spaces: one form per content
    return hashlib.sha256(json.dumps(content, sort_keys=True, separators=(",", ":")).encode("ascii")).hexdigest()


def item_id(text: str, label: int) -> str:
    """Name an item by its content: the first 16 hex digits of sha256 over its canonical JSON."""
    return _sha256({"label": label, "text": text})[:16]


def make_item(text: str, label: int = UNLABELED) -> Item:
    """Make an item whose id is the hash of its content."""
    return Item(item_id(text, label), text, label)


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as JSON lines; an unlabeled item has `"label": null`."""
    rows = (asdict(item) | ({"label": None} if item.label == UNLABELED else {}) for item in items)
    text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8", newline="\n")


def read_items(path: Path | str, split: str, classes: Sequence[str] | None = None) -> list[Item]:
    """Read the items of one split, in file order.

    Each line is a JSON object with `text` and `label` (index of the class, or its name where `classes` is given); other
    fields are ignored, `id` too, since content alone names an item. A line whose text occurred before is dropped, with
    a warning.

    Args:
        path: a directory that holds `<split>.jsonl`, or one `.jsonl` file (search 40 %, select 30 %, report 30 %, by
            the hash of the text).
        split: "search", "select" or "report"; from a directory also "train" or "unlabeled".
        classes: names of the classes; labels are checked against it.

    Raises:
        SuiteError: the file is missing or empty, a line cannot be read, or a label is no class.
    """
    path = Path(path)
    one_file = path.is_file() or path.suffix == ".jsonl"
    if one_file and split not in SPLITS:
        raise SuiteError(f"{path} is one file and has no split {split!r}: choose one of {', '.join(SPLITS)}")
    file = path if one_file else path / f"{split}.jsonl"
    items = _distinct(_parse(file, classes, labels_needed=split != "unlabeled"), file)
    if one_file:
        items = [item for item in items if _split_of(item.text) == split]
    if not items:
        share = " (search 40 %, select 30 %, report 30 % of the texts)" if one_file else ""
        raise SuiteError(f"{file} gives no items for the split {split!r}{share}: add lines like {EXAMPLE}")
    return items


def check_disjoint(splits: Mapping[str, Mapping[str, Sequence[Item]]]) -> None:
    """Make sure that no text is in two splits, be it of one task or of two.

    Args:
        splits: split name -> task name -> items.

    Raises:
        SuiteError: some text is in two splits; the message names the first pair of splits, a text, and the remedy.
    """
    first: dict[str, tuple[str, str]] = {}  # text -> the split and task where it was met first
    shared: dict[tuple[str, str, str, str], set[str]] = {}
    for split, tasks in splits.items():
        for task, items in tasks.items():
            for item in items:
                known = first.setdefault(item.text, (split, task))
                if known[0] != split:
                    shared.setdefault((*known, split, task), set()).add(item.text)
    if shared:
        (split, task, other_split, other_task), texts = next(iter(shared.items()))
        more = len(set().union(*shared.values()) - texts)
        raise SuiteError(
            f"{split} items of task {task!r} and {other_split} items of task {other_task!r} share {len(texts)} texts, "
            f"like {min(texts)[:60]!r}" + (f"; other pairs of splits share {more} more" if more else "") + ". What "
            "guides or decides a search must not also judge it: leave each text in one split, or give every task as "
            "one .jsonl file, which is split by the texts themselves"
        )


def _split_of(text: str) -> str:
    percentile = int(_sha256(text)[:8], 16) % 100
    return next(split for split, upper in _UPPER.items() if percentile < upper)


def _parse(file: Path, classes: Sequence[str] | None, labels_needed: bool) -> list[Item]:
    try:
        lines = file.read_text(encoding="utf-8").split("\n")
    except FileNotFoundError:
        raise SuiteError(f"items are missing: {file} does not exist; write one JSON object per line there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"items cannot be read: {file}: {error}; it must be a text file in UTF-8") from None
    items = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            where = f"{file}, line {number}"
            try:
                row = json.loads(line)
            except ValueError as error:
                raise SuiteError(f"{where}: no JSON object ({error}); write {EXAMPLE}") from None
            items.append(_item(row, classes, labels_needed, where))
    return items


def _item(row: object, classes: Sequence[str] | None, label_needed: bool, where: str) -> Item:
    if not isinstance(row, dict) or not isinstance(row.get("text"), str):
        raise SuiteError(f"{where}: an item needs a string `text`; write {EXAMPLE}")
    label = row.get("label")
    if label is None and not label_needed:
        label = UNLABELED
    elif classes is not None and isinstance(label, str):
        if label not in classes:
            raise SuiteError(f"{where}: label {label!r} is no class; the classes are {', '.join(classes)}")
        label = list(classes).index(label)
    elif not isinstance(label, int) or isinstance(label, bool) or label < 0:
        by_index = "the index of a class, from 0, or name the classes: fitness.tasks.<task>.classes=[no,yes]"
        instead = by_index if classes is None else "a class name, or its index from 0"
        raise SuiteError(f"{where}: label {label!r} is no class; write {instead}")
    elif classes is not None and label >= len(classes):
        raise SuiteError(f"{where}: label {label} is no class; there are {len(classes)}, numbered from 0")
    return make_item(row["text"], label)


def _distinct(items: list[Item], file: Path) -> list[Item]:
    first = {item.text: item for item in reversed(items)}
    kept = [item for item in items if first[item.text] is item]
    if len(kept) < len(items):
        _log.warning("%s: %d lines repeat a text; the first of each is kept", file, len(items) - len(kept))
    return kept
