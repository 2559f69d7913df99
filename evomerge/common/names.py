"""Names that users write by hand, held against those that exist; and many texts in few words.

In: a name or a shell glob from a configuration or a file. Out: the names that it stands for, or a message that proposes
the nearest ones.
"""

import difflib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from evomerge.common.errors import SpaceError


def nearest(name: str, known: Iterable[str], n: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names that look most like this one, best first.

    Args:
        name: as it was written.
        known: the names that exist.
        n: how many to give at most.
        cutoff: the least similarity (`difflib`'s ratio), from 0: anything, to 1: the same.
    """
    return difflib.get_close_matches(name, known, n, cutoff)


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: what is meant, perhaps, and what there is."""
    known = list(known)
    near = nearest(name, known)
    hint = f": did you mean {near[0]!r}?" if near else "."
    return f"Unknown {kind} {name!r}{hint} There are {', '.join(known)}."


DTYPES = ("float64", "float32", "bfloat16", "float16")
"""The names of those that weights can have."""


def dtype_name(dtype: object) -> str:
    """The name of a dtype, as files and settings write it."""
    return str(dtype).removeprefix("torch.")


def listed(names: Sequence[str]) -> str:
    """The first three names, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def commonest(texts: Iterable[str]) -> list[tuple[str, int]]:
    """The first of all texts that differ in numbers alone, with how many they are, the most frequent first."""
    examples: dict[str, str] = {}
    counts: Counter[str] = Counter()
    for text in texts:
        kind = re.sub(r"\d+", "N", text)
        examples.setdefault(kind, text)
        counts[kind] += 1
    return [(examples[kind], n) for kind, n in counts.most_common()]


def matching(pattern: str, names: Collection[str], setting: str) -> list[str]:
    """The names that a shell glob matches; a name as it stands matches itself, brackets and all.

    Raises:
        SpaceError: nothing matches; the message names the setting and the nearest names.
    """
    found = [name for name in names if name == pattern or fnmatchcase(name, pattern)]
    if not found:
        near = ", ".join(nearest(pattern, names, n=3, cutoff=0.0))
        raise SpaceError(f"{setting}: {pattern!r} matches no entry of this space. The nearest are {near}.")
    return found


def mark_lines(marks: Mapping[str, Sequence[str]], labels: Mapping[str, str] | None = None) -> list[str]:
    """Return the lines that stand below a table, each with the rows that it is about.

    Args:
        marks: the sentences of each row that has any.
        labels: what rows are called, where not by their own names.
    """
    rows: dict[str, list[str]] = {}
    for name, texts in marks.items():
        for text in texts:
            rows.setdefault(text, []).append((labels or {}).get(name, name))
    return [f"* {', '.join(names)}: {text}" for text, names in rows.items()]


def marked(name: str, marks: Mapping[str, Any], label: str | None = None) -> str:
    """Return what a row is called, with a star if something stands below the table."""
    return f"{label or name}{' *' if marks.get(name) else ''}"
