"""Compiled merges on the CPU: one table of sites, one kernel, all threads that torch would take.

In: sites of one variant. Out: the same sites, overwritten with a candidate. The table holds addresses and lengths, the
numbers of a candidate are written beside them, and the kernel walks over pieces of sites. The threads are plain ones
of Python that live for one merge, since kernels let go of Python's lock: nothing is shared between merges, so a process
may fork, or merge in several threads. Which thread takes a piece changes nothing: each element is made by itself.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.compiled import available, kernel
from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.kernels.source import COLUMNS, HEAD, Row, Variant
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta

PIECE = 1 << 16
"""Elements of a piece: a multiple of all that kernels take together."""
SHARE = 1 << 20
"""Elements that a thread takes at a time; a merge of fewer is done by the thread that asks for it."""
DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
GROUP = 64  # elements of a quantised group; spans that begin within one have no kernel


def variant_of(form: Form, site: Site) -> Variant | None:
    """Return the variant that merges a site; None where there is none, and the plain form serves.

    Args:
        form: how it is merged.
        site: what.
    """
    if site.live.device.type != "cpu" or available() is not None:
        return None
    names = [DTYPES.get(dtype) for dtype in (site.base.dtype, site.live.dtype, site.rounded or site.live.dtype)]
    rows = [row_of(delta) for delta in site.deltas]
    if None in names or None in rows or len(site) >= 1 << 32:
        return None
    base, live, target = (name for name in names if name)
    return Variant(form, tuple(row for row in rows if row), base, live, target)


def row_of(delta: Delta) -> Row | None:
    """Return how a kernel reads a delta; None if it cannot, as where the delta begins within a quantised group."""
    layout = delta.layout()
    masked, kind = layout.kind.startswith("masked "), layout.kind.removeprefix("masked ")
    row = Row(kind, DTYPES.get(layout.tensors[0].dtype, ""), masked)
    if kind in ("dense", "expert"):
        return row if row.dtype and not (masked and layout.start % 32) else None
    return None if layout.start % GROUP else Row(kind, masked=masked)


class Table:
    """Sites of one variant, with the addresses of all that their merge reads and writes.

    Args:
        variant: of all of them.
        sites: what is merged; the table keeps them, so that their memory stays.
        ranks: of each site and row, the ranks of its elements, for the form `ranked`.
    """

    def __init__(self, variant: Variant, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]] = ()) -> None:
        self._merge, self._sites, self._ranks = kernel(variant), sites, ranks
        count, rows = len(sites), len(variant.rows)
        self._places = np.zeros((count, HEAD + len(COLUMNS) * rows), dtype=np.int64)
        self._floats = np.zeros((count, rows, 4), dtype=np.float32)
        self._whole = np.zeros((count, rows, 4), dtype=np.uint32)
        self._spans = np.zeros((count, 2), dtype=np.float32)
        for place, site in enumerate(sites):
            self._places[place, :HEAD] = site.live.data_ptr(), site.base.data_ptr(), 0, site.span.start
            for k, delta in enumerate(site.deltas):
                at = HEAD + len(COLUMNS) * k
                self._places[place, at : at + len(COLUMNS)] = addresses(delta)
                if ranks:
                    self._places[place, at + COLUMNS.index("ranks")] = ranks[place][k].data_ptr()
        self._pieces = np.array(
            [
                (place, start, min(start + PIECE, len(site)))
                for place, site in enumerate(sites)
                for start in range(0, len(site), PIECE)
            ],
            dtype=np.int64,
        )
        self._elements = sum(len(site) for site in sites)
        self._live = [site.live for site in sites]

    def merge(self, numbers: Numbers, skipped: np.ndarray) -> int:
        """Overwrite the sites.

        Args:
            numbers: of the candidate.
            skipped: boolean (S,), the sites that are left as they are.

        Returns:
            How many quotients were refused.
        """
        self._places[:, 2] = skipped
        self._floats[:, :, 0] = numbers.weight
        if numbers.chance.size:
            self._floats[:, :, 1 : 1 + numbers.chance.shape[2]] = numbers.chance
        for place, whole in ((0, numbers.keys), (0, numbers.cut), (2, numbers.upper)):
            if whole.size:
                self._whole[:, :, place : place + 2] = whole
        for place, values in enumerate((numbers.base, numbers.divisor)):
            if values.size:
                self._spans[:, place] = values
        tables = (self._places, self._floats, self._whole, self._spans, self._pieces)
        flaws = share(lambda first, last: int(self._merge(*tables, first, last)), len(self._pieces), self._elements)
        torch.autograd.graph.increment_version(self._live)  # torch must know that these changed
        return sum(flaws)


def share(work: Callable[[int, int], int], pieces: int, elements: int) -> list[int]:
    """Do pieces of work in as many threads as torch takes, and return the results in no order.

    Args:
        work: takes the first piece and the one after the last; lets go of Python's lock.
        pieces: how many there are.
        elements: in all of them.

    Raises:
        Exception: what the work raised.
    """
    step = max(1, -(-pieces * SHARE // max(elements, 1)))
    threads = min(torch.get_num_threads(), -(-pieces // step))
    if threads <= 1:
        return [work(0, pieces)]
    turns, results, errors = itertools.count(), [], []

    def run() -> None:
        try:
            while not errors and (first := next(turns) * step) < pieces:
                results.append(work(first, min(first + step, pieces)))
        except BaseException as error:  # raised again below, in the thread that asked
            errors.append(error)

    helpers = [threading.Thread(target=run, daemon=True) for _ in range(threads - 1)]
    for helper in helpers:
        helper.start()
    run()
    for helper in helpers:
        helper.join()
    if errors:
        raise errors[0]
    return results


def addresses(delta: Delta) -> list[int]:
    """Return where the parts of a delta begin, in the order of `COLUMNS`."""
    layout, kind = delta.layout(), delta.layout().kind.removeprefix("masked ")
    tensors, start = list(layout.tensors), layout.start
    mask = tensors.pop() if layout.kind.startswith("masked ") else None
    found = dict.fromkeys(COLUMNS, 0)
    if kind in ("dense", "expert"):
        found["values"] = tensors[0].data_ptr() + start * tensors[0].element_size()
    else:
        codes, steps, zeros = tensors
        found["values"] = codes.data_ptr() + (start if kind == "int8" else start // 2)
        found["steps"] = steps.data_ptr() + steps.element_size() * (start // GROUP)
        found["zeros"] = zeros.data_ptr() + zeros.element_size() * (start // GROUP)
    if mask is not None:
        found["mask"] = mask.data_ptr() + mask.element_size() * (start // 32)
    return [found[name] for name in COLUMNS]
