"""The parts of a space's affine map: how coordinates of groups, experts and depth become coefficients.

In: groups, rows, and what patterns hold and tie. Out: sparse matrices from coordinates to coefficients, (G * K, ...).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np
from scipy import sparse

from evomerge.space.groups import Group


def affine_basis(
    groups: Sequence[Group], rows: Sequence[str], line: bool, sharing: str, dead: np.ndarray
) -> tuple[sparse.csr_array, list[str]]:
    """Return the map of one variable before any pattern, (G * K, coordinates), and the names of its coordinates."""
    places, place_shares = [group.name for group in groups], sparse.eye_array(len(groups))
    if line:
        depths = np.array([group.depth or 0.0 for group in groups])
        places, place_shares = ["shallow", "deep"], np.stack([1.0 - depths, depths], axis=1)
    owners, owner_shares = (["*"], np.ones((len(rows), 1))) if sharing == "shared" else (rows, np.eye(len(rows)))
    basis = sparse.csr_array(sparse.kron(sparse.csr_array(place_shares), owner_shares))
    basis = sparse.csr_array(sparse.diags_array((~dead).ravel().astype(np.float64)) @ basis)
    basis.eliminate_zeros()
    return basis, [f"{place}/{owner}" for place in places for owner in owners]


def chosen(
    entries: Sequence[str], free: Mapping[str, tuple[str, float]], names: Sequence[str], held: Mapping[str, float]
) -> tuple[sparse.csr_array, np.ndarray]:
    """Return which coordinate moves each entry of a variable, (entries, dim), and at what the others are held."""
    column = {name: i for i, name in enumerate(names)}
    rows = [i for i, entry in enumerate(entries) if entry in free]
    columns, factors = [column[free[entries[i]][0]] for i in rows], [free[entries[i]][1] for i in rows]
    choice = sparse.csr_array((np.array(factors), (rows, columns)), shape=(len(entries), len(names)))
    return choice, np.array([held.get(entry, 0.0) for entry in entries])


def dead_entries(
    groups: Sequence[Group], rows: Sequence[str], zero: Collection[tuple[str, str]], sharing: str
) -> np.ndarray:
    """Return which entries have no task vector to multiply, bool (G, K)."""
    dead = np.array([[all((k, span.parameter) in zero for span in g.spans) for k in rows] for g in groups])
    return np.broadcast_to(dead.all(axis=1, keepdims=True), dead.shape) if sharing == "shared" else dead
