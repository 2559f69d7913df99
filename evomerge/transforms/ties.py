"""TIES, frozen before the search: trim each task vector, elect signs, keep what agrees (Yadav et al. 2023, section 3).

In: task vectors. Out: T_k = τ_k where it is among the largest of its own task vector and has the elected sign, else 0.
These are the deltas of AdaMerging++ (Yang et al. 2024), and Σ_k T_k is what TIES calls the disjoint sum. As in the
paper, and unlike mergekit, the trim is global over the model and the election knows no weights. Unlike the authors'
code, exactly floor(density · n) elements are kept, however many are equal: bfloat16 experts have few magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.spans import CHUNK, chunks
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform

HALF = 1 << 16
ALL, NOTHING = -1, (1 << 31) - 1  # below the bits of every magnitude, and above


@dataclass(frozen=True)
class Trim:
    """Which elements of a task vector are kept.

    Attributes:
        cutoff: those whose magnitude has larger bits are kept,
        stops: and of those that have these bits, the ones before this flat index; parameter -> index, absent for 0.
    """

    cutoff: int
    stops: dict[str, int]

    def __call__(self, parameter: str, start: int, part: Tensor) -> Tensor:
        """Return a trimmed copy of a part of a delta, flat, that begins at this index."""
        bits = _bits(part)
        keep = bits > self.cutoff
        stop = max(0, self.stops.get(parameter, 0) - start)
        keep[:stop] |= bits[:stop] == self.cutoff
        return torch.where(keep, part, 0.0)


class TrimElect(Transform):
    """Trim, elect and keep what agrees; see the module's docstring.

    Args:
        density: which share of its elements each task vector keeps, of all elements of all parameters, zeros included.

    Raises:
        ConfigError: the density is no number above 0, up to 1.
    """

    name = "ties"
    title = "TIES: differences to the base trimmed by magnitude and signs elected, once"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    mergekit = "ties"

    def __init__(self, density: float = 0.2) -> None:
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
            raise ConfigError(
                f"The transform ties has density={density}: it is the share of its elements that a task vector keeps, "
                f"so write a number above 0, up to 1, such as 0.2 for 20 %."
            )
        self.density = float(density)

    def prepare(self, store: TaskVectors, statistics: Any) -> dict[str, Trim]:
        """Return what each row keeps: exactly floor(density · n) elements of the whole model, by magnitude."""
        total = sum(math.prod(shape) for shape in store.parameters.values())
        keep = math.floor(self.density * total + 1e-9)  # 0.29 * 100 is 28.999999999999996
        return {row: largest(store.deltas[row], keep, store.parameters) for row in store.rows}

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Mapping[str, Trim]) -> dict[str, Tensor]:
        """Trim, and set to zero what does not have the sign of the sum of the trimmed deltas; a sum of 0 is plus."""
        result = {row: torch.empty_like(delta) for row, delta in deltas.items()}
        for start in range(0, max((delta.numel() for delta in deltas.values()), default=0), CHUNK):
            trimmed = {
                row: state[row](name, start, delta.view(-1)[start : start + CHUNK]) for row, delta in deltas.items()
            }
            plus = reduce(torch.add, trimmed.values()) >= 0
            for row, part in trimmed.items():
                result[row].view(-1)[start : start + CHUNK] = torch.where((part > 0) == plus, part, 0.0)
        return result


def largest(deltas: Mapping[str, Delta], count: int, order: Iterable[str]) -> Trim:
    """Find the `count` elements of largest magnitude, of equal ones those that come first, without sorting or copying.

    The bits of a magnitude, read as an integer, grow with it. A first pass counts their upper halves and so finds the
    one in which the last kept element lies, a second counts the lower halves within it, and a third finds where the
    last of the equal ones stands.

    Args:
        deltas: parameter -> delta, finite; each is asked for when it is looked at, and computed chunk by chunk.
        count: of elements, from 0; if there are fewer, all of them are kept.
        order: of the parameters, in which equal elements are kept; those without a delta may be among them.
    """
    names = [name for name in order if name in deltas]
    if count == 0:
        return Trim(NOTHING, {})
    upper, lower = torch.zeros(HALF // 2, dtype=torch.int64), torch.zeros(HALF, dtype=torch.int64)
    for _, bits in _chunks(deltas, names):
        upper += torch.bincount(bits >> 16, minlength=len(upper))
    if count >= int(upper.sum()):
        return Trim(ALL, {})
    high, left = _bin(upper, count)
    for _, bits in _chunks(deltas, names):
        lower += torch.bincount(bits[bits >> 16 == high] & (HALF - 1), minlength=len(lower))
    low, left = _bin(lower, left)
    cutoff, stops = high << 16 | low, {}
    for name, bits in _chunks(deltas, names):
        equal = bits == cutoff
        if (found := int(equal.sum())) > left:
            stops[name] = stops.get(name, 0) + int(equal.nonzero()[left])
            break
        stops[name] = stops.get(name, 0) + len(bits)
        left -= found
    return Trim(cutoff, stops)


def _bin(counts: Tensor, rank: int) -> tuple[int, int]:
    """The bin in which the element of this rank lies, from 1 for the largest, and its rank within the bin."""
    above = counts.flip(0).cumsum(0)
    place = int(torch.searchsorted(above, rank))
    return len(counts) - 1 - place, rank - (int(above[place - 1]) if place else 0)


def _chunks(deltas: Mapping[str, Delta], names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Yield the bits of all magnitudes in order, a chunk at a time."""
    for name in names:
        for chunk in chunks(len(deltas[name]), CHUNK):
            yield name, _bits(deltas[name][chunk].dense())


def _bits(delta: Tensor) -> Tensor:
    """The bits of each magnitude as an integer, int32 from 0: as integers they are ordered like the magnitudes."""
    return delta.abs().view(torch.int32)
