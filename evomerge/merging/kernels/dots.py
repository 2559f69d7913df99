"""The compiled kernel of `products.py`: inner products of a gradient with all rows of all spans of its parameter.

In: addresses, as `products.py` lays them out. Out: a sum for each piece and row. Gradient and base are read once, a
segment at a time, which then waits in the processor's nearest cache for the rows; each row is read as it is kept. A
segment is summed in float32, in the lanes of the processor, and segments are added up in float64, one after the other:
the same bits whatever the kind of a row, whichever thread takes a piece, and wherever in memory anything lies.

numba compiles it, and keeps what it compiled beside this file or in the user's cache.
"""

# pyright: reportCallIssue=false, reportPrivateImportUsage=false
# numba gives intrinsics their first argument itself
from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import carray, types
from numba.core import cgutils
from numba.extending import intrinsic

SEGMENT = 2048
GROUP, HALF, WORD = 64, 32, 32
FLOAT32, BFLOAT16 = 0, 1  # float16 is 2; experts are 3 more
EXPERT, INT8 = 3, 6
_EXPONENTS = np.float32(2.0**112)  # what the exponents of float16 and float32 are apart


@intrinsic
def pointer(context, address):
    """Return an address, an integer, as a pointer for `numba.carray`."""

    def generate(context, builder, signature, arguments):
        return builder.inttoptr(arguments[0], cgutils.voidptr_t)

    return types.voidptr(address), generate


@intrinsic
def as_float(context, bits):
    """Return the float32 that has these bits, uint32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), generate


@intrinsic
def as_bits(context, number):
    """Return the bits of a float32, uint32."""

    def generate(context, builder, signature, arguments):
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), generate


@numba.njit
def from_bfloat16(bits):
    """Return the float32 of the bits of a bfloat16."""
    return as_float(np.uint32(bits) << np.uint32(16))


@numba.njit
def from_float16(bits):
    """Return the float32 of the bits of a float16."""
    wide = np.uint32(bits)
    magnitude = as_float((wide & np.uint32(0x7FFF)) << np.uint32(13)) * _EXPONENTS
    found = as_bits(magnitude)
    found = found if (wide & np.uint32(0x7C00)) != np.uint32(0x7C00) else found | np.uint32(0x7F800000)
    return as_float(found | ((wide & np.uint32(0x8000)) << np.uint32(16)))


@numba.njit(fastmath={"reassoc", "contract"})
def summed(one, other):
    """Return the inner product of two segments, in an order that the processor likes."""
    total = np.float32(0)
    for i in range(len(one)):
        total += one[i] * other[i]
    return total


@numba.njit
def wide(address, dtype, a, out):
    """Return a segment as float32: in its place if it is kept so, else in `out`."""
    n = len(out)
    if dtype == FLOAT32:
        return carray(pointer(address + 4 * a), n, np.float32)
    words = carray(pointer(address + 2 * a), n, np.uint16)
    if dtype == BFLOAT16:
        for i in range(n):
            out[i] = from_bfloat16(words[i])
    else:
        for i in range(n):
            out[i] = from_float16(words[i])
    return out


@numba.njit
def subtract(address, dtype, a, base, out):
    """Read a segment of an expert, and subtract the base."""
    n = len(out)
    if dtype == FLOAT32:
        values = carray(pointer(address + 4 * a), n, np.float32)
        for i in range(n):
            out[i] = values[i] - base[i]
        return
    words = carray(pointer(address + 2 * a), n, np.uint16)
    if dtype == BFLOAT16:
        for i in range(n):
            out[i] = from_bfloat16(words[i]) - base[i]
    else:
        for i in range(n):
            out[i] = from_float16(words[i]) - base[i]


@numba.njit
def decode(kind, row, a, out):
    """Read a segment of a quantised row; `out` is as long as whole groups are."""
    groups = len(out) // GROUP
    steps = carray(pointer(row[2] + 4 * (a // GROUP)), groups, np.float32)
    zeros = carray(pointer(row[3] + a // GROUP), groups, np.uint8)
    if kind == INT8:
        codes = carray(pointer(row[1] + a), groups * GROUP, np.uint8)
    else:
        codes = carray(pointer(row[1] + a // 2), groups * HALF, np.uint8)
    for g in range(groups):
        step, zero = steps[g], np.float32(zeros[g])
        here = out[g * GROUP : (g + 1) * GROUP]
        if kind == INT8:
            some = codes[g * GROUP : (g + 1) * GROUP]
            for j in range(GROUP):
                here[j] = (np.float32(some[j]) - zero) * step
        else:
            some = codes[g * HALF : (g + 1) * HALF]
            low, high = here[:HALF], here[HALF:]
            for j in range(HALF):
                low[j] = (np.float32(some[j] & np.uint8(15)) - zero) * step
                high[j] = (np.float32(some[j] >> np.uint8(4)) - zero) * step


@numba.njit
def mask(address, a, gradient, out):
    """Multiply a segment of the gradient by the bits of a mask: what is not finite stays so, as in the plain form."""
    words = carray(pointer(address + 4 * (a // WORD)), -(-len(out) // WORD), np.uint32)
    for g in range(len(words)):
        word, some, here = words[g], gradient[g * WORD : (g + 1) * WORD], out[g * WORD : (g + 1) * WORD]
        for j in range(len(here)):
            here[j] = some[j] * np.float32((word >> np.uint32(j)) & np.uint32(1))


@numba.njit
def read(row, a, base, out):
    """Return a segment of a row as float32: in its place if it is kept so, else in `out`.

    Args:
        row: kind, values, steps, zeros, mask, ...
        a: where the segment begins.
        base: θ₀ there.
        out: room for whole groups.
    """
    kind, n = row[0], len(base)
    if kind < EXPERT:
        return wide(row[1], kind, a, out[:n])
    if kind < INT8:
        subtract(row[1], kind - EXPERT, a, base, out[:n])
    else:
        decode(kind, row, a, out[: -(-n // GROUP) * GROUP])
    return out[:n]


@numba.njit(
    "int64(int64,int64,int64[:,::1],int64[:,::1],int64[:,::1],float64[:,::1],int64,int64)",
    nogil=True,
    cache=True,
    error_model="numpy",
)
def products(address, dtype, spans, rows, pieces, out, first, last):
    """Write the sums of some pieces.

    Args:
        address: of the gradient of the parameter.
        dtype: of the gradient.
        spans: where each begins, its base and the dtype of this, its first row and the one after its last.
        rows: kind, values, steps, zeros, mask, ...
        pieces: of each its span, and its first element there and the one after its last.
        out: a line for each piece.
        first: of the pieces that are done.
        last: the one after these.
    """
    rooms = np.empty((4, SEGMENT), np.float32)
    for p in range(first, last):
        s = pieces[p, 0]
        for a in range(pieces[p, 1], pieces[p, 2], SEGMENT):
            n = min(pieces[p, 2] - a, SEGMENT)
            gradient, base = wide(address, dtype, spans[s, 0] + a, rooms[0, :n]), rooms[1, :n]
            if spans[s, 1]:
                base = wide(spans[s, 1], spans[s, 2], a, base)
            for k in range(spans[s, 3], spans[s, 4]):
                one = gradient
                if rows[k, 4]:
                    one = rooms[2, :n]
                    mask(rows[k, 4], a, gradient, one)
                out[p, k - spans[s, 3]] += np.float64(summed(one, read(rows[k], a, base, rooms[3])))
    return last - first
