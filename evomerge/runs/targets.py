"""The choices of each group of settings, which are the files of conf/, and the classes that `_target_` names."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.exits import contained, line_of

CONF = Path(__file__).parents[1] / "conf"  # installed
if not CONF.is_dir():
    CONF = Path(__file__).parents[2] / "conf"  # source tree


def choices_of(group: str) -> list[str]:
    """Return the choices that a group of settings has."""
    return sorted(file.stem for file in (CONF / group).glob("[!_]*.yaml"))


def find_class(name: str, group: str) -> Any:
    """Return the class that `_target_` of a group names.

    Raises:
        ConfigError: there is none.
    """
    module, _, attribute = name.rpartition(".")
    try:
        if not module:
            raise ImportError("a class is written with its module, such as package.module.Class")
        found = contained(lambda: importlib.import_module(module))  # Hydra would print an error of its own first
        return getattr(found, attribute)
    except Exception as error:  # whatever a module of the user's raises
        raise ConfigError(
            f"{group}._target_={name} names no class that can be used: {type(error).__name__}{line_of(error)}: "
            f"{next(iter(str(error).splitlines()), '')}. Write {group}= and one of {', '.join(choices_of(group))}, or "
            f"the class with a module that Python finds from here."
        ) from error
