"""A regression that ranks points by what is known of others: the mean of a Gaussian process (Rasmussen and Williams
2006, equations 2.23 and 2.30).

In: points and values, and in which generation each was scored. Out: what other points are expected to reach, up to
scale. Only ranks of values count, so that one very bad point changes little. Length scale, noise, and whether each
generation has an offset of its own (as where its items are other ones) are the likeliest of a few: a search has too few
points to fit more.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np
from scipy.linalg import LinAlgError, cho_factor, cho_solve
from scipy.spatial.distance import cdist
from scipy.special import ndtri
from scipy.stats import rankdata

SCALES, NOISES, OFFSETS = (1.0, 4.0), (0.01, 0.1, 0.5, 2.0), (0.0, 1.0)
"""What is tried: squared length scales as multiples of the median squared distance of two points; and variances of the
noise and of the offsets of generations beside that of the function."""


def fitted(
    points: np.ndarray, values: np.ndarray, generations: np.ndarray
) -> Callable[[np.ndarray], np.ndarray] | None:
    """Return what says what other points, (m, dim), are expected to reach, (m,); None where nothing is known of that.

    Args:
        points: float64, (n, dim), each coordinate in the same units.
        values: (n,); -inf for points that failed.
        generations: (n,) of the points.
    """
    squares = cdist(points, points, "sqeuclidean")
    apart = squares[squares > 0]
    if not apart.size or (values == values[0]).all():
        return None
    scores, together = ndtri((rankdata(values) - 0.5) / len(values)), generations[:, None] == generations
    best, found = math.inf, None
    for scale, noise, offset in itertools.product(SCALES, NOISES, OFFSETS):
        width = scale * float(np.median(apart))
        covariance = np.exp(-squares / width) + offset * together
        covariance[np.diag_indices_from(covariance)] += noise
        try:
            factor = cho_factor(covariance, lower=True)
        except LinAlgError:  # points that are nearly the same
            continue
        weights = cho_solve(factor, scores)
        unlikely = len(scores) * math.log(scores @ weights) / 2 + np.log(np.diag(factor[0])).sum()
        if unlikely < best:
            best, found = unlikely, (width, weights)
    if found is None:
        return None
    width, weights = found
    return lambda others: np.exp(-cdist(others, points, "sqeuclidean") / width) @ weights
