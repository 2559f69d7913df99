"""Maps from amounts onto weights, group by group: of a given sum, or between -1 and 1.

In: amounts (G, K), which the affine map of a space gives. Out: their weights, and a gradient back through them. With s
for the sum, and n rows of a group that the point moves:

    Shares   w = s a / Σ a, of amounts from 0; where these sum to nothing, all n get the same
    Plane    w = a + (s - Σ a) / n, the nearest point with that sum; weights may be negative, as in the robust soups of
             Croce et al. (2023, arXiv 2302.10164)
    Tanh     w = tanh a (SuperMerge, Yang et al. 2024, arXiv 2412.10416)
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.common.errors import SpaceError
from evomerge.common.names import unknown
from evomerge.space.variable import Variable, weight_of

NOTHING = 1e-9
"""A sum of amounts that counts as 0, and how near to 1 a tangent may come."""
FAR = 0.99
"""How large a weight under a tangent may be, where a user gives no bounds."""
MAPS = ("tanh",)
"""What `space.map` may be."""


class Map(Protocol):
    """What makes weights of amounts; arrays are float64 (G, K), and `moved` says which entries a point moves."""

    def weights(self, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the weights of amounts."""
        ...

    def pulled_back(self, gradient: np.ndarray, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the gradient with respect to amounts from the one with respect to their weights."""
        ...

    def amounts(self, weights: np.ndarray, moved: np.ndarray, weight: Variable) -> np.ndarray:
        """Return amounts that have these weights, or the nearest that the map gives."""
        ...

    def constant(self, value: float, weight: Variable) -> float:
        """Return the amount of all rows that stands for the same weight everywhere."""
        ...

    def held(self, weights: np.ndarray) -> np.ndarray:
        """Return the amounts of weights at which a user holds them."""
        ...

    def box(self, weight: Variable) -> tuple[float, float]:
        """Return the bounds of amounts."""
        ...

    def said(self, amount: float) -> float:
        """Return what stands for an amount where bounds are told."""
        ...

    def largest(self, weight: Variable, rows: int) -> float:
        """Return how large a weight may be, without factors of ties."""
        ...


class _Summed:
    """What maps onto a sum have in common: bounds are those of amounts, and any constant is the same share for all."""

    def constant(self, value: float, weight: Variable) -> float:
        """Return the usual amount: all have the same share, whatever the constant."""
        return weight.start

    def held(self, weights: np.ndarray) -> np.ndarray:
        """Return 0, at which alone weights may be held."""
        return weights

    def box(self, weight: Variable) -> tuple[float, float]:
        """Return the bounds of the variable."""
        return weight.low, weight.high

    def said(self, amount: float) -> float:
        """Return the amount."""
        return float(amount)


@dataclass(frozen=True)
class Shares(_Summed):
    """Shares of a sum.

    Args:
        total: what the weights of a group sum to.
    """

    total: float

    def weights(self, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return amounts over their sum."""
        sums = amounts.sum(axis=1, keepdims=True)
        empty = np.abs(sums) < NOTHING
        return self.total * np.where(empty, moved / _number(moved), amounts / np.where(empty, 1, sums))

    def pulled_back(self, gradient: np.ndarray, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the gradient of shares; 0 where amounts sum to nothing."""
        sums = amounts.sum(axis=1, keepdims=True)
        empty = np.abs(sums) < NOTHING
        safe = np.where(empty, 1, sums)
        along = (gradient * amounts / safe).sum(axis=1, keepdims=True)
        return np.where(empty, 0, self.total / safe * (gradient - along))

    def amounts(self, weights: np.ndarray, moved: np.ndarray, weight: Variable) -> np.ndarray:
        """Return amounts as large as usual ones on average, and none above the bound."""
        sums, largest = weights.sum(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
        safe = np.where(sums < NOTHING, 1, sums)
        factor = np.minimum(weight.start * weights.shape[1] / safe, weight.high / np.where(largest > 0, largest, 1))
        return np.where(sums < NOTHING, weight.start, weights * factor)

    def largest(self, weight: Variable, rows: int) -> float:
        """Return the sum."""
        return self.total


@dataclass(frozen=True)
class Plane(_Summed):
    """The nearest weights with a sum, of both signs.

    Args:
        total: what the weights of a group sum to.
    """

    total: float

    def weights(self, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return amounts, moved by one number."""
        lacking = self.total - (amounts * moved).sum(axis=1, keepdims=True)
        return np.where(moved, amounts + lacking / _number(moved), 0.0)

    def pulled_back(self, gradient: np.ndarray, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the gradient without its mean."""
        return np.where(moved, gradient - (gradient * moved).sum(axis=1, keepdims=True) / _number(moved), 0.0)

    def amounts(self, weights: np.ndarray, moved: np.ndarray, weight: Variable) -> np.ndarray:
        """Return amounts as large as usual ones on average, or as near to that as the bounds allow."""
        nearest = self.weights(weights, moved)
        least = np.where(moved, nearest, np.inf).min(axis=1, keepdims=True)
        most = np.where(moved, nearest, -np.inf).max(axis=1, keepdims=True)
        usual = weight.start - self.total / _number(moved)
        shift = np.minimum(np.maximum(usual, weight.low - least), weight.high - most)
        return np.where(moved, nearest + np.where(np.isfinite(shift), shift, 0), 0.0)

    def largest(self, weight: Variable, rows: int) -> float:
        """Return what one at the upper bound gets where all others are at the lower, or one that is alone."""
        return max((weight.high - weight.low) * (rows - 1) / rows + self.total / rows, self.total)


@dataclass(frozen=True)
class Tanh:
    """Weights between -1 and 1; bounds are those of weights."""

    def weights(self, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return their tangents."""
        return np.tanh(amounts)

    def pulled_back(self, gradient: np.ndarray, amounts: np.ndarray, moved: np.ndarray) -> np.ndarray:
        """Return the gradient times the slope."""
        return gradient * (1 - np.tanh(amounts) ** 2)

    def amounts(self, weights: np.ndarray, moved: np.ndarray, weight: Variable) -> np.ndarray:
        """Return the inverse."""
        return self.held(weights)

    def constant(self, value: float, weight: Variable) -> float:
        """Return the inverse."""
        return float(self.held(np.array(value)))

    def held(self, weights: np.ndarray) -> np.ndarray:
        """Return the inverse, of the nearest below 1 and above -1."""
        return np.arctanh(np.clip(weights, NOTHING - 1, 1 - NOTHING))

    def box(self, weight: Variable) -> tuple[float, float]:
        """Return the bounds of the variable as amounts."""
        return self.constant(weight.low, weight), self.constant(weight.high, weight)

    def said(self, amount: float) -> float:
        """Return the weight."""
        return float(np.tanh(amount))

    def largest(self, weight: Variable, rows: int) -> float:
        """Return the larger bound."""
        return max(abs(weight.low), abs(weight.high))


def make_map(
    total: float | None,
    name: str | None,
    weight: Variable,
    sharing: str,
    held: Mapping[str, float],
    factors: Collection[float],
) -> Map | None:
    """Return the map that settings ask for; None where amounts are the weights.

    Args:
        total: what the weights of a group sum to; None for anything.
        name: of another map; None for none.
        weight: the variable, with its bounds.
        sharing: of the space.
        held: entry name -> the value at which it is held.
        factors: of the ties of weights.

    Raises:
        SpaceError: the sum, or the map, means nothing here.
    """
    kept = {entry: value for entry, value in held.items() if value and entry.startswith("weight/")}
    if name is not None:
        return _other(total, name, weight)
    if total is None:
        return None
    if not 0 < total < np.inf:
        raise SpaceError(f"sum: weights cannot sum to {total:g}: write a number above 0, such as space.sum=1.")
    if kept or sharing == "shared":
        entry = next(iter(kept), "")
        what = f"{entry} is held at {kept[entry]:g}" if kept else "all experts share one weight"
        raise SpaceError(
            f"sum: weights that sum to {total:g} are made of all that is searched in a group, and {what}: leave out "
            f"space.sum, or hold weights at 0 alone, and let experts have weights of their own."
        )
    if weight.low >= 0 and any(factor < 0 for factor in factors):
        raise SpaceError(
            "sum: weights are shares of amounts, and a share of amounts below 0 has no bound: write factors above 0 in "
            "space.tied, or leave out space.sum."
        )
    if weight.low < 0 and any(factor != 1 for factor in factors):
        raise SpaceError(
            "sum: with bounds below 0, all weights of a group are moved by one number until they have their sum, so no "
            "factor in space.tied would hold: write names alone there, or space.bounds={weight: [0, 1.5]}."
        )
    return Shares(total) if weight.low >= 0 else Plane(total)


def usual_bounds(name: str | None, variables: Sequence[Variable]) -> dict[str, tuple[float, float]]:
    """Return the bounds that a map has where a user gives none: those of the weight, as far as it reaches."""
    if name is None:
        return {}
    weight = weight_of(variables)
    return {weight.name: (max(weight.low, -FAR), min(weight.high, FAR))}


def _other(total: float | None, name: str, weight: Variable) -> Map:
    if name not in MAPS:
        raise SpaceError(f"map: {unknown('map', name, MAPS)}")
    if total is not None:
        raise SpaceError(f"map: {name} gives weights any sum, and space.sum={total:g}: leave one of them out.")
    if not -1 < weight.low < weight.high < 1:
        raise SpaceError(
            f"map: {name} gives weights between -1 and 1, and their bounds are [{weight.low:g}, {weight.high:g}]: "
            f"write space.bounds={{weight: [-0.95, 0.95]}}, or other numbers between."
        )
    return Tanh()


def _number(moved: np.ndarray) -> np.ndarray:
    """Return how many rows of each group a point moves, (G, 1), and 1 where it moves none."""
    return np.maximum(moved.sum(axis=1, keepdims=True), 1)
