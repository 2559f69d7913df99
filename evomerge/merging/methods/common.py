"""What the files of methods share: the variables that coefficients have, the numbers made of them, and checks.

In: sites and the coefficients of a candidate. Out: weights and divisors, float32, by site; and the joins of `Form`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch

from evomerge.common.errors import ConfigError
from evomerge.merging.kernels.form import Join
from evomerge.merging.sites import Together
from evomerge.space.variable import Variable

WEIGHT = Variable("weight", 0.0, 1.5, 0.4)
DENSITY = Variable("density", 0.0, 1.0, 0.5, share=True)
SHARE = Variable("weight", 0.0, 1.0, 0.5)
"""A share of the whole: the overall scale of the weights means nothing."""
SLIGHT = 1e-8
"""A sum of weights, or a norm, below which mergekit divides by 1."""

Elect = Literal["sum", "count"]


def weights(together: Together, coefficients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the weights of each site's rows, float32 (S, R)."""
    return coefficients["weight"][together.places].astype(np.float32)


def divisor(together: Together, coefficients: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return the sum of the weights of all rows by site, those with a zero delta there included; 1 for next to none.

    In float32, as mergekit adds them, since it is a quotient of what may nearly cancel.
    """
    weights = torch.tensor(coefficients["weight"], dtype=torch.float32)
    total = torch.cat([row[:, None].sum(dim=0) for row in weights]).numpy()
    return np.where(np.abs(total) < SLIGHT, np.float32(1), total)[together.places[0][:, 0]]


def join(elect: Elect | None) -> Join:
    """Return how rows are joined: summed, after an election of signs or without one."""
    joins: dict[Elect | None, Join] = {"sum": "elect", "count": "count", None: "sum"}
    return joins[elect]


def scaling(value: object) -> float:
    """Return the setting `scale` as float32 has it.

    Raises:
        ConfigError: it is no finite number.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= np.finfo(np.float32).max:
        raise ConfigError(f"method.scale={value} is no finite number: write one, such as 1.0 for no scale.")
    return float(np.float32(value))


def check(name: str, value: object, known: tuple[object, ...]) -> None:
    """Refuse a setting that is none of those known.

    Raises:
        ConfigError: it is not.
    """
    if value not in known:
        listed = ", ".join("null" if one is None else str(one) for one in known)
        raise ConfigError(f"method.{name}={value} is not known: write one of {listed}.")


def check_share(name: str, value: float) -> None:
    """Refuse a setting that is no number from 0, below 1.

    Raises:
        ConfigError: it is not.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1:
        raise ConfigError(f"method.{name}={value} is no share: write a number from 0, below 1.")
