"""Paths in the settings of a search: those of a home directory, and those of a search that was started elsewhere.

In: settings, and a run directory. Out: the settings with paths that hold here. A search records the directory in which
it was started beside its settings (`started.json`): as it is, and as it is seen from the run directory, so that runs
can be looked at from anywhere, also after all of it has moved. Nothing of it enters the log or the identity.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.common.files import write_atomically

RECORD = "started.json"
OF_MODELS = ("suite", "base", "experts", "cache", "trained_on")
"""Settings of models that are paths, or hold them."""
OF_TASKS = ("items", "task", "head", "include_path")
"""Settings of a task that are paths, or may be."""


def with_paths(settings: Mapping[str, Any], change: Callable[[str], str]) -> dict[str, Any]:
    """Return settings whose every path has passed through a function.

    Args:
        settings: of a search, as plain containers.
        change: is given texts that may be paths, or names of another kind.
    """

    def each(node: Any) -> Any:
        if isinstance(node, Mapping):
            return {name: each(value) for name, value in node.items()}
        if isinstance(node, list):
            return [each(value) for value in node]
        return change(node) if isinstance(node, str) else node

    def task(given: Any) -> Any:
        if not isinstance(given, Mapping):
            return each(given)
        return {name: each(value) if name in OF_TASKS else value for name, value in given.items()}

    model, fitness = dict(settings["model"]), settings["fitness"]
    model |= {name: each(model[name]) for name in OF_MODELS if name in model}
    if isinstance(fitness, Mapping):
        fitness = dict(fitness)
        if isinstance(tasks := fitness.get("tasks"), Mapping):
            fitness["tasks"] = {name: task(given) for name, given in tasks.items()}
        if isinstance(function := fitness.get("function"), str) and ".py:" in function:
            file, _, attribute = function.rpartition(":")
            fitness["function"] = f"{change(file)}:{attribute}"
    return {**settings, "model": model, "fitness": fitness, "start": each(settings.get("start"))}


def at_home(text: str) -> str:
    """Return a path whose `~` is spelled out."""
    return os.path.expanduser(text) if text.startswith("~") else text


def record_start(run: Path) -> None:
    """Write into a run directory where its search is started, which is here."""
    here = {"directory": os.getcwd(), "seen_from_here": os.path.relpath(os.getcwd(), run)}
    write_atomically(run / RECORD, json.dumps(here) + "\n")


def started_in(run: Path) -> list[Path]:
    """Return the directories in which the search of a run may have been started, the likeliest first.

    Args:
        run: its directory; one without a record gives none.
    """
    try:
        record = json.loads((run / RECORD).read_text(encoding="utf-8"))
        return [run / record["seen_from_here"], Path(record["directory"])]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def from_its_start(settings: Mapping[str, Any], run: Path) -> dict[str, Any]:
    """Return the settings of a run with relative paths that hold here, where they held where it was started."""
    settings = with_paths(settings, at_home)
    starts = [start for start in started_in(run) if start.is_dir()]
    if not starts or starts[0].samefile("."):
        return settings

    def found(text: str) -> str:
        tries = [] if not text or Path(text).is_absolute() else [start / text for start in starts]
        return next((os.path.relpath(path) for path in tries if path.exists()), text)

    return with_paths(settings, found)
