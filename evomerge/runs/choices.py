"""The settings behind a choice: what `searcher=cmaes` on the command line stands for, for programs.

In: a group of settings, one of its choices (a file of conf/), and settings to put in place of its defaults. Out: plain
containers, the same that Hydra composes for the command, so that a search from Python and one from the command with the
same settings are one search. Hydra itself, which keeps state for the whole process, is not started.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.common.code import target_of
from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.runs.config import CONF, choices_of
from evomerge.runs.other_names import written_here
from evomerge.runs.schema import SearchConfig


def load_choice(group: str, name: str, given: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the settings of a choice.

    Args:
        group: `method`, `space`, `searcher`, `fitness`, `loss`, `evaluator` or `model`.
        name: the choice; of spaces also with its number, such as `blocks:6`.
        given: settings that differ from the defaults.

    Raises:
        ConfigError: there is no such choice, or it has no such setting.
    """
    name, _, number = name.partition(":") if group == "space" else (name, "", "")
    if name not in (known := choices_of(group)):
        raise ConfigError(f"{group}: {written_here(group, name) or unknown('choice', name, known)}")
    given = {**(given or {}), **({"n": _number(name, number)} if number else {})}
    settings = _read(group, name)
    if group in ("model", "space", "objective", "evaluator"):
        schema = OmegaConf.structured(getattr(SearchConfig(), group))
        settings = OmegaConf.merge(schema, settings)
    if stranger := [key for key in given if key not in list(settings)]:
        raise ConfigError(f"{group}={name}: {unknown('setting', str(stranger[0]), list(map(str, settings)))}")
    for key, value in given.items():
        try:
            OmegaConf.update(settings, key, without_numpy(value), merge=False)
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{group}.{key}={value!r:.100} cannot be a setting ({str(error).splitlines()[0]}): write a number or a "
                f"text, or a list or mapping of these, as conf/{group}/{name}.yaml has it."
            ) from error
    found: Any = OmegaConf.to_container(settings, resolve=True)
    return found


def without_numpy(value: Any) -> Any:
    """Return settings with Python's own numbers in place of numpy's, and lists in place of tuples."""
    if isinstance(value, Mapping):
        return {name: without_numpy(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_numpy(inner) for inner in value]
    return value.item() if isinstance(value, np.generic) else value


def _read(group: str, name: str) -> Any:
    """Return the settings of a file and of those that it begins with, without those that it puts into other groups."""
    settings: Any = OmegaConf.load(CONF / group / f"{name}.yaml")
    parents = [parent for parent in settings.pop("defaults", ()) if parent != "_self_"]
    own = [parent for parent in parents if not _text(CONF / group / f"{parent}.yaml").startswith("# @package")]
    return OmegaConf.merge(*(_read(group, parent) for parent in own), settings)


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8")


def _number(name: str, text: str) -> int:
    if not text.isdigit():
        raise ConfigError(f"space={name}:{text}: write a whole number after the colon, such as {name}:4.")
    return int(text)


@dataclass(frozen=True)
class Choice:
    """A choice of a group with settings that differ from its defaults, such as `searcher=cmaes searcher.sigma=0.2`.

    Attributes:
        group: of settings.
        name: of the choice.
        given: settings by name; one may be a choice itself.
    """

    group: str
    name: str
    given: Mapping[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """All settings of the choice.

        Raises:
            ConfigError: there is no such choice, or it has no such setting.
        """
        nested = {
            name: {**value.settings, "_partial_": True} if isinstance(value, Choice) else value
            for name, value in self.given.items()
        }
        return load_choice(self.group, self.name, nested)


def settings_of(group: str, given: Any) -> dict[str, Any]:
    """Return the settings of what a program gives for a group: a choice, its name, settings, or a class of its own.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(given, Choice) and given.group == group:
        return given.settings
    if isinstance(given, str):
        return load_choice(group, given)
    if isinstance(given, Mapping) and isinstance(given.get("_target_"), str):
        return dict(given)
    if isinstance(given, type):
        return {"_target_": target_of(given)}
    raise ConfigError(
        f"{given!r:.100} is no {group}: give the name of one ({', '.join(choices_of(group))}), or a class."
    )
