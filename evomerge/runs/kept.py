"""What preflight says of packed task vectors: their bytes, and how far candidates may be from those of exact ones.

In: a problem. Out: a line of text; nothing where task vectors keep every bit.
"""

from __future__ import annotations

import numpy as np

from evomerge.merging.bounds import parameter_bounds, row_bounds
from evomerge.problem import Problem
from evomerge.task_vectors.stores import FLOAT32

GIB = 2**30


def store_text(problem: Problem) -> str | None:
    """Return how task vectors are kept and what that changes at most, at the bounds of the space."""
    if problem.opening.kept_as == FLOAT32:
        return None
    rows, space = problem.rows, problem.space
    wide = sum(4 * len(delta) for held in rows.deltas.values() for delta in held.values())
    text = (
        f"{problem.opening.store}: {rows.nbytes / GIB:.2f} GiB where float32 takes {wide / GIB:.2f}; an element of a "
        f"task vector is off by {row_bounds(rows, space.groups).max():.2g} at most"
    )
    weight = space.weight
    held = [value for name, value in space.frozen.items() if name.startswith("weight/")]
    largest = max(map(abs, (weight.low, weight.high, *held)))
    if space.onto:
        largest = space.onto.largest(weight, len(space.rows))
    weights = largest * np.maximum(np.abs(space.scales["weight"]), 1)
    found = parameter_bounds(problem.method, rows, space.groups, weights)
    if found is None:
        return f"{text}; a parameter has no bound, since the method {problem.method.name} compares elements"
    return f"{text}, a parameter by {found.max():.2g} with weights up to {weights.max():g}"
