"""Settings of the command line, in Hydra's grammar, held against those that exist before anything acts on them.

In: arguments such as `model=text` and `space.n=4`. Out: a composed `SearchConfig`, or a message with the near match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.config import CONF, UNNAMED, SearchConfig, register
from evomerge.errors import EvomergeError
from evomerge.names import nearest

OPEN_SETTINGS = ("space.bounds.", "space.frozen.", "objective.weights.", "fitness.tasks.", "model.experts.")
"""Settings whose next part is a name that the user chooses."""


def compose_settings(arguments: Sequence[str]) -> Any:
    """Return the configuration that settings of the command line stand for, as `evomerge search` would have it.

    Raises:
        EvomergeError: a name or a choice does not exist, or is not written in Hydra's grammar.
    """
    register()
    settings = [part for argument in arguments for part in spelled_out(argument)]
    check_settings(settings)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("search", overrides=settings)


def check_settings(arguments: Sequence[str]) -> None:
    """Hold settings against those that exist, before Hydra does, for a message with the near match.

    Raises:
        EvomergeError: a name or a choice does not exist, or is not written in Hydra's grammar.
    """
    settings = [argument for argument in arguments if not argument.startswith("-")]
    try:
        parsed = OverridesParser.create().parse_overrides(settings)
    except HydraException as error:
        raise EvomergeError(
            f"{str(error).splitlines()[0]} Settings are name=value; put brackets, braces and spaces in quotes: "
            f"'model.experts=[a,b]'."
        ) from error
    known = sorted(set(_known_settings()))
    for override in parsed:
        if not override.is_add() and not override.key_or_group.startswith("hydra"):
            _check_setting(override, known)
    if not {"-m", "--multirun", "--help", "-h"} & set(arguments) and not any("hydra" in flag for flag in arguments):
        try:
            with initialize_config_dir(str(CONF), version_base="1.3"):
                compose("search", overrides=list(settings))
        except (HydraException, OmegaConfBaseException) as error:
            what, *rest = str(error.__cause__ or error).splitlines()
            key = next((f" ({line.split(':')[1].strip()})" for line in rest if "full_key" in line), "")
            hint = " To sweep, add -m." if what.startswith("Ambiguous") else ""
            raise EvomergeError(f"{what}{key}.{hint} `evomerge search --help` shows every setting.") from error


def _check_setting(override: Override, known: Sequence[str]) -> None:
    key = override.key_or_group
    if override.is_sweep_override() and key in UNNAMED:
        raise EvomergeError(f"{key} cannot be swept, since its runs would share one directory: sweep other settings.")
    if key not in known and not key.startswith(OPEN_SETTINGS):
        near = nearest(key, known, n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`evomerge search --help` lists all settings."
        raise EvomergeError(f"There is no setting '{key}'. {hint}")
    choices = sorted(file.stem for file in (CONF / key).glob("[!_]*.yaml"))
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
    for value in values if choices else ():
        if value is None and not override.is_delete():  # Hydra has no message for it
            raise EvomergeError(f"{key}=null is none of {', '.join(choices)}: write one of them, or leave {key} out.")
        if value is not None and value not in choices:
            near = nearest(str(value), choices)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EvomergeError(f"There is no {key} '{value}'.{hint} There is {', '.join(choices)}.")


def _known_settings() -> Iterator[str]:
    """Yield the dotted name of every setting in the schema and in any choice of any group."""
    yield from _flatten(OmegaConf.to_container(OmegaConf.structured(SearchConfig)), "")
    for file in sorted(CONF.glob("*/*.yaml")):
        yield file.parent.name
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        yield from _flatten({k: v for k, v in content.items() if k != "defaults"}, f"{file.parent.name}.")


def _flatten(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(value, f"{prefix}{name}.")


def spelled_out(argument: str) -> list[str]:
    """Return `space=blocks:6` as `space=blocks space.n=6`, and a new name below an open setting as Hydra wants it."""
    match = re.fullmatch(r"space=(blocks|chunk):(\d+)", argument)
    if match:
        return [f"space={match[1]}", f"space.n={match[2]}"]
    return [f"++{argument}" if argument.startswith(OPEN_SETTINGS) else argument]
