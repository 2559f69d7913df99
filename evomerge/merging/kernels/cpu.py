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

from evomerge.merging.kernels.compiled import kernel
from evomerge.merging.kernels.form import Numbers
from evomerge.merging.kernels.table import Places, Variant
from evomerge.merging.sites import Site

PIECE = 1 << 16
"""Elements of a piece: a multiple of all that kernels take together."""
SHARE = 1 << 20
"""Elements that a thread takes at a time; a merge of fewer is done by the thread that asks for it."""


class Table:
    """Sites of one variant and the kernel that merges them; a `Merges`.

    Args:
        variant: of all of them.
        sites: what is merged.
        ranks: see `Places`.
    """

    form = "compiled"

    def __init__(self, variant: Variant, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]] = ()) -> None:
        self._merge, self._places = kernel(variant), Places(sites, ranks)
        self._pieces = self._places.pieces(PIECE)
        self._elements = sum(len(site) for site in sites)

    def merge(self, numbers: Numbers, skipped: np.ndarray) -> int:
        """Overwrite the sites; see `Merges`."""
        at = self._places
        at.write(numbers, skipped)
        tables = [table.ctypes.data for table in (at.places, at.floats, at.whole, at.spans, self._pieces)]
        flaws = share(lambda first, last: self._merge(*tables, first, last), len(self._pieces), self._elements)
        at.written()
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
