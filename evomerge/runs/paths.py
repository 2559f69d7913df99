"""Paths in the settings of a search: those of a home directory, and those of a search that was started elsewhere.

In: settings, and a run directory. Out: the settings with paths that hold here.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.common.paths import at_home, started_in

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
    if isinstance(
        pattern := model.get("trajectory"), str
    ):  # what lies there has the names that its last part stands for
        model["trajectory"] = str(Path(change(str(Path(pattern).parent))) / Path(pattern).name)
    elif pattern:
        model["trajectory"] = each(pattern)
    if isinstance(fitness, Mapping):
        fitness = dict(fitness)
        if isinstance(tasks := fitness.get("tasks"), Mapping):
            fitness["tasks"] = {name: task(given) for name, given in tasks.items()}
        if "files" in fitness:
            fitness["files"] = each(fitness["files"])
        if isinstance(function := fitness.get("function"), str) and ".py:" in function:
            file, _, attribute = function.rpartition(":")
            fitness["function"] = f"{change(file)}:{attribute}"
    starts = {name: each(settings[name]) for name in ("start", "baselines") if name in settings}
    return {**settings, "model": model, "fitness": fitness, **starts}


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
