"""Which of several points are better where each has several values: domination under constraints, fronts, crowding.

In: values, (n, m), all to be maximised, and how far each point violates its constraints, (n,), nothing where it holds
them. Out: the front to which each point belongs, and how alone it is there. The rules are those of NSGA-II (Deb et al.
2002, A fast and elitist multiobjective genetic algorithm): a point that holds all constraints dominates one that does
not, of two that do not the one that lacks less, and of two that do the one that is nowhere worse and somewhere better.
A point without values, such as one that failed, has -inf in all of them and violates by inf.
"""

from __future__ import annotations

import numpy as np


def dominates(values: np.ndarray, violated: np.ndarray) -> np.ndarray:
    """Return whether one point dominates another, bool (n, n): by row the one, by column the other.

    Args:
        values: (n, m), to be maximised.
        violated: (n,), 0 where all constraints hold.
    """
    one, other = values[:, None], values[None, :]
    better = (one >= other).all(-1) & (one > other).any(-1)
    holds, lacks = violated <= 0, violated[:, None] < violated[None, :]
    both = holds[:, None] & holds[None, :]
    return np.where(both, better, lacks & ~holds[None, :])


def ranks(values: np.ndarray, violated: np.ndarray) -> np.ndarray:
    """Return the front of each point, int (n,): 0 for those that no other one dominates, 1 for those that only these
    dominate, and so on.
    """
    above, found = dominates(values, violated), np.full(len(values), -1)
    for front in range(len(values)):
        left = found < 0
        if not left.any():
            break
        found[left & ~above[left].any(axis=0)] = front
    return found


def crowding(values: np.ndarray) -> np.ndarray:
    """Return how far the neighbours of each point of a front lie apart, (n,), summed over the values, each in shares of
    its range; inf for the ends of each value (Deb et al. 2002, section III B).
    """
    n, found = len(values), np.zeros(len(values))
    for column in values.T:
        order = np.argsort(column, kind="stable")
        spread = column[order[-1]] - column[order[0]] if n else 0.0
        if not spread > 0:
            continue
        found[order[[0, -1]]] = np.inf
        found[order[1:-1]] += (column[order[2:]] - column[order[:-2]]) / spread
    return found


def thinned(values: np.ndarray, count: int) -> list[int]:
    """Return the places of so many points of a front that lie well apart: the most crowded one goes first, and the
    distances are taken anew. Of equally crowded ones the later goes.
    """
    kept = list(range(len(values)))
    while len(kept) > max(count, 0):
        apart = crowding(values[kept])
        kept.pop(len(kept) - 1 - int(np.argmin(apart[::-1])))
    return kept
