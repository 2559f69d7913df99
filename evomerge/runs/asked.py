"""What a program asks of a search, as settings: a fitness, tasks, and all of it held against the schema.

In: a function, a choice or a name; items in memory or where they are. Out: settings as the command has them, and beside
them what only the program has: the fitness, and the items of tasks in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.common.errors import ConfigError
from evomerge.fitness.custom import Custom, name_of
from evomerge.fitness.items import SPLITS
from evomerge.fitness.splits import Splits, split_items
from evomerge.models.checkpoint import MEMORY
from evomerge.runs.choices import Choice, load_choice, settings_of, without_numpy
from evomerge.runs.config import choices_of
from evomerge.runs.schema import SearchConfig


def composed(config: Mapping[str, Any]) -> Any:
    """Return the settings of a search, held against their schema; numpy's numbers become Python's.

    Raises:
        ConfigError: one has the wrong type.
    """

    try:
        return OmegaConf.merge(OmegaConf.structured(SearchConfig), without_numpy(config))
    except OmegaConfBaseException as error:
        raise ConfigError(f"{error.full_key or 'A setting'}: {str(error).splitlines()[0]}") from error


def fitness_of(given: Any) -> tuple[dict[str, Any], Custom | None]:
    """Return the settings of a fitness; and itself, where it is a function."""
    if isinstance(given, str) and ":" in given:
        return load_choice("fitness", "custom", {"function": given}), None
    if isinstance(given, str | Choice | Mapping):
        return settings_of("fitness", given), None
    if not callable(given):
        raise ConfigError(
            f"{given!r:.100} is no fitness: give a function, its name (file.py:score), or one of "
            f"{', '.join(choices_of('fitness'))}."
        )
    return load_choice("fitness", "custom", {"function": name_of(given)}), Custom(given)


def tasks_of(given: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Splits]]:
    """Return the settings `fitness.tasks`, and the items of those tasks that are in memory.

    Raises:
        ConfigError: the name of a task is no text.
        SuiteError: a task has no items.
    """
    settings: dict[str, Any] = {}
    held: dict[str, Splits] = {}
    named = given if isinstance(given, Mapping) and not isinstance(given, Splits) else {"task": given}
    for name, one in named.items():
        if not isinstance(name, str):
            raise ConfigError(f"The task {name!r:.100} has no name: write {{'mood': em.items('mood.jsonl')}}.")
        if isinstance(one, str | Path):
            settings[name] = str(one)
            continue
        asked: dict[str, Any] = dict(one) if isinstance(one, Mapping) and not set(one) & set(SPLITS) else {"items": one}
        items = asked.get("items")
        if isinstance(items, Path):
            asked["items"] = str(items)
        elif items is not None and not isinstance(items, str):
            held[name] = items if isinstance(items, Splits) else split_items(items, asked.get("classes") or ())
            asked = {"classes": list(held[name].classes), **asked, "items": str(held[name].place or MEMORY / name)}
        settings[name] = asked
    return settings, held
