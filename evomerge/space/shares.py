"""The map onto weights that sum to a number: amounts of the rows in, their shares of that number out.

In: amounts (G, K), which the affine map of a space gives. Out: weights w = s a / Σ a, of each group, and a gradient
back through them. Where amounts sum to nothing, all rows that have a task vector there get the same.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from evomerge.common.errors import SpaceError

NOTHING = 1e-9
"""A sum of amounts that counts as 0."""


def shared_out(amounts: np.ndarray, total: float, there: np.ndarray) -> np.ndarray:
    """Return the weights of amounts, (G, K).

    Args:
        amounts: (G, K).
        total: what the weights of a group sum to.
        there: which rows have a task vector in the group, bool (G, K).
    """
    sums = amounts.sum(axis=1, keepdims=True)
    empty = np.abs(sums) < NOTHING
    even = there / np.maximum(there.sum(axis=1, keepdims=True), 1)
    return total * np.where(empty, even, amounts / np.where(empty, 1, sums))


def pulled_back(gradient: np.ndarray, amounts: np.ndarray, total: float) -> np.ndarray:
    """Return the gradient with respect to amounts from the one with respect to their weights, (G, K)."""
    sums = amounts.sum(axis=1, keepdims=True)
    empty = np.abs(sums) < NOTHING
    safe = np.where(empty, 1, sums)
    along = (gradient * amounts / safe).sum(axis=1, keepdims=True)
    return np.where(empty, 0, total / safe * (gradient - along))


def amounts_of(weights: np.ndarray, usual: float, high: float) -> np.ndarray:
    """Return amounts that have these weights, (G, K): as large as usual ones on average, and none above the bound.

    Args:
        weights: of any sum, (G, K).
        usual: the amount of each row where all have the same weight.
        high: the largest amount.
    """
    sums, largest = weights.sum(axis=1, keepdims=True), weights.max(axis=1, keepdims=True)
    safe = np.where(sums < NOTHING, 1, sums)
    factor = np.minimum(usual * weights.shape[1] / safe, high / np.where(largest > 0, largest, 1))
    return np.where(sums < NOTHING, usual, weights * factor)


def check_total(total: float | None, sharing: str, held: Mapping[str, float], below: bool) -> None:
    """Refuse a sum that means nothing, and weights that are no shares of it.

    Args:
        total: what the weights of a group sum to; None for anything.
        sharing: of the space.
        held: entry name -> the value at which it is held.
        below: whether amounts may be below 0. Then their sum may be nearly nothing, and no bound holds for a weight.

    Raises:
        SpaceError: there is one.
    """
    if total is None:
        return
    if not 0 < total < np.inf:
        raise SpaceError(f"sum: weights cannot sum to {total:g}: write a number above 0, such as space.sum=1.")
    if below:
        raise SpaceError(
            "sum: weights are shares of amounts, and a share of amounts below 0 has no bound: write space.bounds="
            "{weight: [0, 1.5]}, and factors above 0 in space.tied; or leave out space.sum."
        )
    kept = [name for name, value in held.items() if value and name.startswith("weight/")]
    if kept or sharing == "shared":
        what = f"{kept[0]} is held at {held[kept[0]]:g}" if kept else "all experts share one weight"
        raise SpaceError(
            f"sum: weights that sum to {total:g} are shares of what is searched, and {what}: leave out space.sum, or "
            f"hold weights at 0 alone, and let experts have weights of their own."
        )
