"""Which entries of a coefficient space the user's patterns hold at a value, and which they tie together.

In: the names of the entries of each variable, and patterns (shell globs, or a name as it stands). Out: entry -> value,
and entry -> the pattern that ties it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from evomerge.common.errors import SpaceError
from evomerge.common.names import matching

if TYPE_CHECKING:
    from evomerge.space.variable import Variable


def held_entries(
    entries: Mapping[str, list[str]], variables: Sequence[Variable], patterns: Mapping[str, float]
) -> dict[str, float]:
    """Return entry name -> the value at which a pattern holds it.

    Args:
        entries: variable -> the names of its entries.
        variables: of the method, with their bounds.
        patterns: pattern -> value.

    Raises:
        SpaceError: a pattern matches nothing, holds an entry outside its bounds, or contradicts another.
    """
    held: dict[str, float] = {}
    for pattern, value in patterns.items():
        found = set(matching(pattern, [name for names in entries.values() for name in names], "frozen"))
        for v in variables:
            mine = [entry for entry in entries[v.name] if entry in found]
            if mine and not v.low <= value <= v.high:
                raise SpaceError(
                    f"frozen: {pattern!r} holds {v.name} at {value}, outside its bounds [{v.low}, {v.high}]. "
                    f"Write a value inside, or wider bounds for {v.name}."
                )
            for entry in mine:
                if held.setdefault(entry, float(value)) != value:
                    raise SpaceError(
                        f"frozen: patterns hold {entry} at {held[entry]} and at {value}. Write one of them."
                    )
    return held


def tied_entries(entries: Mapping[str, list[str]], patterns: Sequence[str]) -> dict[str, str]:
    """Return entry name -> the pattern that ties it to others.

    Args:
        entries: variable -> the names of its entries.
        patterns: each makes one coordinate of what it matches.

    Raises:
        SpaceError: a pattern matches nothing or entries of two variables, or two patterns match the same entry.
    """
    variable = {entry: name for name, names in entries.items() for entry in names}
    merged: dict[str, str] = {}
    for pattern in patterns:
        found = matching(pattern, list(variable), "tied")
        if len(owners := dict.fromkeys(variable[entry] for entry in found)) > 1:
            raise SpaceError(
                f"tied: {pattern!r} would give {' and '.join(owners)} one coordinate. "
                f"Write one pattern per variable, beginning with {' or '.join(f'{owner}/' for owner in owners)}."
            )
        for entry in found:
            if merged.setdefault(entry, pattern) != pattern:
                raise SpaceError(f"tied: {entry} is in {merged[entry]!r} and in {pattern!r}. Let it be in one of them.")
    return merged
