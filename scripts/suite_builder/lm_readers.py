"""Readers of the language data: pairs of a subject and a document. The subject is the situation, the question or the
words that several documents may share; none may be in two splits.

In: unpacked packages. Out: lists of pairs. The questions are JSON lines whose choices are one string, "A. x\nB. y". The
quotations are of the `fortune` program: lines with a lone % between them, the author behind a dash on the last line.
"""

import json
import re
from pathlib import Path
from typing import Any

from suite_builder.lm_documents import Document

CHOICE = re.compile(r"(?:^|\n)\s*[A-H][.)] ?")  # what stands before a choice
LONG = 150  # characters of a choice, and
LONG_PROMPT = 240  # of what is asked: more than 96 tokens together hardly ever
SHORTEST, LONGEST = 40, 200  # characters of a text; German has two characters a token here, English four


def read_questions(file: Path) -> list[tuple[str, Document]]:
    """Read questions with choices; leave out those without a gold answer, and long ones.

    Args:
        file: of JSON lines with `question`, `options`, `answer` and perhaps a `passage`.
    """
    found = []
    for line in file.read_text(encoding="utf-8").splitlines():
        row: dict[str, Any] = json.loads(line)
        choices = [choice.strip() for choice in CHOICE.split(row["options"])[1:]]
        answer = CHOICE.sub("", row.get("answer", "")).strip()
        about, question = (_words(row.get(field, "")) for field in ("passage", "question"))
        if choices.count(answer) != 1 or len(set(choices)) < len(choices):
            continue
        if max(map(len, choices)) > LONG or len(about) + len(question) > LONG_PROMPT:
            continue
        passage = {"passage": about} if about else {}
        document = {**passage, "question": question, "choices": choices, "label": choices.index(answer)}
        found.append((_letters(about or question), document))
    return found


def read_quotations(file: Path) -> list[tuple[str, Document]]:
    """Read quotations of a fortune file as one line each, without their authors."""
    found = []
    for entry in re.split(r"^%\n", file.read_text(encoding="utf-8"), flags=re.MULTILINE):
        text = _words(re.split(r"\n\s*--", entry)[0])
        if SHORTEST <= len(text) <= LONGEST:
            found.append((_letters(text), {"text": text}))
    return found


def _words(text: str) -> str:
    return " ".join(text.split())


def _letters(text: str) -> str:
    """Return what remains of a text when it is written otherwise: its letters."""
    return "".join(character for character in text.lower() if character.isalnum())
