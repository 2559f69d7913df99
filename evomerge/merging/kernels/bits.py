"""What the generated kernels are written in: memory by its address, and floats by their bits.

numba has no bfloat16 and next to no float16, so both are read and written as integers of 16 bits. Writing rounds half
to even, as torch does, and keeps a NaN one.
"""

# pyright: reportCallIssue=false
# numba gives intrinsics their first argument itself
from __future__ import annotations

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_EXPONENTS = np.float32(2.0**112)  # what the exponents of float16 and float32 are apart
_LEAST = np.float32(2.0**-14)  # the least normal number of float16
_MAGIC = np.float32(0.5)  # its last bit is worth 2⁻²⁴, as the last one of a denormal float16
_MAGIC_BITS = np.uint32(0x3F000000)
_TOO_LARGE = np.float32(65520.0)  # rounds to infinity
_SIGN, _MAGNITUDE = np.uint32(0x80000000), np.uint32(0x7FFFFFFF)


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
def to_bfloat16(number):
    """Return the bits of the bfloat16 nearest to a float32."""
    bits = as_bits(number)
    even = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) >> np.uint32(16)
    return np.uint16(even if number == number else np.uint32(0x7FC0))


@numba.njit
def from_float16(bits):
    """Return the float32 of the bits of a float16."""
    wide = np.uint32(bits)
    magnitude = as_float((wide & np.uint32(0x7FFF)) << np.uint32(13)) * _EXPONENTS
    found = as_bits(magnitude)
    found = found if (wide & np.uint32(0x7C00)) != np.uint32(0x7C00) else found | np.uint32(0x7F800000)
    return as_float(found | ((wide & np.uint32(0x8000)) << np.uint32(16)))


@numba.njit
def to_float16(number):
    """Return the bits of the float16 nearest to a float32."""
    bits = as_bits(number)
    magnitude = as_float(bits & _MAGNITUDE)
    normal = (
        (bits & _MAGNITUDE) + np.uint32(0xFFF) + ((bits >> np.uint32(13)) & np.uint32(1)) - np.uint32(112 << 23)
    ) >> np.uint32(13)
    denormal = as_bits(magnitude + _MAGIC) - _MAGIC_BITS
    found = normal if magnitude >= _LEAST else denormal
    found = found if magnitude < _TOO_LARGE else np.uint32(0x7C00)
    found = found if number == number else np.uint32(0x7E00)
    return np.uint16(found | ((bits & _SIGN) >> np.uint32(16)))
