"""Floats of 16 bits as integers, and back: not every processor has instructions for them.

Writing rounds half to even, as torch does, and keeps a NaN one.
"""

from __future__ import annotations

from evomerge.merging.kernels.lanes import FLOAT, HALF, WORD, Value

WORDS = {"float32": FLOAT, "bfloat16": HALF, "float16": HALF}
"""What lies in memory, by dtype."""
BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_LEAST = 2.0**-14  # the least normal number of float16
_MAGIC = 0.5  # its last bit is worth 2⁻²⁴, as the last one of a denormal float16
_MAGIC_BITS = 0x3F000000
_TOO_LARGE = 65520.0  # rounds to infinity
_SIGN, _MAGNITUDE = 0x80000000, 0x7FFFFFFF


def widened(bits: Value, dtype: str) -> Value:
    """Return what lies in memory as float32."""
    if dtype == "float32":
        return bits
    return (bits.to(WORD) << 16).bits(FLOAT) if dtype == "bfloat16" else _from_float16(bits.to(WORD))


def rounded(number: Value, dtype: str) -> Value:
    """Return what lies in memory for the number of a dtype that is nearest to a float32."""
    if dtype == "float32":
        return number
    return (_to_bfloat16(number) if dtype == "bfloat16" else _to_float16(number)).to(HALF)


def _to_bfloat16(number: Value) -> Value:
    bits = number.bits(WORD)
    even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return number.same(number).where(even, 0x7FC0)


def _from_float16(wide: Value) -> Value:
    magnitude = ((wide & 0x7FFF) << 13).bits(FLOAT) * 2.0**112  # what the exponents of both are apart
    found = magnitude.bits(WORD)
    found = (wide & 0x7C00).same(0x7C00).where(found | 0x7F800000, found)
    return (found | ((wide & 0x8000) << 16)).bits(FLOAT)


def _to_float16(number: Value) -> Value:
    bits = number.bits(WORD)
    magnitude = (bits & _MAGNITUDE).bits(FLOAT)
    normal = ((bits & _MAGNITUDE) + 0xFFF + ((bits >> 13) & 1) - (112 << 23)) >> 13
    denormal = (magnitude + _MAGIC).bits(WORD) - _MAGIC_BITS
    found = (magnitude >= _LEAST).where(normal, denormal)
    found = (magnitude < _TOO_LARGE).where(found, 0x7C00)
    found = number.same(number).where(found, 0x7E00)
    return found | ((bits & _SIGN) >> 16)
