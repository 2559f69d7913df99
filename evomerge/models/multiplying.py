"""The compiled loop that multiplies factors out (`factors.py` says in which order)."""

from __future__ import annotations

import numba
import numpy as np


@numba.njit(nogil=True, cache=True)
def multiply(left, right, scale, out):
    """Write s·B·A: each product is rounded before it is added, in the order of the ranks.

    Args:
        left: B, float32 (m, r).
        right: A, float32 (r, n).
        scale: s, float32.
        out: where to write, float32 (m, n).
    """
    rank = left.shape[1]
    for i in range(left.shape[0]):
        row, b = out[i], left[i]
        for c in range(len(row)):
            row[c] = np.float32(0)
        for j in range(0, rank - rank % 4, 4):  # four at a time: a row is read and written less often
            a0, a1, a2, a3 = right[j], right[j + 1], right[j + 2], right[j + 3]
            b0, b1, b2, b3 = b[j], b[j + 1], b[j + 2], b[j + 3]
            for c in range(len(row)):
                row[c] = (((row[c] + b0 * a0[c]) + b1 * a1[c]) + b2 * a2[c]) + b3 * a3[c]
        for j in range(rank - rank % 4, rank):
            a0, b0 = right[j], b[j]
            for c in range(len(row)):
                row[c] += b0 * a0[c]
        for c in range(len(row)):
            row[c] *= scale
