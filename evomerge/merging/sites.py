"""Sites: the spans of a model that candidates overwrite, each with its base and the deltas that are not zero there.

In: spans, rows and where to write. Out: `Site`s; and `Together`, some of them that are merged at once, of which a
method makes the numbers of a candidate.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.common.progress import Steps
from evomerge.task_vectors.delta import Delta, copied
from evomerge.task_vectors.orders import Order, order_of, row_ranks, stored_orders, stored_ranks
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors


@dataclass(frozen=True, eq=False)
class Site:
    """One span of a model; tensors are flat views of its n elements.

    Attributes:
        group: whose coefficients it has.
        span: which elements of the parameter it is.
        width: the parameter's last dimension.
        live: its place in the model.
        base: θ₀ there.
        rows: the places, among the K, of those whose delta is not zero here.
        names: of these rows.
        deltas: of these rows.
        rounded: the dtype to which elements are rounded before they are stored; None for that of `live`.
    """

    group: int
    span: Span
    width: int
    live: Tensor
    base: Tensor
    rows: list[int]
    names: list[str]
    deltas: list[Delta]
    rounded: torch.dtype | None = None

    def __len__(self) -> int:
        return self.span.stop - self.span.start

    @property
    def nbytes(self) -> int:
        """Bytes of base and deltas, which a candidate reads."""
        return self.base.nbytes + sum(delta.nbytes for delta in self.deltas)

    def held(self, pinned: bool) -> Site:
        """Return it with base and deltas copied into memory, from which a device may read them if it is pinned."""
        base = copied(self.base, pinned)
        return replace(self, base=base, deltas=[delta.held(pinned).over(base) for delta in self.deltas])

    def moved(self) -> Site:
        """Return it with base and deltas on the device of the model."""
        if self.base.device == self.live.device:
            return self
        base = self.base.to(self.live.device)
        return replace(self, base=base, deltas=[delta.over(base) for delta in self.deltas])

    @property
    def row_length(self) -> int:
        """Elements of a row: the parameter's last dimension; all elements where the span cuts rows."""
        whole = self.span.start % self.width == 0 and len(self) % self.width == 0
        return self.width if whole else len(self)


def find_site(
    group: int, span: Span, parameter: Tensor, vectors: TaskVectors, rounded: torch.dtype | None = None
) -> Site | None:
    """Return a span of a model with what a candidate needs for it, where that lies; None where all rows are zero.

    Args:
        group: its place among the groups.
        span: of one of its parameters.
        parameter: where to write, flat or of the parameter's shape.
        vectors: base and rows.
        rounded: the dtype to which candidates are rounded; None for that of the parameter.
    """
    place, rows = slice(span.start, span.stop), vectors.rows
    deltas = [vectors.delta(row, span.parameter) for row in rows]
    found = {k: delta for k, delta in enumerate(deltas) if delta is not None}
    if not found:
        return None
    shape = vectors.parameters[span.parameter]
    base = vectors.base.tensor(span.parameter).reshape(-1)[place]
    return Site(
        group=group,
        span=span,
        width=shape[-1] if shape else 1,
        live=parameter.view(-1)[place],
        base=base,
        rows=list(found),
        names=[rows[k] for k in found],
        deltas=[delta[place].over(base) for delta in found.values()],
        rounded=rounded,
    )


@dataclass(frozen=True, eq=False)
class Together:
    """S sites with the same number R of rows, which are merged together.

    Attributes:
        sites: in their order.
        everything: all sites of the model, of which these are some.
        vectors: the rows that the sites are of: what is derived of them is kept on disk. None: it is found anew.
        progress: told what is derived.
    """

    sites: Sequence[Site]
    everything: Sequence[Site]
    vectors: TaskVectors | None = None
    progress: Steps | None = None

    @cached_property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Where the coefficients of each site and row lie among those of shape (G, K): two of int64 (S, R)."""
        rows = np.array([site.rows for site in self.sites], dtype=np.int64)
        groups = np.array([[site.group] for site in self.sites], dtype=np.int64)
        return np.broadcast_to(groups, rows.shape), rows

    def orders(self, sites: Sequence[Site]) -> list[list[Order]]:
        """Return the elements of each row of sites in the order of their magnitudes."""
        if self.vectors is None:
            return [[order_of(delta) for delta in site.deltas] for site in sites]
        return _by_site(self.vectors, sites, lambda *which: stored_orders(*which, progress=self.progress))

    def ranks(self) -> list[list[Tensor]]:
        """Return the rank of each element of each row by magnitude, within its row of the parameter."""
        if self.vectors is None:
            return [[row_ranks(delta, site.row_length) for delta in site.deltas] for site in self.sites]
        lengths = {site.span: site.row_length for site in self.sites}

        def stored(vectors: TaskVectors, row: str, spans: Sequence[Span]) -> Sequence[Tensor | None]:
            return stored_ranks(vectors, row, spans, [lengths[span] for span in spans], self.progress)

        return _by_site(self.vectors, self.sites, stored)


def _by_site(
    vectors: TaskVectors, sites: Sequence[Site], find: Callable[[TaskVectors, str, Sequence[Span]], Sequence[Any]]
) -> list[list[Any]]:
    """Return what is found by row, of each site in the order of its rows."""
    found: list[list[Any]] = [[] for _ in sites]
    for row in vectors.rows:
        held = [s for s, site in enumerate(sites) if row in site.names]
        for s, each in zip(held, find(vectors, row, [sites[s].span for s in held]), strict=True):
            found[s].append(each)
    return found
