"""Items: the texts or images with labels that a candidate is scored on.

In: a directory with `search.jsonl`, `select.jsonl` and `report.jsonl` (a suite's task), or one `.jsonl` file of the
user's own. Out: lists of `Item`. One file is split by the hash of each text or image, so an item keeps its split when
lines are added, removed or reordered, and a content cannot be in two splits. Search items guide the search, select
items choose the winner, report items are looked at once.

    {"text": "...", "label": 0}
    {"image": "cat.png", "label": 0}                          a path, relative to the .jsonl file
    {"image": "data:image/png;base64,iVBORw0...", "label": 0}   the file itself: a task of a few files

Where no labels are asked for, a `.txt` file will do, whose texts are divided by blank lines. A document of lm-eval is
an item too: its text is its canonical JSON.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from evomerge.common.errors import SuiteError
from evomerge.fitness.images import data_uri, decode_image, read_image

SPLITS = ("search", "select", "report")
HELD_OUT = "held_out"
"""Beside the splits, where there are any: the report items of tasks that a search never sees."""
EXAMPLE = '{"text": "...", "label": 0}'
TEXT_EXAMPLE = '{"text": "..."}'
IMAGE_EXAMPLE = '{"image": "file.png", "label": 0}'
UNLABELED = -1  # label of an item whose class is not given

_UPPER = {"search": 40, "select": 70, "report": 100}  # of ONE file: percentiles of the hash, so 40 / 30 / 30 percent
_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Item:
    """One text or image with its class.

    Attributes:
        id: hash of content and label; a path or the type of a data URI is no content.
        text: the text; empty for an image.
        label: indexes the task's classes, -1 where it is not given.
        image: the bytes of an image's file as it is (`fitness.images.decode_image` opens them); empty for a text.
    """

    id: str
    text: str
    label: int
    image: bytes = field(default=b"", repr=False)

    @cached_property
    def content(self) -> str:
        """What tells it from other items, whatever its label: the text, or the hash of the image's bytes."""
        return f"image:{hashlib.sha256(self.image).hexdigest()}" if self.image else self.text


def canonical(content: object) -> str:
    """Return content as JSON in one form: keys sorted, no spaces, ASCII (so that also a lone surrogate has bytes)."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), default=str)


def _sha256(content: object) -> str:
    return hashlib.sha256(canonical(content).encode("ascii")).hexdigest()


def item_id(text: str, label: int) -> str:
    """Name an item by its content: the first 16 hex digits of sha256 over its canonical JSON."""
    return _sha256({"label": label, "text": text})[:16]


def make_item(text: str, label: int = UNLABELED) -> Item:
    """Make an item whose id is the hash of its content."""
    return Item(item_id(text, label), text, label)


def make_image_item(image: bytes, label: int = UNLABELED) -> Item:
    """Make an item of the bytes of an image's file; its id is the hash of these bytes and the label."""
    digest = _sha256({"image": hashlib.sha256(image).hexdigest(), "label": label})
    return Item(digest[:16], "", label, image)


def make_document_item(document: object, of: str, stratum: int = 0) -> Item:
    """Make an item of a document of lm-eval.

    Args:
        document: a mapping of plain values.
        of: the task of lm-eval, part of the id: two tasks may ask different things of one document.
        stratum: becomes the label: subsets of items are balanced over it.
    """
    text = canonical(document)
    return Item(_sha256({"document": text, "of": of})[:16], text, stratum)


def split_of(content: str) -> str:
    """Return the split to which a content belongs by its hash: search 40 %, select 30 %, report 30 %."""
    percentile = int(_sha256(content)[:8], 16) % 100
    return next(split for split, upper in _UPPER.items() if percentile < upper)


def write_items(path: Path, items: Iterable[Item]) -> None:
    """Write items as JSON lines; see `row_of`."""
    text = "".join(json.dumps(row_of(item), ensure_ascii=False) + "\n" for item in items)
    path.write_text(text, encoding="utf-8", newline="\n")


def row_of(item: Item) -> dict[str, object]:
    """Return an item as plain data, an image as a data URI; the label of an unlabeled item is None."""
    content = {"image": data_uri(item.image)} if item.image else {"text": item.text}
    return {"id": item.id, **content, "label": None if item.label == UNLABELED else item.label}


