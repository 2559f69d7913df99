"""Settings of the command line, in Hydra's grammar, held against those that exist before anything acts on them.

In: arguments such as `model=text` and `space.n=4`. Out: a composed `SearchConfig`, or a message with the near match.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from evomerge.cli.quoting import as_text, parts_of, quoted, readable
from evomerge.common.errors import EvomergeError
from evomerge.common.names import nearest
from evomerge.common.paths import at_home
from evomerge.runs.config import CONF, is_unnamed, register
from evomerge.runs.other_names import written_here
from evomerge.runs.schema import SearchConfig
from evomerge.runs.transforms import resolved

OPEN_SETTINGS = (
    *("space.bounds.", "space.frozen.", "fitness.tasks.", "model.experts."),
    *("objective.weights.", "objective.values.", "objective.constraints."),
)
"""Settings whose next part is a name that the user chooses."""
BUDGETS = {"budget.candidates": "budget", "budget.items": "budget_items", "budget.hours": "budget_hours"}
"""Other names of settings, which say what they count."""
KINDS = {"integer": ("whole number", "100"), "float": ("number", "0.5"), "bool": ("truth value", "true")}
"""What Hydra calls a type -> what it is called here, and an example."""


def compose_settings(arguments: Sequence[str]) -> Any:
    """Return the configuration that settings of the command line stand for, as `evomerge search` would have it.

    Raises:
        EvomergeError: a name or a choice does not exist, or is not written in Hydra's grammar.
    """
    register()
    settings = [part for argument in arguments for part in spelled_out(argument)]
    known_settings(settings)
    with explaining(), initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("search", overrides=settings)


def check_settings(arguments: Sequence[str]) -> None:
    """Hold settings against those that exist and compose them, before Hydra does, for a message with the near match.

    Raises:
        EvomergeError: a name or a choice does not exist, or is not written in Hydra's grammar; or a value does not fit.
    """
    parsed = known_settings(arguments)
    if {"--help", "-h"} & set(arguments) or any("hydra" in flag for flag in arguments):
        return
    settings = [argument for argument in arguments if not argument.startswith("-")]
    for job in _jobs(parsed) if sweeps(arguments) else [settings]:
        with explaining(), initialize_config_dir(str(CONF), version_base="1.3"):
            compose("search", overrides=list(job))


def known_settings(arguments: Sequence[str]) -> list[Override]:
    """Return settings, parsed, of which each has a name, and a choice, that exists.

    Raises:
        EvomergeError: one has not, or is not written in Hydra's grammar.
    """
    settings = [argument for argument in arguments if not argument.startswith("-")]
    for argument in settings:
        if not readable(argument):
            raise EvomergeError(_unreadable(argument))
    parsed = OverridesParser.create().parse_overrides(settings)
    known = _known_settings()
    for override in parsed:
        if not override.is_add() and not override.key_or_group.startswith("hydra"):
            _check_setting(override, known)
    return parsed


@contextmanager
def explaining() -> Iterator[None]:
    """Say in our own words why settings cannot be composed.

    Raises:
        EvomergeError: they cannot.
    """
    try:
        yield
    except (HydraException, OmegaConfBaseException) as error:
        raise EvomergeError(_explained(error)) from error


def sweeps(arguments: Sequence[str]) -> bool:
    """Whether arguments of `evomerge search` ask for a sweep."""
    return bool({"-m", "--multirun"} & set(arguments))


def _jobs(parsed: list[Override]) -> Iterator[Sequence[str]]:
    """Yield runs of a sweep until each value of each setting has occurred."""
    seen: set[str] = set()
    for batch in BasicSweeper.split_arguments(parsed, max_batch_size=None):
        for job in batch:
            if not seen.issuperset(job):
                seen.update(job)
                yield job


def _explained(error: Exception) -> str:
    """Say in our own words why settings cannot be composed."""
    what, *rest = str(error.__cause__ or error).splitlines()
    key = next((line.split(":")[1].strip() for line in rest if "full_key" in line), "")
    if ambiguous := re.match(r"Ambiguous value for argument '([^=]*)=(.*)'", what):
        one = shlex.quote(f"{ambiguous[1]}={as_text(ambiguous[2])}")
        return (
            f"{ambiguous[1]}={ambiguous[2]} has a comma, which stands between the values of a sweep: to sweep, add -m; "
            f"for one value, write quotes within the quotes of the shell: {one}."
        )
    wrong = re.match(r"Value '(.*?)' .*(?:converted to|valid) (\w+)", what)
    if wrong and key:
        kind, example = KINDS.get(wrong[2].lower(), (wrong[2], ""))
        usual = OmegaConf.select(OmegaConf.structured(SearchConfig), key)
        example = f", such as {key}={example if usual is None or isinstance(usual, bool) else usual}" * bool(example)
        return f"{key}={wrong[1]} is no {kind}: write one{example}."
    return f"{what}{f' ({key})' if key else ''}. `evomerge search --help` shows every setting."


def _unreadable(argument: str) -> str:
    """Say why an argument cannot be read, and how else it is written."""
    name, equals, value = argument.lstrip("+").partition("=")
    if not equals:
        return f"'{argument}' is no setting with a value. Settings are name=value, such as budget=100."
    if "," in value and quoted(argument):
        one = shlex.quote(f"{name}={as_text(value)}")
        return (
            f"{name}={value} cannot be read, since a comma stands between the values of a sweep here: put those that "
            f"have odd characters in quotes within the quotes of the shell, such as {one} for all of it as one value."
        )
    return (
        f"{name}={value} cannot be read: names there are words of ASCII letters, digits and _, and brackets stand in "
        f"pairs. Choose another name; or write the settings in a file experiment/mine.yaml, below the line "
        f"'# @package _global_', as YAML (model: {{experts: {{...}}}}), and run: "
        f"evomerge search --config-dir=. experiment=mine"
    )


def _chained(argument: str) -> str:
    """Return a list of transforms that Hydra could not compose, with settings in it or with a name twice, as a value
    that it leaves as it is; a sweep may have several.
    """
    name, _, value = argument.partition("=")
    if name != "transform" or "[" not in value:
        return argument
    lists = [part.strip() for part in parts_of(value)]
    return "transform=" + ",".join(f"{{chain: {one}}}" if _has_more_than_names(one) else one for one in lists)


def _has_more_than_names(text: str) -> bool:
    names = [part.strip() for part in text.strip("[]").split(",")]
    return text.startswith("[") and ("{" in text or len(set(names)) < len(names))


def _check_setting(override: Override, known: Sequence[str]) -> None:
    key = override.key_or_group
    if override.is_sweep_override() and is_unnamed(key):
        raise EvomergeError(f"{key} cannot be swept, since its runs would share one directory: sweep other settings.")
    if key not in known and not key.startswith(OPEN_SETTINGS):
        near = nearest(key, [*known, *BUDGETS], n=3, cutoff=0.5)
        hint = f"Did you mean {' or '.join(near)}?" if near else "`evomerge search --help` lists all settings."
        raise EvomergeError(f"There is no setting '{key}'. {hint}")
    choices = sorted(file.stem for file in (CONF / key).glob("[!_]*.yaml"))
    values = override.sweep_string_iterator() if override.is_sweep_override() else [override.value()]
    if key == "transform" and not override.is_delete():
        chains = override.value()
        for chain in chains.list if isinstance(chains, ChoiceSweep) else [chains]:
            resolved(chain)
        return
    for value in values if choices else ():
        if value is None and not override.is_delete():  # Hydra has no message for it
            raise EvomergeError(f"{key}=null is none of {', '.join(choices)}: write one of them, or leave {key} out.")
        if value is not None and value not in choices:
            if elsewhere := written_here(key, str(value)):
                raise EvomergeError(elsewhere)
            near = nearest(str(value), choices)
            hint = f" Did you mean {near[0]}?" if near else ""
            raise EvomergeError(f"There is no {key} '{value}'.{hint} There is {', '.join(choices)}.")


@cache
def _known_settings() -> Sequence[str]:
    """Return the dotted name of every setting in the schema and in any choice of any group, in order."""
    names = set(_flatten(OmegaConf.to_container(OmegaConf.structured(SearchConfig)), ""))
    for file in CONF.glob("*/*.yaml"):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        names |= {
            file.parent.name,
            *_flatten({k: v for k, v in content.items() if k != "defaults"}, f"{file.parent.name}."),
        }
    return sorted(names)


def _flatten(node: object, prefix: str) -> Iterator[str]:
    if isinstance(node, dict):
        for name, value in node.items():
            yield f"{prefix}{name}"
            yield from _flatten(value, f"{prefix}{name}.")


def spelled_out(argument: str, sweep: bool = False) -> list[str]:
    """Return `space=blocks:6` as `space=blocks space.n=6`, `budget.hours=8` as `budget_hours=8`, a new name below an
    open setting as Hydra wants it, and in quotes a value that Hydra's grammar does not have.

    Args:
        argument: as it was written.
        sweep: whether a comma stands between several values.
    """
    match = re.fullmatch(r"space=(blocks|modules|chunk):(\d+)", argument)
    if match:
        return [f"space={match[1]}", f"space.n={match[2]}"]
    name, equals, value = argument.partition("=")
    argument = _chained(f"{BUDGETS.get(name, name)}{equals}{value}")
    if argument.startswith("hydra."):
        argument = re.sub("=(~.*)", lambda home: f"={at_home(home[1])}", argument)
    argument = f"++{argument}" if argument.startswith(OPEN_SETTINGS) else argument
    single = not (argument.startswith("-") or (sweep and "," in argument))
    return [(quoted(argument) if single else None) or argument]
