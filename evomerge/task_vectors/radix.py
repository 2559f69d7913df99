"""Compiled loops that sort magnitudes by their bits (`sorting.py` says how they are put together).

The bits of a magnitude in float32, read as an integer of 31 bits, grow with it. A pair is an integer of 64 bits: the
complement of the magnitude's bits above, so that small pairs are large magnitudes, and the place of the element below.
Pairs are sorted by one digit at a time, the lowest first, each pass keeping the order of equal digits (LSD radix sort).
"""

from __future__ import annotations

import numba
import numpy as np

DIGIT = 11
"""Bits of a digit: three of them make a key, and 2,048 places to write to still fit the processor's tables of pages."""
BINS = 1 << DIGIT
DIGITS = 3
MAGNITUDE = np.uint32(0x7FFFFFFF)
COARSE = np.uint32(20)
"""Bits below those that a first count looks at."""


@numba.njit(nogil=True, cache=True)
def count(bits, counts):
    """Count magnitudes by their upper bits: zeros in bin 0, and in bin b those of (b − 1)·2²⁰ + 1 to b·2²⁰."""
    for i in range(len(bits)):
        magnitude = np.uint32(bits[i] & MAGNITUDE)
        counts[np.uint32((magnitude + np.uint32((1 << 20) - 1)) >> COARSE)] += 1


@numba.njit(nogil=True, cache=True)
def collect(bits, first, low, high, pairs, found):
    """Append the pairs of the magnitudes from `low` to `high`.

    Args:
        bits: of some elements, uint32.
        first: the place of the first of these.
        low: the smallest magnitude's bits.
        high: the largest's.
        pairs: uint64, with room for one more than are there.
        found: how many are there.

    Returns:
        How many are there now.
    """
    for i in range(len(bits)):
        magnitude = np.uint32(bits[i] & MAGNITUDE)
        key = np.uint32(MAGNITUDE - magnitude)
        pairs[np.uint64(found)] = (np.uint64(key) << np.uint64(32)) | np.uint64(first + np.uint64(i))
        found += np.int64((magnitude >= low) & (magnitude <= high))
    return found


@numba.njit(nogil=True, cache=True)
def digits(pairs, counts):
    """Count the digits of pairs, int64 (DIGITS, BINS)."""
    for i in range(len(pairs)):
        key = np.uint32(pairs[i] >> np.uint64(32))
        counts[0, np.uint32(key & np.uint32(BINS - 1))] += 1
        counts[1, np.uint32((key >> np.uint32(DIGIT)) & np.uint32(BINS - 1))] += 1
        counts[2, np.uint32(key >> np.uint32(2 * DIGIT))] += 1


@numba.njit(nogil=True, cache=True)
def scatter(source, target, digit, counts):
    """Sort pairs by one digit, from one array into another; `counts`, int64 (BINS,), are those of the digit."""
    places = np.empty(BINS, np.uint64)
    place = np.uint64(0)
    for b in range(BINS):
        places[b] = place
        place += np.uint64(counts[b])
    shift = np.uint64(32 + DIGIT * digit)
    for i in range(len(source)):
        pair = source[i]
        b = np.uint32((pair >> shift) & np.uint64(BINS - 1))
        target[places[b]] = pair
        places[b] += np.uint64(1)


@numba.njit(nogil=True, cache=True)
def rank_rows(bits, width, ranks):
    """Write the rank of each element by magnitude within its row, from 0 for the smallest; equal ones by their place.

    Args:
        bits: of whole rows, uint32 (n,).
        width: of a row, up to 2¹⁶.
        ranks: uint16 (n,).
    """
    pairs, other, counts = np.empty(width, np.uint64), np.empty(width, np.uint64), np.empty((4, 256), np.uint32)
    for start in range(0, len(bits), width):
        row, out = bits[start : start + width], ranks[start : start + width]
        counts[:] = 0
        for i in range(width):
            magnitude = np.uint32(row[i] & MAGNITUDE)
            pairs[i] = (np.uint64(magnitude) << np.uint64(32)) | np.uint64(i)
            for d in range(4):
                counts[d, np.uint32((magnitude >> np.uint32(8 * d)) & np.uint32(255))] += np.uint32(1)
        for d in range(4):
            shift = np.uint64(32 + 8 * d)
            bins = counts[d]
            if bins[np.uint32((pairs[0] >> shift) & np.uint64(255))] == width:
                continue
            place = np.uint32(0)
            for b in range(256):
                size = bins[b]
                bins[b] = place
                place += size
            for i in range(width):
                pair = pairs[i]
                b = np.uint32((pair >> shift) & np.uint64(255))
                other[bins[b]] = pair
                bins[b] += np.uint32(1)
            pairs, other = other, pairs
        for i in range(width):
            out[np.uint32(pairs[i] & np.uint64(0xFFFFFFFF))] = np.uint16(i)
