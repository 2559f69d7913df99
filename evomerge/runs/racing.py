"""The settings `racing`: whether candidates that fall behind are scored on all items, and what is said of that.

In: these settings. Out: how generations are raced, and sentences. Off, a search is the one that it always was.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

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


def check_racing(settings: Mapping[str, Any]) -> None:
    """Refuse settings of a race that are none, and those that it does not go together with.

    Raises:
        ConfigError: there are some.
    """
    if (alpha := alpha_of(settings)) is None:
        return
    if not (is_kind(alpha, "float") and 0 < alpha < 1):
        raise ConfigError(
            f"racing.alpha={alpha} is no share of the best candidates that a race may lose: write a number between 0 "
            f"and 1, such as 0.1, or null for no race."
        )
    if (looks := settings["racing"]["looks"]) < 1:
        raise ConfigError(f"racing.looks={looks}: a race looks at its candidates once at least, so write 1 or more.")
    for name, lag in lags(settings["searcher"]).items():
        raise ConfigError(
            f"racing.alpha={alpha:g} drops candidates once others are scored, and {name}={lag} asks for new ones "
            f"before that: write {name}=0, or racing.alpha=null."
        )


def racing_of(settings: Mapping[str, Any], searcher: Searcher, stopping: Callable[[], bool]) -> Racing | None:
    """Return how the generations of a search are raced; None where they are not.

    Args:
        settings: of the search, checked.
        searcher: says which points it goes by.
        stopping: whether somebody has asked to stop.
    """
    if (alpha := alpha_of(settings)) is None:
        return None
    from evomerge.search.evaluators.racing import Racing
    from evomerge.searchers.base import parents_of

    return Racing(float(alpha), settings["racing"]["looks"], lambda: parents_of(searcher), stopping)


def racing_identity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a race adds to the identity of a search; nothing where there is none."""
    alpha = alpha_of(settings)
    return {} if alpha is None else {"racing": [float(alpha), settings["racing"]["looks"]]}


def racing_text(
    racing: Racing | None,
    objective: Objective,
    ids: Mapping[str, Sequence[str]],
    parts: Sequence[Part],
    changing: str,
) -> str:
    """Return what preflight says of races; nothing where there are none.

    Args:
        racing: how generations are raced.
        objective: makes values of outcomes.
        ids: the items of the first generation.
        parts: what will be asked for.
        changing: the setting by which generations have other items each; nothing where all have the same.
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
    blocks, size = racing.blocks(ids), sum(map(len, ids.values()))
    looks = [f"{size * look // blocks}" for look in range(1, blocks)]
    after = f"{', '.join(looks[:-1])} or {looks[-1]}" if looks[1:] else looks[0]
    return (
        f"a candidate is dropped after {after} of {size} items once it will hardly be among the best, by which the "
        f"searcher goes; about {racing.alpha:.3g} of these may be lost. One that is dropped saves up to "
        f"{1 - 1 / blocks:.0%} of its item evaluations"
        + "".join(f"; {count:,} of {asked:,} are not raced: {why}" for why, count in left.items())
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


def lags(searcher: Mapping[str, Any], within: str = "searcher") -> dict[str, int]:
    """Return the lags above 0 in the settings of a searcher and of those that it is made of, by their names."""
    found = dict[str, int]()
    for name, value in searcher.items():
        if isinstance(value, Mapping):
            found |= lags(value, f"{within}.{name}")
        elif name == "lag" and value:
            found[f"{within}.lag"] = value
    return found
