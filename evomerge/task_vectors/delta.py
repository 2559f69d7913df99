"""What a task vector is for one parameter, or for a run of its elements: a delta.

In: nothing but what a kind keeps. Out: a few operations, the same for every kind, so that nobody outside
`task_vectors/` and `kernels/` asks which kind it is. A delta is flat: n elements, in the order of the parameter's. Its
numbers are float32 whatever it keeps. There is one file for each kind:

    dense.py      the task vector itself, float32 or bfloat16, in memory or mapped from a file
    expert.py     θ_k in its own dtype, from which θ₀ is subtracted where the task vector is needed
    low_rank.py   s·B·A, two factors of which it is the product
    quantised.py  codes of 8 or 4 bits, with a step and a zero for each group of 64 elements
    masked.py     some of the elements of another delta, by a mask of bits

A task vector that is zero has no delta: a store gives None in its place.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Layout:
    """What a kernel reads of a delta.

    Attributes:
        kind: `dense` (the task vector itself), `expert` (θ_k, from which θ₀ is subtracted), `int8` or `int4`
            (`quantised.py`), `low_rank` (which kernels get multiplied out); and before it `masked ` where a mask lies
            over it.
        tensors: what is kept, flat: the values of the first two kinds, whose dtype says the rest; codes, steps and
            zeros of the quantised ones; the factors of the last, which are matrices; then the words of the mask.
        start: the element of all these at which the delta begins.
    """

    kind: str
    tensors: tuple[Tensor, ...]
    start: int = 0


class Delta(Protocol):
    """A task vector in some elements, for reading only; see the module's docstring."""

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept for it."""
        ...

    @property
    def bound(self) -> float:
        """How far an element of it may be from the task vector that it stands for, at most; 0 where nothing is lost."""
        ...

    def __len__(self) -> int:
        """Return n, the number of its elements."""
        ...

    def __getitem__(self, span: slice) -> Self:
        """Return the delta of some of its elements; nothing is computed or copied."""
        ...

    def at(self, places: Tensor) -> Tensor:
        """Return the task vector in some elements, float32 (m,).

        Args:
            places: of these elements, int64 (m,), in any order.
        """
        ...

    def over(self, base: Tensor) -> Self:
        """Return the same delta on the device of the base, and with the base in place of its own copy, if it has one.

        Args:
            base: θ₀ in these elements, (n,), of the dtype in which it is kept or of float32.
        """
        ...

    def held(self, pinned: bool) -> Self:
        """Return the same with all that is kept for it copied into memory, in place of a mapped file; without the base.

        Args:
            pinned: whether a device may read that memory by itself.
        """
        ...

    def dense(self) -> Tensor:
        """Return the task vector, float32 (n,)."""
        ...

    def added(self, base: Tensor) -> Tensor:
        """Return θ₀ + τ, float32 (n,); of a kept expert that is θ_k itself, without a rounding.

        Args:
            base: θ₀ in these elements, float32 (n,).
        """
        ...

    def layout(self) -> Layout:
        """Return what a kernel reads."""
        ...

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ into `out`, float32 (n,)."""
        ...

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ to `out`, float32 (n,); each product is rounded before it is added."""
        ...


def copied(tensor: Tensor, pinned: bool) -> Tensor:
    """Return a copy in memory, pinned or not."""
    return tensor.pin_memory() if pinned else tensor.clone()


def add_product(out: Tensor, values: Tensor, weight: float) -> None:
    """Add λ·values to `out`, both float32 (n,); each product is rounded before it is added."""
    # a division by one stands between product and sum, or the processor would fuse them; that takes a tenth more time
    torch.addcdiv(out, values, _one(out.device), value=weight, out=out)


@functools.cache
def _one(device: torch.device) -> Tensor:
    return torch.ones((), device=device)
