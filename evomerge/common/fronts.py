"""Fronts: which of several models, each with several values, no other one beats.

In: values (n, m), all to be maximised, and violations of constraints (n, c). Out: the front, ranks, crowding distances.
One dominates another if it is at least as good in every value and better in one. Where there are constraints, what
holds them all dominates what does not, and of two that do not, the one that violates them less in all dominates (Deb et
al. 2002, A Fast and Elitist Multiobjective Genetic Algorithm: NSGA-II, sections III.B and VI.A).
"""

from __future__ import annotations

import numpy as np


def excess(violations: np.ndarray) -> np.ndarray:
    """Return how much constraints are violated together, (n,): the sum of what is positive; 0 where all hold.

    Args:
        violations: (n, c), not positive where a constraint holds.
    """
    return np.maximum(violations, 0.0).sum(axis=1)


def ranks(values: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Return the rank of each model, int (n,): 0 on the front, 1 on what would be the front without those, and so on.

    A model without a finite number for each value and violation, as one that failed, comes after all that have them.

    Args:
        values: (n, m).
        violations: (n, c); None where there are no constraints.
    """
    over = _dominates(*_known(values, violations))
    left, found = np.ones(len(over), dtype=bool), np.zeros(len(over), dtype=int)
    rank = 0
    while left.any():
        now = left & ~over[left].any(axis=0)
        found[now], left = rank, left & ~now
        rank += 1
    return found


def on_front(values: np.ndarray, violations: np.ndarray | None = None) -> np.ndarray:
    """Return which models no other one dominates, bool (n,); equals are on it together, what failed is not.

    Args:
        values: (n, m).
        violations: (n, c); None where there are no constraints.
    """
    known, amounts = _known(values, violations)
    return ~_dominates(known, amounts).any(axis=0) & np.isfinite(amounts)


def crowding(values: np.ndarray) -> np.ndarray:
    """Return how far apart the neighbours of each model lie, (n,): the sum over the values of the distance between them
    as a share of the range; infinite for the ends of a value (Deb et al. 2002, section III.B).

    Args:
        values: (n, m), of one front, all finite.
    """
    found = np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]] if len(order) else 0.0
        if spread > 0:
            found[order[[0, -1]]] = np.inf
            found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return found if found.any() or len(values) == 0 else np.full(len(values), np.inf)


def scaled(values: np.ndarray) -> np.ndarray:
    """Return values from 0, the worst of the models in a value, to 1, the best one, (n, m); 0 where all are equal.

    Args:
        values: (n, m), all finite, at least one row.
    """
    low, spread = values.min(axis=0), np.ptp(values, axis=0)
    return np.divide(values - low, spread, out=np.zeros_like(values, dtype=np.float64), where=spread > 0)


def _known(values: np.ndarray, violations: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
    """Return the values, and how much each model violates: infinitely, where a number of its own is not known."""
    values = np.asarray(values, dtype=np.float64)
    given = np.zeros((len(values), 0)) if violations is None else np.asarray(violations, dtype=np.float64)
    whole = np.all(np.isfinite(np.hstack([values, given])), axis=1)
    amounts = np.full(len(values), np.inf)
    amounts[whole] = excess(given[whole])
    return np.where(np.isfinite(values), values, 0.0), amounts


def _dominates(values: np.ndarray, amounts: np.ndarray) -> np.ndarray:
    """Return for each pair whether the first dominates the second, bool (n, n)."""
    pairs = values[:, None, :], values[None, :, :]
    better = np.all(pairs[0] >= pairs[1], axis=2) & np.any(pairs[0] > pairs[1], axis=2)
    one, other = amounts[:, None], amounts[None, :]
    return (one < other) | ((one == other) & (one == 0) & better)
