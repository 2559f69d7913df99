"""The checkpoints of one training run, in the order in which they were written.

In: a pattern of directories such as `run/checkpoint-*`, or a list of them. Out: the directories, the oldest first. The
last number in a directory's name is its step. An average of checkpoints counts each for the same length of training, so
a pattern that leaves a gap is refused; a list is taken as it stands.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from evomerge.common.errors import ConfigError
from evomerge.models.adapter_files import is_adapter

NUMBER = re.compile(r"\d+")


def find_checkpoints(given: str | Sequence[str]) -> list[str]:
    """Return the checkpoints of a run, two or more, the oldest first.

    Args:
        given: a pattern whose last part has wildcards, or directories in their order.

    Raises:
        ConfigError: there are fewer than two, a name has no step, two have the same one, or one is missing in between.
    """
    found = _in_order(given) if isinstance(given, str) else [*given]
    if len(found) < 2:
        what = f"there is {found[0]} alone" if found else "there is no such directory"
        raise ConfigError(
            f"{given}: an average needs two checkpoints, and {what}. Write the pattern of their directories, such as "
            f"run/checkpoint-*."
        )
    return found


def base_of(checkpoints: Sequence[str], base: str | None) -> str:
    """Return the model that checkpoints are held against: the one that is named, or else the oldest of them.

    Raises:
        ConfigError: none is named, and the checkpoints are adapters.
    """
    if base is None and is_adapter(Path(checkpoints[0])):
        raise ConfigError(
            f"{checkpoints[0]} is an adapter, and a trajectory of adapters needs the model that they adapt: name that "
            f"as the base."
        )
    return base or checkpoints[0]


def _in_order(pattern: str) -> list[str]:
    """Return the directories of a pattern by their steps."""
    path = Path(pattern).expanduser()
    if not path.name:
        raise ConfigError(f"{pattern}: there is no name in it. Write a pattern, such as run/checkpoint-*.")
    steps: dict[int, Path] = {}
    places = sorted(each for each in path.parent.glob(path.name) if each.is_dir())
    for place in places:
        if not (numbers := NUMBER.findall(place.name)):
            raise ConfigError(f"{pattern}: {place.name} has no step in its name. {_named(pattern, places)}")
        if other := steps.get(step := int(numbers[-1])):
            raise ConfigError(
                f"{pattern}: {other.name} and {place.name} are of the same step. {_named(pattern, places)}"
            )
        steps[step] = place
    order = sorted(steps)
    there = [steps[step] for step in order]
    gaps = [later - step for step, later in pairwise(order)]
    usual = min(gaps[:-1] or gaps, default=0)  # training may end before the next regular one
    for i, gap in enumerate(gaps):
        if gap > usual:
            before, after = (steps[order[i + j]].name for j in (0, 1))
            raise ConfigError(
                f"{pattern}: {before} and {after} are {gap} steps apart, and others {usual}, so one is missing; an "
                f"average counts all checkpoints for the same length of training. {_named(pattern, there)}"
            )
    return [str(steps[step]) for step in order]


def _named(pattern: str, places: Sequence[Path]) -> str:
    """Say how to name checkpoints one by one, with some that are there."""
    parent = pattern.rpartition("/")[0]
    each = [f"{parent}/{place.name}" if parent else place.name for place in places]
    more = ",..." if each[3:] else ""
    return f"Name those to take as a list, in their order: [{','.join(each[:3])}{more}]."
