"""Plain data of a recipe's YAML, held against what it must be: mappings, keys, numbers.

In: what was read, or what is to be written. Out: the same in Python's own types, or an error that names the place.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import numpy as np
import yaml

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown


class Dumper(yaml.SafeDumper):
    """Writes every mapping out, also one that occurs twice."""

    def ignore_aliases(self, data: Any) -> bool:
        """Whether to write no anchors: always."""
        return True


class Loader(yaml.SafeLoader):
    """Refuses a key that is written twice, of which YAML would silently take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """Return the mapping, or refuse it."""
        keys = Counter(key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode))
        for key, count in keys.items():
            if count > 1:
                line = node.start_mark.line + 1
                raise ConfigError(f"recipe: {key!r} stands {count} times in the mapping that begins in line {line}.")
        return super().construct_mapping(node, deep)


def checked_mapping(data: Any, kinds: Mapping[str, type], where: str) -> dict[str, Any]:
    """Return the same mapping, if it has exactly these keys with values of these kinds."""
    if not isinstance(data, dict):
        raise ConfigError(f"recipe: {where or 'the file'} must be a mapping, not {data!r}.")
    check_keys(data, kinds, where, "key")
    for key, kind in kinds.items():
        if not isinstance(data[key], kind):
            raise ConfigError(f"recipe: {_join(where, key)} must be of type {kind.__name__}, not {data[key]!r}.")
    return data


def check_keys(given: Mapping[str, Any], wanted: Mapping[str, Any], where: str, kind: str) -> None:
    """Refuse a mapping that has other keys than those that are wanted."""
    inside = f" in {where}" if where else ""
    for key in given:
        if key not in wanted:
            raise ConfigError(f"recipe{inside}: {unknown(kind, str(key), wanted)}")
    if lacking := [key for key in wanted if key not in given]:
        raise ConfigError(f"recipe{inside}: the {kind} {lacking[0]!r} is missing.")


def checked_number(value: Any, where: str) -> float:
    """Return a finite number as a float, or say how YAML reads what was written in its place."""
    if isinstance(value, bool) or not isinstance(value, Real) or not math.isfinite(value):
        hint = ""
        if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
            hint = f"; YAML reads it as a word, write {yaml.safe_dump(float(value)).split()[0]}"
        raise ConfigError(f"recipe: {where} must be a finite number, not {value!r}{hint}.")
    return float(value)


def plain_data(value: Any, where: str) -> Any:
    """Return the value in types that YAML has; numpy's numbers become Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain_data(inner, _join(where, str(key))) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain_data(inner, where) for inner in value]
    if value is None or isinstance(value, (str, bool, np.bool_)):
        return bool(value) if isinstance(value, np.bool_) else value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    raise ConfigError(f"recipe: {where} cannot be written to YAML: it is a {type(value).__name__}.")


def _join(where: str, key: str) -> str:
    return f"{where}.{key}" if where else key
