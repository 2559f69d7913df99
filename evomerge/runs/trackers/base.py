"""What a tracker is: it shows the numbers of a search in another program, and nothing of the search depends on it.

In: the setting `tracker`. Out: a `Tracker`, or an error before anything expensive where its package is missing.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.common.protocols import lacking
from evomerge.runs.config import build


@dataclass(frozen=True)
class Tracked:
    """A run, as a tracker knows it.

    Attributes:
        name: of its directory.
        id: a hash of that name and of what is searched: the same for the run that goes on, another one for another.
        directory: where it is.
        settings: of the search.
    """

    name: str
    id: str
    directory: Path
    settings: Mapping[str, Any]


@runtime_checkable
class Tracker(Protocol):
    """Shows the numbers of a search. Its constructor refuses what it lacks; all else happens in a thread of its own."""

    def open(self, run: Tracked) -> int:
        """Begin, or go on with, the record of a run; return the first generation that it does not have yet."""
        ...

    def log(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Add the numbers of a generation."""
        ...

    def close(self, generation: int, numbers: Mapping[str, float]) -> None:
        """Add what is known at the end, as of the last generation; nothing, if the search will go on."""
        ...


def make_tracker(settings: Mapping[str, Any]) -> Tracker | None:
    """Return the tracker of a search, if it has one.

    Raises:
        ConfigError: its package is not installed, or its class is no tracker.
    """
    if not (given := settings.get("tracker")):
        return None
    tracker = build(given, "tracker")
    if not isinstance(tracker, Tracker):
        raise ConfigError(
            f"tracker._target_={given['_target_']} is no tracker: it lacks {listed(lacking(tracker, Tracker))}. See "
            f"{Tracker.__module__}.{Tracker.__qualname__}."
        )
    return tracker


def need(package: str, extra: str) -> None:
    """Refuse a tracker whose package is not installed.

    Raises:
        ConfigError: it is not.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"tracker={extra} needs {package}, which is not installed: pip install 'evomerge[{extra}]'. Or leave "
            f"tracker out; the same command with it shows all of the search later."
        )
