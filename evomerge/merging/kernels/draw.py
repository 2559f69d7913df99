"""The random number of an element for compiled kernels, to the bit that of `task_vectors/draws.py`, which says more."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(inline="always")
def draw(place, key, other):
    """Return 32 random bits of the element at a place of its parameter; u is the upper 24 of them times 2⁻²⁴.

    Args:
        place: the lower 32 bits of the place, uint32.
        key: the first key, uint32, with the upper bits of the place in it (`draws.folded`).
        other: the second key, uint32.
    """
    return _mixed(np.uint32(_mixed(np.uint32(place ^ key)) + other))


@numba.njit(inline="always")
def _mixed(word):
    word = np.uint32(word ^ (word >> np.uint32(16)))
    word = np.uint32(word * np.uint32(0x21F0AAAD))
    word = np.uint32(word ^ (word >> np.uint32(15)))
    word = np.uint32(word * np.uint32(0xD35A2D97))
    return np.uint32(word ^ (word >> np.uint32(15)))
