"""What version 0.2 wrote, as this version says it: settings of a run directory, and identities in the header of a log.

In: the plain containers of a `config.yaml`, or of a header. Out: the same in today's words, so that a run of 0.2 is
reported, exported, evaluated and resumed as the search that it is. Two things have changed: classes lie in other
modules, and a transform stands beside the method, no longer in it. What is in today's words already stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

MOVED = {
    "evomerge.methods": "evomerge.merging.methods",
    "evomerge.fitness.lm_eval": "evomerge.fitness.lm_eval.harness",
}
"""Modules of classes that settings name."""


def in_todays_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, or an identity as a log's header has it, in today's words.

    Args:
        given: plain containers, of any version from 0.2.
    """
    return _lifted(_renamed(given))


def _renamed(node: Any) -> Any:
    """Return the same with every class under its new module."""
    if isinstance(node, Mapping):
        return {name: _class(value) if name == "_target_" else _renamed(value) for name, value in node.items()}
    return [_renamed(value) for value in node] if isinstance(node, list) else node


def _class(target: str) -> str:
    module, _, name = str(target).rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def _lifted(node: dict[str, Any]) -> dict[str, Any]:
    """Return the same with the transform beside the method."""
    method = node.get("method")
    if not isinstance(method, Mapping) or "transform" not in method:
        return node
    own = {name: value for name, value in method.items() if name != "transform"}
    chain = [method["transform"]] if method["transform"] else []
    return {**node, "method": own, **({"transform": chain} if chain else {})}
