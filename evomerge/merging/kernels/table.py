"""The table of sites that compiled kernels read: where everything lies, and the numbers of a candidate beside it.

In: sites of one variant. Out: arrays, the same for every kind of kernel. Which parts of a model are merged by one
kernel is decided here as well: those of one form, with the same dtypes and kinds of rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta

DTYPES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}
GROUP = 64  # elements of a quantised group; spans that begin within one have no kernel
HEAD = 4
"""Columns of a place before those of the rows: live, base, whether it is skipped, its first element."""
COLUMNS = ("values", "steps", "zeros", "mask", "ranks")
"""Addresses of a row in a place; 0 for what its kind has not."""


@dataclass(frozen=True)
class Row:
    """What is kept of a row.

    Attributes:
        kind: `dense`, `expert`, `int8` or `int4`.
        dtype: of the values of the first two.
        masked: whether a mask of bits lies over it.
    """

    kind: str
    dtype: str = "float32"
    masked: bool = False

    @property
    def packed(self) -> bool:
        """Whether it is read in segments."""
        return self.masked or self.kind in ("int8", "int4")


@dataclass(frozen=True)
class Variant:
    """What one kernel is compiled for.

    Attributes:
        form: how spans are merged.
        rows: what is kept of each row.
        base: dtype of θ₀.
        live: dtype of the model.
        rounded: dtype to which the result is rounded before it is written in that of the model.
    """

    form: Form
    rows: tuple[Row, ...]
    base: str
    live: str
    rounded: str

    @property
    def packed(self) -> bool:
        """Whether some row is read in segments."""
        return any(row.packed for row in self.rows)


class Merges(Protocol):
    """A table with a kernel that merges its sites.

    Attributes:
        form: what it is called where it is said how candidates were made.
    """

    form: str

    def merge(self, numbers: Numbers, skipped: np.ndarray) -> int:
        """Overwrite the sites.

        Args:
            numbers: of the candidate.
            skipped: boolean (S,), the sites that are left as they are.

        Returns:
            How many quotients were refused.
        """
        ...


def variant_of(form: Form, site: Site) -> Variant | None:
    """Return the variant that merges a site; None where there is none, and the plain form serves.

    Args:
        form: how it is merged.
        site: what.
    """
    names = [DTYPES.get(dtype) for dtype in (site.base.dtype, site.live.dtype, site.rounded or site.live.dtype)]
    rows = [row_of(delta) for delta in site.deltas]
    if form.join == "mean" or None in names or None in rows or len(site) >= 1 << 32:
        return None
    if form.keep in ("drawn", "ranked") and site.span.start >> 32 != (site.span.stop - 1) >> 32:
        return None  # keys hold up to the next multiple of 2³²
    base, live, target = (name for name in names if name)
    return Variant(form, tuple(row for row in rows if row), base, live, target)


def row_of(delta: Delta) -> Row | None:
    """Return how a kernel reads a delta; None if it cannot, as where the delta begins within a quantised group."""
    layout = delta.layout()
    masked, kind = layout.kind.startswith("masked "), layout.kind.removeprefix("masked ")
    row = Row(kind, DTYPES.get(layout.tensors[0].dtype, ""), masked)
    if kind in ("dense", "expert"):
        return row if row.dtype and not (masked and layout.start % 32) else None
    return None if kind == "low_rank" or layout.start % GROUP else Row(kind, masked=masked)


class Places:
    """Addresses and lengths of sites of one variant, and the numbers of the candidate that was written last.

    Args:
        sites: what is merged; kept here, so that their memory stays.
        ranks: of each site and row, the ranks of its elements, for the form `ranked`; kept as well.

    Attributes:
        places: int64 (S, HEAD + R columns).
        floats: float32 (S, R, 4): the weight, then the chances.
        whole: uint32 (S, R, 4): the keys, or one cut and the other.
        spans: float32 (S, 2): the weight of the base, and the divisor.
    """

    def __init__(self, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]] = ()) -> None:
        self.sites, self._ranks = sites, ranks
        count, rows = len(sites), len(sites[0].deltas)
        self.places = np.zeros((count, HEAD + len(COLUMNS) * rows), dtype=np.int64)
        self.floats = np.zeros((count, rows, 4), dtype=np.float32)
        self.whole = np.zeros((count, rows, 4), dtype=np.uint32)
        self.spans = np.zeros((count, 2), dtype=np.float32)
        for place, site in enumerate(sites):
            self.places[place, :HEAD] = site.live.data_ptr(), site.base.data_ptr(), 0, site.span.start
            for k, delta in enumerate(site.deltas):
                at = HEAD + len(COLUMNS) * k
                self.places[place, at : at + len(COLUMNS)] = addresses(delta)
                if ranks:
                    self.places[place, at + COLUMNS.index("ranks")] = ranks[place][k].data_ptr()

    def pieces(self, size: int) -> np.ndarray:
        """Return the sites in pieces, int64 (P, 3): the site of each, its first element, and the one after its last."""
        found = [
            (place, start, min(start + size, len(site)))
            for place, site in enumerate(self.sites)
            for start in range(0, len(site), size)
        ]
        return np.array(found, dtype=np.int64)

    def write(self, numbers: Numbers, skipped: np.ndarray) -> None:
        """Write the numbers of a candidate."""
        self.places[:, 2] = skipped
        self.floats[:, :, 0] = numbers.weight
        if numbers.chance.size:
            self.floats[:, :, 1 : 1 + numbers.chance.shape[2]] = numbers.chance
        for place, whole in ((0, numbers.keys), (0, numbers.cut), (2, numbers.upper)):
            if whole.size:
                self.whole[:, :, place : place + 2] = whole
        for place, values in enumerate((numbers.base, numbers.divisor)):
            if values.size:
                self.spans[:, place] = values

    def written(self) -> None:
        """Tell torch that the sites changed."""
        torch.autograd.graph.increment_version([site.live for site in self.sites])


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
