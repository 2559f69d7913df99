"""Random numbers that depend on seed, row, parameter and element alone: what DARE and DELLA drop elements by.

In: two keys of 32 bits, made of seed, row and parameter, and the place of an element in its parameter. Out: a uniform
number u in [0, 1) of 24 bits. Nothing is stored and nothing has a state (Salmon et al. 2011, "Parallel random numbers:
as easy as 1, 2, 3"), so the numbers are the same on every device, in every shard and for any number of threads. An
element is kept where u is below its chance: what a density keeps, every larger density keeps as well.

The number is a hash of the place in two rounds of Chris Wellons' mixer of 32 bits (github.com/skeeto/hash-prospector,
the constants 21f0aaad and d35a2d97 with a bias of .107). One key changes the place before the first round, the other is
added before the second, or the numbers of one row would be those of another one in another order. Kernels compute the
same from `merging/kernels/draw.py`.
"""

from __future__ import annotations

import hashlib
import json
from typing import TypeVar

import torch
from torch import Tensor

MASK = (1 << 32) - 1
STEP = 2.0**-24

Keys = tuple[int, int]
"""Two integers of 32 bits."""

_Words = TypeVar("_Words", int, Tensor)


def keys(seed: int, row: str, parameter: str) -> Keys:
    """Return the keys of the numbers of a row in a parameter."""
    found = hashlib.sha256(json.dumps([seed, row, parameter]).encode()).digest()
    return int.from_bytes(found[:4], "little"), int.from_bytes(found[4:8], "little")


def folded(keys: Keys, start: int) -> Keys:
    """Return the keys with which a kernel that counts places in 32 bits draws from place `start` on.

    These hold up to the next multiple of 2³²: a kernel must not go beyond it with the same keys.
    """
    return keys[0] ^ _mixed(start >> 32), keys[1]


def uniforms(keys: Keys, start: int, n: int, device: torch.device | str = "cpu") -> Tensor:
    """Return the numbers of the elements `start` to `start + n` of a parameter, float32 (n,).

    Args:
        keys: of the row in the parameter.
        start: place of the first element in the flattened parameter.
        n: how many.
        device: where to compute them.
    """
    if n > (room := MASK + 1 - (start & MASK)):
        parts = uniforms(keys, start, room, device), uniforms(keys, start + room, n - room, device)
        return torch.cat(parts)
    first, second = folded(keys, start)
    low = start & MASK
    words = torch.arange(low, low + n, dtype=torch.int64, device=device)
    return (_mixed((_mixed(words ^ first) + second) & MASK) >> 8).to(torch.float32) * STEP


def _mixed(words: _Words) -> _Words:
    """Return a hash of integers of 32 bits: a permutation of them all, in which 0 stays 0."""
    words = words ^ (words >> 16)
    words = (words * 0x21F0AAAD) & MASK
    words = words ^ (words >> 15)
    words = (words * 0xD35A2D97) & MASK
    return words ^ (words >> 15)
