"""What a setting of mergekit's YAML is for one tensor: filters, gradients over layers, and which setting counts.

In: settings in the order in which they count, the nearest first; the names of a tensor, and where its layer lies in its
slice. Out: a number or a truth value; None where nothing is said. This is mergekit 0.1.5's rule: a filter is any part
of a name, the first that fits wins, and a list of numbers is interpolated along the layers of a slice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from evomerge.recipes.mergekit.document import Settings
from evomerge.recipes.mergekit.nodes import Node

TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
FILTERED = ("filter", "value")


def resolve(
    name: str, scopes: Iterable[Settings], names: Sequence[str], t: float, kind: Callable[[Node], Any]
) -> tuple[Any, Node] | None:
    """Return what counts for a tensor, and the node that says so.

    Args:
        name: of the setting.
        scopes: where it may stand, the nearest first.
        names: all names that mergekit may know the tensor by.
        t: where its layer lies in its slice, 0 to 1.
        kind: reads a scalar: `number` or `flag`.

    Raises:
        ConfigError: it depends on which of the names mergekit takes, or is of the wrong kind.
    """
    for scope in scopes:
        if (node := scope.get(name)) is None:
            continue
        found = [evaluate(node, one, t, kind) for one in names]
        if any(value != found[0] for value in found):
            raise node.error(
                f"the filters of {name} give the tensor {names[0]} another value than its other name {names[-1]}, and "
                f"mergekit may know it by either: write filters that fit both"
            )
        if found[0] is not None:
            return found[0], node
    return None


def evaluate(node: Node, name: str, t: float, kind: Callable[[Node], Any]) -> Any:
    """Return what a setting is for a name; None if no filter fits.

    Args:
        node: the setting.
        name: of the tensor.
        t: where its layer lies in its slice.
        kind: reads a scalar.

    Raises:
        ConfigError: it is of the wrong kind.
    """
    if isinstance(node.value, dict):
        return _filtered([node], name, t, kind)
    if not isinstance(node.value, list):
        return kind(node)
    if any(isinstance(one.value, dict) for one in node.value):
        return _filtered(node.value, name, t, kind)
    return _along([kind(one) for one in node.value], t) if node.value else None


def number(node: Node) -> float:
    """Return a number; YAML 1.1 takes 1e-3 for a word, and mergekit reads it."""
    try:
        return float(node.value)
    except (TypeError, ValueError):
        raise node.error(f"there must be a number, not {node.plain()!r}") from None


def flag(node: Node) -> bool:
    """Return a truth value."""
    if (known := TRUTHS.get(str(node.value).lower())) is None:
        raise node.error(f"there must be true or false, not {node.plain()!r}")
    return known


def _filtered(conditions: Sequence[Node], name: str, t: float, kind: Callable[[Node], Any]) -> Any:
    for one in conditions:
        if other := next((key for key in one.items if key not in FILTERED), None):
            raise one.error(f"{other} stands where only filter and value can")
        wanted, value = one.get("filter"), one.get("value")
        if value is None:
            raise one.error("a filter without a value")
        if wanted is None or wanted.text() == "*" or wanted.text() in name:
            return evaluate(value, name, t, kind)
    return None


def _along(values: Sequence[Any], t: float) -> Any:
    """Interpolate numbers; of truth values take the one before."""
    place = t * (len(values) - 1)
    first = int(place)
    if any(isinstance(value, bool) for value in values):
        return values[first]
    share = place - first
    return (1 - share) * values[first] + share * values[min(len(values) - 1, first + 1)]
