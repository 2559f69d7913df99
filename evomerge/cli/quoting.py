"""Values of the command line that Hydra's grammar has no words for: paths with `=`, `~`, brackets or letters beyond
ASCII.

In: an argument that Hydra cannot parse. Out: the same one with quotes where the grammar wants them, or None. Or in: a
value of Python's. Out: how it is written, so that Hydra reads it as the same value. Within braces the grammar has no
quotes for names, so that a name with other letters must stand in a YAML file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

PAIRS = {"[": "]", "{": "}"}
PLAIN = re.compile(r"[A-Za-z_./][\w./-]*", re.ASCII)
"""Text that surely needs no quotes, if it is not one of the words of `OTHER`."""
OTHER = r"null|true|false|[-+]?(inf|nan)|[-+.\d_]+(e[-+\d_]*)?"
"""Words that are no text for Hydra."""


def quoted(argument: str) -> str | None:
    """Return an argument with quotes around what Hydra's grammar cannot read, or None where that does not help.

    Args:
        argument: `name=value`; one that Hydra can read is returned as it is.
    """
    if readable(argument):
        return argument
    name, equals, value = argument.partition("=")
    if not equals or not value:
        return None
    changed = f"{name}={_quote(value)}"
    return changed if readable(changed) else None


def readable(argument: str) -> bool:
    """Whether Hydra's grammar has an argument."""
    try:
        OverridesParser.create().parse_override(argument)
    except HydraException:
        return False
    return True


def as_text(value: str) -> str:
    """Return a value within quotes, as Hydra's grammar has them."""
    mark = "'" if '"' in value else '"'  # the shell's own are single ones, as a rule
    escaped = re.sub(rf"(\\*){mark}", rf"\1\1\\{mark}", re.sub(r"(\\+)$", r"\1\1", value))
    return f"{mark}{escaped}{mark}"


def written(value: Any) -> str:
    """Return how a value is written on the command line: Hydra reads it as the same one, of the same type.

    Args:
        value: text, a number, a truth value, None, or a mapping or a list of these. Names in a mapping are words.
    """
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {written(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(written, value)) + "]"
    if isinstance(value, str):
        plain = PLAIN.fullmatch(value) and not re.fullmatch(OTHER, value, re.IGNORECASE)
        return value if plain else as_text(value.replace("${", "\\${"))  # else another setting's value stands for it
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _quote(value: str) -> str:
    """Return a value with quotes around those of its parts that need them."""
    text = value.strip()
    if text[:1] not in PAIRS or text[-1:] != PAIRS[text[0]]:
        return value if text[:1] in PAIRS or readable(f"x={value}") else as_text(text)
    parts = []
    for part in parts_of(text[1:-1]):
        key, colon, rest = part.partition(":") if text[0] == "{" else ("", "", part)
        parts.append(f"{key.strip()}{colon} {_quote(rest.strip())}" if colon else _quote(part.strip()))
    return f"{text[0]}{', '.join(parts)}{text[-1]}"


def parts_of(text: str) -> Iterator[str]:
    """Yield what stands between the commas of a list, or of a mapping, that are not within brackets or quotes."""
    depth, mark, start = 0, "", 0
    for i, letter in enumerate(text):
        if mark:
            mark = "" if letter == mark and text[i - 1] != "\\" else mark
        elif letter in "\"'":
            mark = letter
        elif letter in "[{(":
            depth += 1
        elif letter in ")}]":
            depth -= 1
        elif letter == "," and not depth:
            yield text[start:i]
            start = i + 1
    if text[start:].strip():
        yield text[start:]
