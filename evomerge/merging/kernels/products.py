"""Inner products of a parameter's gradient with its deltas, of which the gradient of a merge is made.

In: the gradient of one parameter, and the deltas of its spans. Out: ⟨gradient, delta_k⟩ for each. On a CPU a compiled
kernel (`dots.py`) reads the gradient once and every delta as it is kept, without a copy of either, in as many threads
as torch takes; its sums do not depend on these, nor on addresses. Of eleven million elements the relative error is
below 1e-6. Of factors the product is taken without multiplying them out. The plain form serves other devices, and what
has no kernel: it computes one delta after the other, chunk by chunk.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.compiled import alone
from evomerge.merging.kernels.cpu import PIECE, share
from evomerge.merging.kernels.table import DTYPES, addresses, row_of
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.low_rank import LowRankDelta
from evomerge.task_vectors.spans import CHUNK, Span, chunks

logger = logging.getLogger(__name__)

CHUNK_FAR = 1 << 24
"""Elements that other devices than a CPU multiply at a time."""
ROWS = 4
"""How many rows take as long as one in a merge: starting a thread takes as long as reading a megabyte."""
_DTYPES = {dtype: code for code, dtype in enumerate(DTYPES)}
_KINDS = [("dense", name) for name in DTYPES.values()] + [("expert", name) for name in DTYPES.values()]
_KINDS += [("int8", "float32"), ("int4", "float32")]
"""The kinds of rows, in the order of their codes in `dots.py`."""


@dataclass(frozen=True, eq=False)
class Part:
    """A span of a parameter, and the deltas there of which products are wanted.

    Attributes:
        span: n elements.
        base: θ₀ there, (n,).
        deltas: of n elements each, where the base lies.
    """

    span: Span
    base: Tensor
    deltas: Sequence[Delta]


class Products:
    """Takes the inner products of gradients of one parameter.

    Args:
        parts: of the parameter; what they hold stays where it is as long as this lives.
    """

    def __init__(self, parts: Sequence[Part]) -> None:
        self._parts = parts
        kinds = [_kind(delta) if _has_kernel(part) else None for part in parts for delta in part.deltas]
        self._by_kernel = np.array([kind is not None for kind in kinds], dtype=bool)
        marks = iter(self._by_kernel)
        read = [replace(part, deltas=[delta for delta in part.deltas if next(marks)]) for part in parts]
        read = [part for part in read if part.deltas]
        self._table = _Table(read) if read else None

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the products of all deltas, part by part, float64 (m,).

        Args:
            gradient: of the parameter, of any float dtype and its shape.
        """
        gradient = gradient.reshape(-1).contiguous()
        if self._table is None or gradient.device.type != "cpu" or gradient.dtype not in DTYPES:
            return torch.cat([plain_products(gradient, part) for part in self._parts])
        found, marks = np.empty(len(self._by_kernel)), iter(self._by_kernel)
        found[self._by_kernel] = self._table.products(gradient)
        others = [replace(part, deltas=[delta for delta in part.deltas if not next(marks)]) for part in self._parts]
        if not self._by_kernel.all():
            rest = [plain_products(gradient, part) for part in others if part.deltas]
            found[~self._by_kernel] = torch.cat(rest).numpy()
        return torch.from_numpy(found)


def plain_products(gradient: Tensor, part: Part) -> Tensor:
    """Return the inner products of a gradient and the deltas of a part: the plain form.

    Args:
        gradient: of the parameter, flat, of any float dtype; products are rounded to float32 unless it is float64.
        part: which is brought to the gradient's device chunk by chunk, as it is kept.

    Returns:
        float64, for each delta.
    """
    device, wide = gradient.device, torch.promote_types(gradient.dtype, torch.float32)
    exact = torch.float32 if device.type == "mps" else torch.float64  # which Apple's devices have not
    gradient = gradient[part.span.start : part.span.stop]
    total = torch.zeros(len(part.deltas), dtype=exact, device=device)
    rest: list[tuple[int, Delta]] = []
    for k, delta in enumerate(part.deltas):
        if isinstance(delta, LowRankDelta) and wide != exact:  # in float64 the delta is what it is in float32
            total[k] = delta.over(gradient).product(gradient.to(wide))
        else:
            rest.append((k, delta))
    for chunk in chunks(len(gradient), CHUNK if device.type == "cpu" else CHUNK_FAR) if rest else ():
        some, base = gradient[chunk].to(wide), part.base[chunk].to(device)
        for k, delta in rest:
            total[k] += (some * delta[chunk].over(base).dense()).sum(dtype=exact)
    return total


@functools.cache
def available() -> str | None:
    """Return why numba cannot be used here; None if it can. Said once, by the log."""
    try:
        import numba  # noqa: F401
    except Exception as error:  # numba raises whatever its parts do on platforms that it does not support
        logger.warning("numba cannot be used here (%s): gradients take the plain form, which is slower", error)
        return str(error)
    return None


@functools.cache
def _compiled() -> Callable[..., int]:
    """Return the kernel; numba compiles it once on a machine, and keeps it beside its file or in the user's cache."""
    logger.debug("loading the products of a gradient: the first time on a machine, numba compiles them")
    with alone("products.lock"):  # or several would compile the same
        from evomerge.merging.kernels.dots import products

    return products


class _Table:
    """The addresses of all that the kernel reads of some parts, but for the gradient."""

    def __init__(self, parts: Sequence[Part]) -> None:
        self._products = _compiled()
        counts = [len(part.deltas) for part in parts]
        ends = np.cumsum(counts).tolist()
        self._spans = np.array(
            [
                (part.span.start, *_base(part), end - count, end)
                for part, count, end in zip(parts, counts, ends, strict=True)
            ],
            dtype=np.int64,
        )
        self._rows = np.array(
            [(_kind(delta), *addresses(delta)) for part in parts for delta in part.deltas], dtype=np.int64
        )
        sizes = [part.span.stop - part.span.start for part in parts]
        self._pieces = np.array(
            [
                (place, start, min(start + PIECE, size))
                for place, size in enumerate(sizes)
                for start in range(0, size, PIECE)
            ],
            dtype=np.int64,
        )
        self._firsts = np.flatnonzero(np.diff(self._pieces[:, 0], prepend=-1))
        self._wanted = np.arange(max(counts)) < np.array(counts)[:, None]
        self._elements = sum(size * count for size, count in zip(sizes, counts, strict=True))

    def products(self, gradient: Tensor) -> np.ndarray:
        """Return the products of all deltas, float64 (m,)."""
        sums = np.zeros((len(self._pieces), self._wanted.shape[1]))
        given = (gradient.data_ptr(), _DTYPES[gradient.dtype], self._spans, self._rows, self._pieces, sums)
        share(lambda first, last: self._products(*given, first, last), len(self._pieces), self._elements // ROWS)
        return np.add.reduceat(sums, self._firsts)[self._wanted]


def _base(part: Part) -> tuple[int, int]:
    """Return the address and the dtype of a base; 0 where no row needs it."""
    needed = any(row.kind == "expert" for delta in part.deltas if (row := row_of(delta)))
    return part.base.data_ptr() if needed else 0, _DTYPES[part.base.dtype]


def _kind(delta: Delta) -> int | None:
    row = row_of(delta)
    return _KINDS.index((row.kind, row.dtype)) if row else None


def _has_kernel(part: Part) -> bool:
    return part.base.device.type == "cpu" and part.base.dtype in DTYPES and available() is None
