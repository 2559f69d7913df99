"""The elements of deltas in the order of their magnitudes, so that any density is a cut that is found without a pass.

In: the deltas of a row in some spans. Out: an `Order` for each, four bytes an element on disk, and cuts of it: exactly
the `rank` largest elements by magnitude, of equal ones those that come first, in one span (`Order.cut`) or over several
(`cuts_over`). And for DELLA (Deep et al. 2024, arXiv 2406.11617), whose chances depend on the rank of an element in its
row, these ranks, two bytes an element. The magnitude at a rank is read from the delta, so nothing else is stored.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Steps
from evomerge.task_vectors.cuts import NOTHING, Cut
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.mapped import mapped
from evomerge.task_vectors.reading import Read, bits_of, reader
from evomerge.task_vectors.sorting import Sorter, in_threads, rank_rows
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors

FORMAT = "evomerge order 1"
WIDEST = 1 << 16
"""Elements of a row up to which a rank takes two bytes."""
SAMPLES = 64
"""Elements of each span that are looked at together when a cut over several spans is searched."""


@dataclass(frozen=True, eq=False)
class Order:
    """The elements of a delta in the order of their magnitudes.

    Attributes:
        delta: n elements.
        places: of its elements, the largest first, of equal ones the one that comes first; uint32 (n,).
    """

    delta: Delta
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def cut(self, rank: int) -> Cut:
        """Return the cut that keeps exactly `rank` elements: none below 1, and at most all."""
        if rank <= 0:
            return NOTHING
        if rank >= len(self):
            return Cut(0, len(self))
        place = self.places.item(rank - 1)
        return Cut(bits_of(abs(self._read(place))), place + 1)

    @cached_property
    def _read(self) -> Read:
        return reader(self.delta)

    def bits(self, ranks: np.ndarray) -> np.ndarray:
        """Return the bits of the magnitudes at some ranks, int64 (m,), of which 0 is the largest's: int64 (m,)."""
        values = self.delta.at(torch.from_numpy(self.places[ranks].astype(np.int64)))
        return values.abs().view(torch.int32).cpu().numpy().astype(np.int64)


def stored_orders(
    vectors: TaskVectors, row: str, spans: Sequence[Span], progress: Steps | None = None
) -> list[Order | None]:
    """Return the order of a row in each span, from the cache; one that it lacks is sorted first.

    Args:
        vectors: the rows, on the CPU.
        row: one of them.
        spans: where; each is sorted by itself.
        progress: told what is done, in elements or bytes.

    Returns:
        Of each span, None where its delta is zero.

    Raises:
        ConfigError: a span has 2³² elements or more.
        CheckpointError: the cache cannot be written.
    """

    def fill(index: int, delta: Delta, sorter: Sorter, out: np.ndarray) -> None:
        sorter.order(delta, out)

    found = _derived(vectors, row, spans, ["order"], np.uint32, fill, f"sorting {row}", progress)
    return [None if each is None else Order(*each) for each in found]


def order_of(delta: Delta) -> Order:
    """Return the order of a delta, sorted anew and held in memory."""
    _check_length(len(delta), "a delta")
    Sorter().order(delta, places := np.empty(len(delta), np.uint32))
    return Order(delta, places)


def cuts_over(orders: Sequence[Order], rank: int) -> list[Cut]:
    """Return cuts that keep exactly `rank` elements of all deltas together.

    Of equal elements those are kept that come first, delta by delta. It is not more than some gathers from each
    delta: the number of elements that each keeps is enclosed from both sides. Elements that are evenly spaced in the
    orders split them into gaps; how many elements come before each of these is then known but for a gap of each.

    Args:
        orders: of the deltas, in their order.
        rank: how many elements are kept: none below 1, and at most all.
    """
    if len(orders) == 1:
        return [orders[0].cut(rank)]
    low, high = np.zeros(len(orders), np.int64), np.array([len(order) for order in orders], np.int64)
    rank = min(max(rank, 0), int(high.sum()))
    while (left := rank - int(low.sum())) > 0 and int((high - low).sum()) > left:
        whose, ranks = _samples(low, high)
        first = np.append(True, whose[1:] != whose[:-1])
        pieces = np.split(ranks, np.flatnonzero(first)[1:])
        bits = np.concatenate([orders[s].bits(piece) for s, piece in zip(whose[first], pieces, strict=True)])
        last = np.append(first[1:], True)
        before = np.where(first, low[whose], np.roll(ranks, 1) + 1)  # where the gap before a sample begins
        after = np.where(last, high[whose], np.roll(ranks, -1))  # where the one behind it ends
        sort = np.lexsort((ranks, whose, -bits))
        least = np.cumsum((ranks + 1 - before)[sort])  # so many elements at least come up to the sample, with it
        most = int((ranks - before)[first].sum()) + np.append(0, np.cumsum((after - ranks)[sort])[:-1])  # or before it
        kept, dropped = sort[most < left], sort[least > left]
        np.maximum.at(low, whose[kept], ranks[kept] + 1)
        np.minimum.at(high, whose[dropped], ranks[dropped])
    kept = low if left <= 0 else high
    return [order.cut(int(count)) for order, count in zip(orders, kept, strict=True)]


