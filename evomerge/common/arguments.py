"""Arguments of a class that come from a file or a command line, held against the plain annotations of its constructor.

In: a class and settings. Out: nothing, or a message that says which setting is of the wrong kind or does not exist.
"""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown

KINDS: dict[str, Any] = {"int": int, "float": (int, float), "str": str, "bool": bool, "None": type(None)}


def check_arguments(target: Any, arguments: Mapping[str, Any], where: str) -> None:
    """Refuse an argument whose kind is not the annotated one; annotations that are not plain say nothing.

    Args:
        target: the class.
        arguments: of its constructor.
        where: what they are called, such as `method`.

    Raises:
        ConfigError: one is of another kind.
    """
    try:
        parameters = inspect.signature(target).parameters
    except ValueError:  # built in, such as dict: whoever needs more of it than that it can be called says so
        return
    for name, parameter in parameters.items():
        if name in arguments:
            kinds = tuple(part.strip() for part in str(parameter.annotation).split("|"))
            check_kind(f"{where}.{name}", arguments[name], kinds if set(kinds) <= set(KINDS) else ())


def check_names(target: Any, given: Collection[str], what: str) -> None:
    """Refuse a name that is no argument of a class.

    Raises:
        ConfigError: one is not; the message names the nearest.
    """
    own = list(inspect.signature(target).parameters)
    for name in given:
        if name not in own:
            raise ConfigError(unknown(f"setting of {what}", name, own or ["none"]))


def check_kind(setting: str, value: Any, kinds: Sequence[str]) -> None:
    """Refuse a value that is of none of these kinds; none of them allow anything.

    Raises:
        ConfigError: it is.
    """
    if kinds and not any(is_kind(value, kind) for kind in kinds):
        wanted = " or ".join("null" if kind == "None" else kind for kind in kinds)
        raise ConfigError(f"{setting}={value} is no {wanted}: write a value of that type.")


def is_kind(value: Any, kind: str) -> bool:
    """Return whether a value is of a kind; a truth value is no number."""
    return isinstance(value, KINDS[kind]) and (kind == "bool" or not isinstance(value, bool))
