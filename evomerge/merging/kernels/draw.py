"""The random number of an element for compiled kernels, to the bit that of `task_vectors/draws.py`, which says more."""

from __future__ import annotations

import numba
import numpy as np

LOW = np.uint32(0xFF)
"""The bits of a random number that u has not."""


@numba.njit(inline="always")
def draw(place, key, other):
    """Return 32 random bits of the element at a place of its parameter; u is the upper 24 of them times 2⁻²⁴.

    Args:
        place: the lower 32 bits of the place, uint32.
        key: the first key, uint32, with the upper bits of the place in it (`draws.folded`).
        other: the second key, uint32.
    """
    return mixed(place ^ with_high(place, key), other)


@numba.njit(inline="always")
def with_high(place, key):
    """Return the first key with what a place adds to it in the first step: the same for all with its upper 16 bits."""
    return np.uint32(key ^ np.uint32(np.uint32(place ^ key) >> np.uint32(16)))


@numba.njit(inline="always")
def mixed(word, other):
    """Return the random bits of the element at a place: `word` is that place ^ `with_high`."""
    word = np.uint32(_rest(np.uint32(word)) + other)
    return _rest(np.uint32(word ^ (word >> np.uint32(16))))


@numba.njit
def limit(density):
    """Return the number up to which random bits, with `LOW` set, have u < density: below `LOW`, none has."""
    steps = np.ceil(np.float64(density) * 16777216.0)
    return np.uint32(0) if steps < 1 else np.uint32(np.int64(min(steps, 16777216.0)) * 256 - 1)


@numba.njit(inline="always")
def _rest(word):
    word = np.uint32(word * np.uint32(0x21F0AAAD))
    word = np.uint32(word ^ (word >> np.uint32(15)))
    word = np.uint32(word * np.uint32(0xD35A2D97))
    return np.uint32(word ^ (word >> np.uint32(15)))