def read_items(
    path: Path | str,
    split: str,
    classes: Sequence[str] | None = None,
    labelled: bool = True,
    known: Sequence[str] = (),
    field: str = "text",
    blank: bool = True,
) -> list[Item]:
    """Read the items of one split, in file order.

    Each line is a JSON object with `text` or `image` and `label` (index of the class, or its name where `classes` is
    given); other fields are ignored, `id` too, since content alone names an item. A line whose text or image occurred
    before is dropped, with a warning; for one file of all splits it comes with the search items, once. Every image of
    the split is decoded once, to find damaged ones.

    Args:
        path: a directory that holds `<split>.jsonl`, or one `.jsonl` file (search 40 %, select 30 %, report 30 %, by
            the hash of the text or image); or a `.txt` file where no labels are needed.
        split: "search", "select" or "report"; from a directory also "train" or "unlabeled".
        classes: names of the classes; labels are checked against it.
        labelled: whether every item needs a label; unlabeled ones never do.
        known: names that labels may have where `classes` does not say, such as those in an expert's config.
        field: of a line, the name of its text.
        blank: whether a text may be empty, or nothing but blanks.

    Raises:
        SuiteError: the file is missing or empty, a line or its image cannot be read, or a label is no class.
        ConfigError: there are images, and Pillow is not installed.
    """
    path = Path(path)
    one_file = path.is_file() or path.suffix in (".jsonl", ".txt")
    needed = labelled and split != "unlabeled"
    if one_file and split not in SPLITS:
        raise SuiteError(f"{path} is one file and has no split {split!r}: choose one of {', '.join(SPLITS)}")
    file = path if one_file else path / f"{split}.jsonl"
    parsed = _parse(file, classes, needed, known, field)
    if void := [number for number, item in parsed.items() if not (blank or item.image or item.text.strip())]:
        more = f", and {len(void) - 1} more lines are" if len(void) > 1 else ""
        raise SuiteError(f"{file}, line {void[0]}: the text is blank{more}, and says nothing of a model: take it out")
    items = _distinct(parsed, file, told=one_file and split != SPLITS[0])  # one file is read for each split
    if one_file:
        items = {number: item for number, item in items.items() if split_of(item.content) == split}
    if not items:
        share = " (search 40 %, select 30 %, report 30 % of the contents)" if one_file else ""
        more = "more texts" if file.suffix == ".txt" else f"lines like {EXAMPLE if needed else TEXT_EXAMPLE}"
        raise SuiteError(f"{file} gives no items for the split {split!r}{share}: add {more}")
    for number, item in items.items():
        if item.image:
            try:
                decode_image(item.image)
            except SuiteError as error:
                raise SuiteError(f"{file}, line {number}: {error}") from None
    return list(items.values())


def check_disjoint(splits: Mapping[str, Mapping[str, Sequence[Item]]]) -> None:
    """Make sure that no text or image is in two splits, be it of one task or of two.

    Args:
        splits: split name -> task name -> items.

    Raises:
        SuiteError: something is in two splits; the message names the first pair of splits, a text, and the remedy.
    """
    first: dict[str, tuple[str, str]] = {}  # content -> the split and task where it was met first
    shared: dict[tuple[str, str, str, str], set[str]] = {}
    for split, tasks in splits.items():
        for task, items in tasks.items():
            for item in items:
                known = first.setdefault(item.content, (split, task))
                if known[0] != split:
                    shared.setdefault((*known, split, task), set()).add(item.content)
    if shared:
        (split, task, other_split, other_task), texts = next(iter(shared.items()))
        more = len(set().union(*shared.values()) - texts)
        kind = "images" if any(item.image for tasks in splits.values() for item in tasks.get(task, ())) else "texts"
        raise SuiteError(
            f"{split} items of task {task!r} and {other_split} items of task {other_task!r} share {len(texts)} {kind}, "
            f"like {min(texts)[:60]!r}" + (f"; other pairs of splits share {more} more" if more else "") + ". What "
            "guides or decides a search must not also judge it: leave each text in one split, or give every task as "
            f"one .jsonl file, which is split by the {kind} themselves"
        )


