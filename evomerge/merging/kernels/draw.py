"""The random number of an element for compiled kernels, to the bit that of `task_vectors/draws.py`, which says more."""

from __future__ import annotations

from evomerge.merging.kernels.lanes import DOUBLE, FLOAT, LONG, WORD, Value

LOW = 0xFF
"""The bits of a random number that u has not."""


def draw(place: Value, key: Value, other: Value) -> Value:
    """Return 32 random bits of the elements at some places of their parameter; u is the upper 24 of them times 2⁻²⁴.

    Args:
        place: the lower 32 bits of the places.
        key: the first key, with the upper bits of the places in it (`draws.folded`).
        other: the second key.
    """
    return mixed(place ^ with_high(place, key), other)


def with_high(place: Value, key: Value) -> Value:
    """Return the first key with what a place adds to it in the first step: the same for all with its upper 16 bits."""
    return key ^ ((place ^ key) >> 16)


def mixed(words: Value, other: Value) -> Value:
    """Return the random bits of the elements at some places: `words` are these ^ `with_high`."""
    words = _rest(words) + other
    return _rest(words ^ (words >> 16))


def uniform(bits: Value) -> Value:
    """Return u."""
    return (bits >> 8).to(FLOAT) * 2.0**-24


def limit(density: Value) -> Value:
    """Return the number up to which random bits, with `LOW` set, have u < density: below `LOW`, none has."""
    exact = density.to(DOUBLE) * 2.0**24
    steps = exact.to(LONG)
    steps = (steps + (exact > steps.to(DOUBLE)).to(LONG)).at_most(1 << 24)
    return steps.same(0).where(0, (steps * 256 - 1).to(WORD))


def _rest(words: Value) -> Value:
    words = words * 0x21F0AAAD
    words = words ^ (words >> 15)
    words = words * 0xD35A2D97
    return words ^ (words >> 15)
