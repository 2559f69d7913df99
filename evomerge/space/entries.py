"""Which entries of a coefficient space the user's patterns hold at a value, and which they tie together.

In: the names of the entries of each variable, and patterns (shell globs, or a name as it stands). Out: entry -> value,
and entry -> the coordinate that it shares, with a factor.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from evomerge.common.errors import SpaceError
from evomerge.common.names import matching

if TYPE_CHECKING:
    import numpy as np

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


Ties = Sequence[str | Mapping[str, float]]
"""What makes one coordinate each: a pattern; or {pattern: factor}, with what it is multiplied by for the entries of a
pattern. Names of rows in place of patterns, {row: factor}, make one coordinate in each group.
"""


def tied_to(entry: str, ties: Ties) -> str | None:
    """Return the coordinate that ties make of an entry; None where it is in none of them."""
    place, _, row = entry.rpartition("/")
    for factors in map(_factors, ties):
        first = next(iter(factors), "")
        if _by_row(factors) and row in factors:
            return f"{place}/{first}"
        if any(entry == pattern or fnmatchcase(entry, pattern) for pattern in factors):
            return first
    return None


def tied_entries(
    entries: Mapping[str, list[str]], variables: Sequence[Variable], ties: Ties
) -> dict[str, tuple[str, float]]:
    """Return entry name -> the coordinate that it shares with others, and the factor of that.

    Args:
        entries: variable -> the names of its entries.
        variables: of the method.
        ties: each makes one coordinate of what it matches.

    Raises:
        SpaceError: a pattern matches nothing or entries of two variables, two match the same entry, or a factor means
            nothing.
    """
    variable = {entry: v for v in variables for entry in entries[v.name]}
    merged: dict[str, tuple[str, float]] = {}
    places = dict.fromkeys(entry.rpartition("/")[0] for entry in entries.get("weight", []))
    for patterns in [each for tie in ties for each in _spread(tie, places)]:
        found = [(entry, one) for one in patterns for entry in matching(one, list(variable), "tied")]
        said, name = " and ".join(map(repr, patterns)), next(iter(patterns), "")
        if len(owners := dict.fromkeys(variable[entry].name for entry, _ in found)) > 1:
            raise SpaceError(
                f"tied: {said} would give {' and '.join(owners)} one coordinate. "
                f"Write one pattern per variable, beginning with {' or '.join(f'{owner}/' for owner in owners)}."
            )
        for entry, pattern in found:
            factor = patterns[pattern]
            if not math.isfinite(factor) or factor == 0 or (variable[entry].share and not 0 < factor <= 1):
                shares = f"{variable[entry].name} is a share, so write one above 0, up to 1"
                what = shares if variable[entry].share else "nothing would move it: write another number"
                raise SpaceError(f"tied: {pattern!r} has the factor {factor:g}, and {what}.")
            if merged.setdefault(entry, (name, factor)) != (name, factor):
                raise SpaceError(
                    f"tied: {entry} is in {merged[entry][0]!r} and in {pattern!r}. Let it be in one of them."
                )
    return merged


def _factors(tie: str | Mapping[str, float]) -> dict[str, float]:
    return {tie: 1.0} if isinstance(tie, str) else {pattern: float(factor) for pattern, factor in tie.items()}


def _by_row(factors: Mapping[str, float]) -> bool:
    return not any("/" in name or "*" in name for name in factors)


def _spread(tie: str | Mapping[str, float], places: Iterable[str]) -> list[dict[str, float]]:
    """Return a tie as patterns: one for all groups, or, of rows, one for each group."""
    factors = _factors(tie)
    if isinstance(tie, str) or not _by_row(factors):
        return [factors]
    return [{f"{place}/{row}": factor for row, factor in factors.items()} for place in places]


def left_out(entries: Mapping[str, list[str]], variables: Sequence[Variable], only: Sequence[str]) -> dict[str, float]:
    """Return entry name -> the start of its variable, for those that no pattern matches.

    Args:
        entries: variable -> the names of its entries.
        variables: of the method.
        only: patterns of the entries that are searched.

    Raises:
        SpaceError: a pattern matches nothing.
    """
    every = [name for names in entries.values() for name in names]
    chosen = {entry for pattern in only for entry in matching(pattern, every, "only")}
    return {entry: v.start for v in variables for entry in entries[v.name] if entry not in chosen}


def free_entries(
    entries: Mapping[str, list[str]],
    alive: np.ndarray,
    held: Mapping[str, float],
    merged: Mapping[str, tuple[str, float]],
) -> dict[str, tuple[str, float]]:
    """Return entry name -> the coordinate of the space that moves it, and the factor, for those that nothing holds.

    Args:
        entries: variable -> the names of its entries.
        alive: which of a variable's entries have a task vector to multiply, bool (entries,).
        held: what `held_entries` returned.
        merged: what `tied_entries` returned.

    Raises:
        SpaceError: nothing is left.
    """
    free = {
        entry: merged.get(entry, (entry, 1.0))
        for names in entries.values()
        for entry, touches in zip(names, alive, strict=True)
        if touches and entry not in held
    }
    if not free:
        raise SpaceError(
            "Nothing is left to search: every coefficient is frozen, by a pattern or because its task vector is zero. "
            "Freeze fewer entries, or check that the experts are not copies of the base."
        )
    return free
