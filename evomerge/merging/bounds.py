"""How far a merge of packed task vectors may be from that of exact ones, certified.

In: rows as they are kept, each of which knows how far an element may be off, and weights. Out: for each group of
parameters, |θ̂ − θ| ≤ Σ_k |λ_k| · bound_k, before sums are rounded to float32 and to their dtype. It holds for methods
that are linear in their weights: one that compares elements may keep another one because of the smallest error.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.merging.method import Method
from evomerge.space.groups import Group
from evomerge.task_vectors.store import TaskVectors


def row_bounds(rows: TaskVectors, groups: Sequence[Group]) -> np.ndarray:
    """Return how far an element of each row may be off in each group, float64 (G, K)."""
    found = np.zeros((len(groups), len(rows.rows)))
    for g, group in enumerate(groups):
        for span in group.spans:
            for k, row in enumerate(rows.rows):
                if (delta := rows.delta(row, span.parameter)) is not None:
                    found[g, k] = max(found[g, k], delta[span.start : span.stop].bound)
    return found


def parameter_bounds(
    method: Method, rows: TaskVectors, groups: Sequence[Group], weights: np.ndarray
) -> np.ndarray | None:
    """Return how far a parameter of each group may be from that of the exact merge, float64 (G,); None where there is
    no bound.

    Args:
        method: that combines the rows.
        rows: as they are kept.
        groups: of the coefficient space.
        weights: (G, K).
    """
    return (np.abs(weights) * row_bounds(rows, groups)).sum(1) if method.linear else None
