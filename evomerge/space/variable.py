"""What a method has of each (group, row): a variable, of which the coefficients are searched."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from evomerge.common.errors import SpaceError
from evomerge.common.names import unknown


@dataclass(frozen=True)
class Variable:
    """A number that a method has for each (group, row), such as weight or density, with its box and start value.

    A share has no value outside of 0 to 1, whatever bounds a user writes.
    """

    name: str
    low: float
    high: float
    start: float
    share: bool = False


def weight_of(variables: Sequence[Variable]) -> Variable:
    """Return the variable that every method has."""
    return next(variable for variable in variables if variable.name == "weight")


def distinct(names: Sequence[str], kind: str) -> list[str]:
    """Return names, each of which must be there once.

    Raises:
        SpaceError: there are none, or one occurs twice.
    """
    if not names:
        raise SpaceError(f"A coefficient space needs at least one {kind}.")
    if twice := [name for name in dict.fromkeys(names) if list(names).count(name) > 1]:
        raise SpaceError(f"Every {kind} needs a name of its own, but {', '.join(twice)} occurs more than once.")
    return list(names)


def bounded(variables: Sequence[Variable], bounds: Mapping[str, tuple[float, float]]) -> list[Variable]:
    """Return the variables with the user's bounds in place of their own, the start moved inside.

    Raises:
        SpaceError: there is no such variable, or bounds mean nothing.
    """
    own = {name: v for name, v in zip(distinct([v.name for v in variables], "variable"), variables, strict=True)}
    for name, (low, high) in bounds.items():
        if name not in own:
            raise SpaceError(unknown("variable", name, own))
        own[name] = replace(own[name], low=float(low), high=float(high))
    for name, v in own.items():
        if not -math.inf < v.low < v.high < math.inf:
            raise SpaceError(f"The bounds of {name} are [{v.low}, {v.high}]; write a lower and a higher finite number.")
        if v.share and not 0 <= v.low < v.high <= 1:
            raise SpaceError(
                f"The bounds of {name} are [{v.low}, {v.high}], and it is a share: write two numbers from 0 to 1."
            )
        own[name] = replace(v, start=min(max(v.start, v.low), v.high))
    return list(own.values())
