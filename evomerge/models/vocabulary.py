"""Vocabularies that differ between base and expert: the rows of embeddings and heads, and the tokens themselves.

In: the user's choice of what becomes of rows that only one of two models has (`model.vocabulary`), and model
directories. Out: `Rows`, what was done to a parameter; and sentences for people. A row stands for a token, so rows can
be merged where both have them, counted from the first: whoever adds tokens adds rows at the end. The tokenizer of a
merged model is the base's, unless it is the union of all.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from evomerge.common.names import listed

REFUSE, BASE, SHARED, UNION = CHOICES = ("refuse", "base", "shared", "union")
"""What becomes of an expert with another number of rows than the base: it is refused; its rows are left out, all of
them; those that both have are merged; or each token of all models gets a row of its own (`union.py`)."""


@dataclass(frozen=True)
class Rows:
    """The rows of a parameter of which an expert has another number than the base.

    Attributes:
        held: how many the expert has.
        base: how many the base has.
        merged: how many of them are merged, from the first; beyond these, the base's stay as they are.
    """

    held: int
    base: int
    merged: int


def row_notes(rows: Mapping[str, Rows]) -> list[str]:
    """Return what became of an expert's rows, as sentences that lack whom they are about.

    Args:
        rows: by parameter.
    """
    names: dict[Rows, list[str]] = {}
    for name, found in rows.items():
        names.setdefault(found, []).append(name)
    notes = []
    for found, where in names.items():
        text = f"has {found.held} rows in {listed(where)} where the base has {found.base}: "
        if not found.merged:
            text += "all rows there stay the base's, its task vector is zero (model.vocabulary=base)"
        elif found.held > found.base:
            text += f"the first {found.merged} are merged, its last {found.held - found.base} are left out"
        else:
            text += f"the first {found.merged} are merged, the base's last {found.base - found.held} stay as they are"
        notes.append(text + (" (model.vocabulary=shared)" if found.merged else ""))
    return notes


def read_vocabulary(path: Path) -> dict[str, int] | None:
    """Return the tokens of a model directory with their ids, added ones included, from whichever file lists them; None
    where none can be read.
    """
    if (path / "tokenizer.json").is_file():
        tokenizer = read_object(path / "tokenizer.json")
        try:
            given = tokenizer["model"]["vocab"]
            tokens = dict(given) if isinstance(given, Mapping) else {row[0]: i for i, row in enumerate(given)}
            return tokens | {token["content"]: token["id"] for token in tokenizer.get("added_tokens") or ()}
        except (KeyError, TypeError, IndexError):
            return None
    if (path / "vocab.json").is_file():
        return read_object(path / "vocab.json") | read_object(path / "added_tokens.json") or None
    try:
        return {token: i for i, token in enumerate((path / "vocab.txt").read_text(encoding="utf-8").splitlines())}
    except (OSError, ValueError):
        return None


def compare_tokens(base: Mapping[str, int], expert: Mapping[str, int]) -> dict[str, list[str]]:
    """Return the tokens that the base lacks (`added`), that it alone has (`lost`), and that have another id there
    (`moved`), each in the order of the ids.
    """
    return {
        "added": sorted(expert.keys() - base.keys(), key=lambda token: (expert[token], token)),
        "lost": sorted(base.keys() - expert.keys(), key=lambda token: (base[token], token)),
        "moved": sorted(
            (token for token in base.keys() & expert.keys() if base[token] != expert[token]),
            key=lambda token: (base[token], token),
        ),
    }


def token_notes(base: Mapping[str, int] | None, expert: Mapping[str, int] | None) -> list[str]:
    """Return in what the tokens of an expert differ from the base's, as sentences that lack whom they are about.

    Args:
        base: its tokens with their ids; None where they are not known.
        expert: the same.
    """
    if base is None or expert is None:
        return []
    tokens, notes = compare_tokens(base, expert), []
    if added := tokens["added"]:
        notes.append(
            f"has {_counted(added)} that the base's tokenizer lacks ({listed(added)}): the merged model keeps the "
            f"base's tokenizer, which splits such text or does not know it"
        )
    if moved := tokens["moved"]:
        notes.append(
            f"gives {_counted(moved)} another id than the base ({listed(moved)}): its rows there stand for other tokens"
        )
    if lost := tokens["lost"]:
        notes.append(f"lacks {_counted(lost)} of the base ({listed(lost)}): it was not tuned on them")
    return notes


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file; an empty one where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8-sig"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _counted(tokens: list[str]) -> str:
    return f"{len(tokens)} token{'s' * (len(tokens) > 1)}"
