"""The settings `racing`: whether candidates that fall behind are scored on all items, and what is said of that.

In: these settings. Out: how generations are raced, and sentences. Off, a search is the one that it always was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.common.arguments import is_kind
from evomerge.common.errors import ConfigError

if TYPE_CHECKING:
    from evomerge.fitness.objectives import Objective
    from evomerge.search.evaluators.racing import Racing  # comes with torch, and settings are checked without it
    from evomerge.searchers.base import Part, Searcher


def alpha_of(settings: Mapping[str, Any]) -> Any:
    """Return the share of the best that races may lose, as it was written; None where there are none, as in runs of
    earlier versions, which have no such settings.
    """
    return (settings.get("racing") or {}).get("alpha")


def races_of(settings: Mapping[str, Any]) -> str:
    """Return the name of the setting by which candidates are dropped; nothing where none are."""
    if alpha_of(settings) is not None:
        return "racing.alpha"
    return "racing.halving" if _halves(settings) else ""


def _halves(settings: Mapping[str, Any]) -> bool:
    return bool((settings.get("racing") or {}).get("halving"))


def check_racing(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a race that are none, and those that it does not go together with.

    Raises:
        ConfigError: there are some.
    """
    if not (given := races_of(settings)):
        return
    if (alpha := alpha_of(settings)) is not None and _halves(settings):
        raise ConfigError(
            f"racing.alpha={alpha} drops who is behind by evidence, and racing.halving=true by ranks alone: write one."
        )
    if alpha is not None and not (is_kind(alpha, "float") and 0 < alpha < 1):
        raise ConfigError(
            f"racing.alpha={alpha} is no share of the best candidates that a race may lose: write a number between 0 "
            f"and 1, such as 0.1, or null for no race."
        )
    if (looks := settings["racing"]["looks"]) < 1:
        raise ConfigError(f"racing.looks={looks}: a race looks at its candidates once at least, so write 1 or more.")
    if alpha is None:
        for name, size in _named(settings["searcher"], "batch").items():
            if size == 1:
                raise ConfigError(
                    f"racing.halving drops the worse part of each batch, and with {name}=1 there is none: write "
                    f"{name}=8, or racing.alpha=0.1, which holds a candidate against the best so far."
                )
    for name, lag in lags(settings["searcher"]).items():
        raise ConfigError(
            f"{given} drops candidates once others are scored, and {name}={lag} asks for new ones before that: write "
            f"{name}=0, or leave {given} out."
        )


def racing_of(settings: Mapping[str, Any], searcher: Searcher, stopping: Callable[[], bool]) -> Racing | None:
    """Return how the generations of a search are raced; None where they are not.

    Args:
        settings: of the search, checked.
        searcher: says which points it goes by.
        stopping: whether somebody has asked to stop.
    """
    if not races_of(settings):
        return None
    from evomerge.search.evaluators.racing import Racing
    from evomerge.searchers.base import parents_of

    alpha = alpha_of(settings)
    looks = settings["racing"]["looks"]
    return Racing(None if alpha is None else float(alpha), looks, lambda: parents_of(searcher), stopping)


def racing_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a race adds to the identity of a search; nothing where there is none."""
    if not races_of(settings):
        return {}
    alpha = alpha_of(settings)
    return {"racing": ["halving" if alpha is None else float(alpha), settings["racing"]["looks"]]}


def racing_text(
    racing: Racing | None,
    objective: Objective,
    ids: Mapping[str, Sequence[str]],
    parts: Sequence[Part],
    changing: str,
    growing: bool,
) -> str:
    """Return what preflight says of races; nothing where there are none.

    Args:
        racing: how generations are raced.
        objective: makes values of outcomes.
        ids: the items of a generation, of the last one where samples grow.
        parts: what will be asked for.
        changing: the setting by which generations have other items each; nothing where all have the same.
        growing: whether earlier generations have fewer items.
    """
    if racing is None:
        return ""
    from evomerge.search.evaluators.racing import hindrance

    asked, left = sum(part.count for part in parts), dict[str, int]()
    for part in parts:
        if why := _unraced(part, changing):
            left[why] = left.get(why, 0) + part.count
    every = "; ".join(left) if sum(left.values()) == asked else ""
    if why := hindrance(racing, objective, ids) or every:
        return f"none: {why}"
    blocks, size = np.cumsum(racing.sizes(ids)), sum(map(len, ids.values()))
    looks = [f"{size * seen // blocks[-1]}" for seen in blocks[:-1]]
    after = f"{', '.join(looks[:-1])} or {looks[-1]}" if looks[1:] else looks[0]
    how = "by its rank in its generation"
    if racing.alpha is not None:
        how = "once it will hardly be among the best, by which the searcher goes; about "
        how += f"{racing.alpha:.3g} of these may be lost"
    screened = dict.fromkeys(part.parents.all_count for part in parts if part.parents and part.parents.all_count)
    return (
        f"a candidate is dropped after {after} of {size} items {how}. One that is dropped saves up to "
        f"{1 - 1 / blocks[-1]:.0%} of its item evaluations"
        + "".join(f"; {count:,} of {asked:,} are not raced: {why}" for why, count in left.items())
        + "".join(f"; none of a generation is dropped where {why}" for why in screened)
        + ("; earlier generations have fewer items (fitness.grow)" if growing else "")
    )


def _unraced(part: Part, changing: str) -> str:
    """Return why a part of a search is not raced; nothing where it is."""
    if part.gradient:
        return "they are steps of a gradient"
    if part.parents is None:
        return "the searcher does not say which points it goes by"
    if changing and part.parents.earlier is not None:
        return f"the searcher compares generations, and with {changing} each has other items"
    return ""


def lags(searcher: Mapping[str, Any]) -> dict[str, int]:
    """Return the lags above 0 in the settings of a searcher and of those that it is made of, by their names."""
    return {name: lag for name, lag in _named(searcher, "lag").items() if lag}


def _named(searcher: Mapping[str, Any], setting: str, within: str = "searcher") -> dict[str, Any]:
    """Return a setting of a searcher, and those of the searchers that it is made of, by their names."""
    found = dict[str, Any]()
    for name, value in searcher.items():
        if isinstance(value, Mapping):
            found |= _named(value, setting, f"{within}.{name}")
        elif name == setting:
            found[f"{within}.{name}"] = value
    return found