def stored_ranks(
    vectors: TaskVectors, row: str, spans: Sequence[Span], widths: Sequence[int], progress: Steps | None = None
) -> list[Tensor | None]:
    """Return the rank of each element by magnitude within its row, from the cache; what it lacks is sorted first.

    Args:
        vectors: the rows, on the CPU.
        row: one of them.
        spans: where.
        widths: elements of a row of each span, which has whole rows.
        progress: told what is done, in elements or bytes.

    Returns:
        uint16 (n,) of each span: 0 for the smallest magnitude of a row, and of equal ones for the one that comes first.
        None where its delta is zero.

    Raises:
        ConfigError: a row has more than 2¹⁶ elements.
        CheckpointError: the cache cannot be written.
    """
    for span, width in zip(spans, widths, strict=True):
        _check_width(width, span.parameter)

    def fill(index: int, delta: Delta, sorter: Sorter, out: np.ndarray) -> None:
        rank_rows(delta, widths[index], out)

    found = _derived(vectors, row, spans, ["row ranks", *widths], np.uint16, fill, f"ranking {row}", progress)
    return [None if each is None else torch.from_numpy(each[1]) for each in found]


def row_ranks(delta: Delta, width: int) -> Tensor:
    """Return the ranks within rows of a delta, found anew and held in memory; see `stored_ranks`."""
    _check_width(width, "a delta")
    rank_rows(delta, width, ranks := np.empty(len(delta), np.uint16))
    return torch.from_numpy(ranks)


def _derived(
    vectors: TaskVectors,
    row: str,
    spans: Sequence[Span],
    about: list[Any],
    dtype: type,
    fill: Callable[[int, Delta, Sorter, np.ndarray], None],
    what: str,
    progress: Steps | None,
) -> list[tuple[Delta, np.ndarray] | None]:
    """Return the deltas of spans, each with its part of one array that has a number for each element."""
    for span in spans:
        _check_length(span.stop - span.start, span.parameter)
    whole = [vectors.delta(row, span.parameter) for span in spans]
    found = [None if delta is None else delta[span.start : span.stop] for delta, span in zip(whole, spans, strict=True)]
    held = [(index, delta) for index, delta in enumerate(found) if delta is not None]
    sizes = [len(delta) for _, delta in held]
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    parts = [slice(end - size, end) for size, end in zip(sizes, ends, strict=True)]

    def fill_all(array: np.ndarray) -> None:
        def work(sorter: Sorter, place: int) -> None:
            fill(*held[place], sorter, array[parts[place]])

        in_threads(work, sizes, None if progress is None else partial(progress, what))

    contents = None
    if row in vectors.contents:
        contents = [FORMAT, about, vectors.contents[row], [[span.parameter, span.start, span.stop] for span in spans]]
    array = mapped(contents, dtype, sum(sizes), fill_all, vectors.cache, progress)
    result: list[tuple[Delta, np.ndarray] | None] = [None] * len(spans)
    for (index, delta), part in zip(held, parts, strict=True):
        result[index] = delta, array[part]
    return result


def _samples(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return evenly spaced ranks between these, by span: whose they are, and the ranks; all where there are few."""
    size = high - low
    number = np.minimum(size, SAMPLES)
    whose = np.repeat(np.arange(len(size)), number)
    place = np.arange(len(whose)) - np.repeat(np.cumsum(number) - number, number)
    few = size[whose] <= SAMPLES
    return whose, low[whose] + np.where(few, place, (place + 1) * size[whose] // (SAMPLES + 1))


def _check_length(size: int, name: str) -> None:
    if size >= 1 << 32:
        raise ConfigError(
            f"{name} has {size} elements in one span, and evomerge sorts at most 2³² − 1 together: divide it into more "
            f"groups, such as space.groups=chunk:8."
        )


def _check_width(width: int, name: str) -> None:
    if width > WIDEST:
        raise ConfigError(
            f"{name} has rows of {width} elements, and evomerge ranks elements in rows of at most {WIDEST} (method "
            f"della): take method=dare_ties, whose chances are the same for all elements."
        )
