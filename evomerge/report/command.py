"""The command that makes a run again: settings of a run directory in, arguments of `evomerge search` out.

`config.yaml` holds values, not the choices that they came from. So the nearest choice of each group is found, and what
then still differs is written out; the result is composed again, and counts only if it gives the same settings.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import yaml
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from evomerge.runs.config import CONF, SearchConfig, plain, register

GROUPS = ("model", "method", "space", "searcher", "fitness", "loss")
MISSING = object()


def command(settings: Mapping[str, Any], directory: str) -> str | None:
    """Return the command of a search as a person would type it, or None where no command gives these settings.

    Args:
        settings: of the search.
        directory: its run directory, as it is to be written.
    """
    found = arguments(settings)
    if found is None:
        return None
    return shlex.join(["evomerge", "search", *found, f"hydra.run.dir={_value(directory)}"])


def arguments(settings: Mapping[str, Any]) -> list[str] | None:
    """Return arguments of `evomerge search` that compose to these settings, or None where there are none."""
    given = [f"{group}={choice}" for group in GROUPS if (choice := _nearest(group, settings.get(group) or {}))]
    function = (settings.get("fitness") or {}).get("function")
    needed = [f"fitness.function={_value(function)}"] if "fitness=custom" in given else []  # nothing composes without
    try:
        composed, usual = _composed(*given, *needed), _composed()
        chosen = [choice for choice in given if composed[choice.split("=")[0]] != usual[choice.split("=")[0]]]
        found, again = [*chosen, *needed], composed
        for late in (("space.granularity",), ()):  # space.n makes the granularity
            differing = [(key, value) for key, value in _differences(settings, again) if key not in late]
            if differing:
                found += [_override(key, value, composed) for key, value in differing]
                again = _composed(*found)
    except Exception:  # settings of a user's own classes and files, in which anything may stand
        return None
    return None if any(_differences(settings, again)) else found


@cache
def _composed(*arguments: str) -> dict[str, Any]:
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):  # which leaves Hydra as it was
        return plain(compose("search", overrides=list(arguments)))


def _nearest(group: str, settings: Mapping[str, Any]) -> str | None:
    """Return the choice of a group that leaves fewest settings to be written out."""
    wanted = _flat(settings)
    schema: Any = OmegaConf.to_container(OmegaConf.structured(SearchConfig))
    distances: dict[str, int] = {}
    for file in sorted((CONF / group).glob("[!_]*.yaml")):
        content = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
        for parent in content.pop("defaults", []):
            if parent != "_self_":
                content = {**yaml.safe_load((file.parent / f"{parent}.yaml").read_text(encoding="utf-8")), **content}
        usual = _flat({**(schema.get(group) or {}), **content})
        # what a choice computes of other settings, it computes of those that were given: blocks:${.n}
        computed = {key for key, value in usual.items() if "${" in str(value)}
        given = {key: wanted.get(key, value) for key, value in usual.items() if key not in computed}
        node = OmegaConf.create(_nested(given | {key: usual[key] for key in computed}))
        resolved = _flat(OmegaConf.to_container(node, resolve=True))
        found = {key: resolved[key] if key in computed else value for key, value in usual.items()}
        differing = {key for key in {*found, *wanted} if found.get(key) != wanted.get(key)}
        distances[file.stem] = len(differing) + 10 * any(key.endswith("_target_") for key in differing)
    return min(distances, key=lambda choice: distances[choice], default=None)


def _differences(
    settings: Mapping[str, Any], composed: Mapping[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting that is composed otherwise; settings that a later version
    has added are left as they are.
    """
    for name, value in settings.items():
        other = composed.get(name, MISSING)
        if isinstance(value, Mapping) and isinstance(other, Mapping) and other:
            yield from _differences(value, other, f"{prefix}{name}.")
        elif value != other or type(value) is not type(other):
            yield f"{prefix}{name}", value


def _override(key: str, value: Any, composed: Mapping[str, Any]) -> str:
    """Return one argument; `+` adds what the choice does not have."""
    node: Any = composed
    for part in key.split("."):
        node = node.get(part, MISSING) if isinstance(node, Mapping) else MISSING
    value = {"chain": value} if key == "transform" else value  # a list that Hydra leaves as it is
    return f"{'+' if node is MISSING else ''}{key}={_value(value)}"


def _value(value: Any) -> str:
    """Return a value in Hydra's grammar."""
    if isinstance(value, Mapping):
        return "{" + ",".join(f"{_key(str(name))}:{_value(inner)}" for name, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_value, value)) + "]"
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    if isinstance(value, int | float):
        return repr(value)
    text = str(value)
    plain_word = re.fullmatch(r"[A-Za-z_./][\w./:+-]*", text) and not re.fullmatch(
        r"(?i)(null|true|false|nan|inf|[\d._]+(e[+-]?\d+)?)", text
    )
    return text if plain_word else "'" + re.sub(r"(\\*)'", r"\1\1\\'", re.sub(r"(\\+)$", r"\1\1", text)) + "'"


def _key(name: str) -> str:
    """Return a name within braces in Hydra's grammar, which has no quotes there."""
    return re.sub(r"([\\()\[\]{}:=, \t])", r"\\\1", name)


def _flat(node: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(node, Mapping) or (prefix and not node):
        return {prefix[:-1]: node}
    return {key: value for name, inner in node.items() for key, value in _flat(inner, f"{prefix}{name}.").items()}


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in flat.items():
        *outer, last = key.split(".")
        node = found
        for part in outer:
            node = node.setdefault(part, {})
        node[last] = value
    return found


def written(directory: Path) -> str:
    """Return a directory as it is written in a command: relative where it lies below the one of this process."""
    directory = directory.resolve()
    here = Path.cwd().resolve()
    return str(directory.relative_to(here)) if directory.is_relative_to(here) else str(directory)