def _parse(
    file: Path, classes: Sequence[str] | None, labels_needed: bool, known: Sequence[str], field: str
) -> dict[int, Item]:
    """Return the items of a file by the numbers of their lines."""
    try:
        whole = file.read_text(encoding="utf-8-sig")  # some editors put a byte order mark first
    except FileNotFoundError:
        raise SuiteError(f"items are missing: {file} does not exist; write one JSON object per line there") from None
    except (OSError, UnicodeDecodeError) as error:
        raise SuiteError(f"items cannot be read: {file}: {error}; it must be a text file in UTF-8") from None
    if file.suffix == ".txt":
        if labels_needed:
            raise SuiteError(f"{file} is plain text, which has no labels: write a .jsonl with lines like {EXAMPLE}")
        texts = [text.strip("\n") for text in re.split(r"\n\s*\n", whole)]
        return {number: make_item(text) for number, text in enumerate(texts, 1) if text.strip()}
    items = {}
    for number, line in enumerate(whole.split("\n"), 1):
        if line.strip():
            try:
                items[number] = _item(json.loads(line), classes, labels_needed, file.parent, known, field)
            except SuiteError as error:
                raise SuiteError(f"{file}, line {number}: {error}") from None
            except ValueError as error:
                raise SuiteError(f"{file}, line {number}: no JSON object ({error}); write {EXAMPLE}") from None
    return items


def _item(
    row: object, classes: Sequence[str] | None, label_needed: bool, folder: Path, known: Sequence[str], field: str
) -> Item:
    fields = row if isinstance(row, dict) else {}
    text, image = fields.get(field), fields.get("image")
    if field != "text" and not isinstance(text, str):
        raise SuiteError(f"there is no string `{field}`; there is {', '.join(map(str, fields)) or 'nothing'}")
    if text is not None and image is not None:
        raise SuiteError("an item has a `text` or an `image`, not both; leave one out")
    if not isinstance(image if text is None else text, str):
        raise SuiteError(
            f"an item needs a string `text`, or an `image` (a path or a data URI); write {EXAMPLE} or {IMAGE_EXAMPLE}"
        )
    label = _label(fields.get("label"), classes, label_needed, known)
    return make_item(str(text), label) if image is None else make_image_item(read_image(str(image), folder), label)


def _label(label: object, classes: Sequence[str] | None, needed: bool, known: Sequence[str]) -> int:
    if label is None and not needed:
        return UNLABELED
    if label is None:
        raise SuiteError(
            f"there is no label, and this fitness needs one: write {EXAMPLE}. Texts without labels serve a gradient "
            f"with loss=entropy, as unlabeled.jsonl in the directory of the task, beside search.jsonl, select.jsonl "
            f"and report.jsonl, which have labels"
        )
    if classes is None and isinstance(label, str) and label in known:
        return list(known).index(label)
    if classes is not None and isinstance(label, str):
        if label not in classes:
            raise SuiteError(f"label {label!r} is no class; the classes are {', '.join(classes)}")
        return list(classes).index(label)
    if not isinstance(label, int) or isinstance(label, bool) or label < 0:
        by_index = "the index of a class, from 0, or name the classes: fitness.tasks.<task>.classes=[no,yes]"
        by_name = (
            f"one of {', '.join(known[:20])}, as the expert's config has them, or {by_index}" if known else by_index
        )
        instead = by_name if classes is None else "a class name, or its index from 0"
        raise SuiteError(f"label {label!r} is no class; write {instead}")
    if classes is not None and label >= len(classes):
        raise SuiteError(f"label {label} is no class; there are {len(classes)}, numbered from 0")
    return label


def _distinct(items: dict[int, Item], file: Path, told: bool) -> dict[int, Item]:
    """Return the first item of each content; say what is dropped, unless it was told when another split was read."""
    first = {item.content: number for number, item in reversed(items.items())}
    kept = {number: item for number, item in items.items() if first[item.content] == number}
    if told:
        return kept
    if len(kept) < len(items):
        kind = "an image" if any(item.image for item in items.values()) else "a text"
        _log.warning("%s: %d lines repeat %s; the first of each is kept", file, len(items) - len(kept), kind)
    labels: dict[str, dict[int, int]] = {}
    for number, item in items.items():
        labels.setdefault(item.content, {}).setdefault(item.label, number)
    if contradictory := [found for found in labels.values() if len(found) > 1]:
        (one, line), (other, later), *_ = contradictory[0].items()
        _log.warning(
            "%s: %d contents have contradictory labels, and the first label of each is kept: line %d says %d, line %d "
            "says %d of the same one",
            *(file, len(contradictory), line, one, later, other),
        )
    return kept


@dataclass(frozen=True)
class Task:
    """A benchmark: `items` is a directory of splits or a YAML of lm-eval, `head` its frozen classifier if it has one,
    `expert` who was trained on it, `known` the names that its labels may have where `classes` names none.
    """

    name: str
    items: Path
    head: Path | None
    expert: str | None
    classes: tuple[str, ...]
    known: tuple[str, ...] = ()
