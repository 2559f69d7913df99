"""What a method has of each (group, row): a variable, of which the coefficients are searched."""

from dataclasses import dataclass


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
