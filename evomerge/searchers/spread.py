"""Points that fill a box, for searchers that begin with many.

In: a space, a start point and a seed. Out: a Latin hypercube (McKay et al. 1979), of all coordinates or of the experts:
each expert then has one weight of its own over the whole model. Merges that favour one task or another differ first of
all in how much each expert weighs; drawn for each coordinate by itself, that averages out.
"""

from __future__ import annotations

from collections.abc import Hashable

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.searchers.base import inside
from evomerge.space.coefficients import CoefficientSpace

EXPERTS, START = "experts", "start"
FIRST = (EXPERTS, START)
"""What the first generation of a population is: one weight for each expert, or points around the start."""


def check_first(first: str) -> None:
    """Refuse an unknown kind of first generation.

    Raises:
        ConfigError: it is none of `FIRST`.
    """
    if first not in FIRST:
        raise ConfigError(f"searcher.first: {unknown('choice', first, FIRST)}")


def hypercube(rng: np.random.Generator, count: int, dim: int) -> np.ndarray:
    """Return a Latin hypercube in the unit box, (count, dim)."""
    strata = np.array([rng.permutation(count) for _ in range(dim)]).T
    return (strata + rng.random((count, dim))) / count


def by_expert(space: CoefficientSpace, start: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Return the start, and points that fill the box of the experts' weights, (count, dim): in each of them, all
    coordinates of one variable and one expert stand at the same share of their ranges. Those of several experts
    stand together, too.

    Args:
        space: the coefficient space.
        start: the first point, (dim,).
        count: how many points.
        seed: any integer from 0.

    Raises:
        ConfigError: the start lies outside the bounds.
    """
    owners = _owners(space)
    drawn = hypercube(np.random.default_rng([seed, 0]), count - 1, int(owners.max()) + 1)
    points = space.low + drawn[:, owners] * (space.high - space.low)
    return np.concatenate([[inside(space, start)], points])


def _owners(space: CoefficientSpace) -> np.ndarray:
    """Return for each coordinate the number of its variable and expert, (dim,), from 0."""
    keys = dict[int, Hashable]()
    for name, matrix in space.matrices.items():
        entries = matrix.tocoo()
        for place, column in zip(entries.row.tolist(), entries.col.tolist(), strict=True):
            row = place % len(space.rows)
            keys[column] = (name, row) if keys.get(column, (name, row)) == (name, row) else (name, None)
    numbers = {key: i for i, key in enumerate(dict.fromkeys(keys[i] for i in range(space.dim)))}
    return np.array([numbers[keys[i]] for i in range(space.dim)])
