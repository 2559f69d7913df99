"""The values of a search that has several, as people read them: by their names, and those that are minimised as they
are, since the search itself makes all of them larger.

In: the setting `objective.values`, and values of a trial. Out: name -> value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any


def readable(given: Mapping[str, Any] | None, tasks: Iterable[str], values: Sequence[float]) -> dict[str, float]:
    """Return values by name, with the sign that people know.

    Args:
        given: `objective.values`; nothing where every task is a value.
        tasks: of the search, in their order.
        values: to be maximised, one for each name.
    """
    small = {name for name, one in (given or {}).items() if isinstance(one, Mapping) and one.get("minimise")}
    return {name: -one if name in small else one for name, one in zip(given or tasks, values, strict=True)}
