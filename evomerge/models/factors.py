"""Low-rank factors: the change of one parameter by a LoRA adapter, and how it is multiplied out.

In: B and A of an adapter (Hu et al. 2022, arXiv 2106.09685), laid out as the parameter is. Out: s·B·A, or any run of
its elements, in float32. An element is Σ_j B[i, j] A[j, c] for ascending j, each product rounded before it is added,
and then times s. So its bits do not depend on which other elements are asked for, nor on threads, as those of a matrix
product of BLAS do: what is scored and what is written are the same. Other devices than a CPU take a matrix product.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

BLOCK = 1 << 15
"""Elements that torch multiplies out together: few enough for a processor's cache."""
SMALL = 1 << 20
"""Products below which numba is not asked: loading its code would take longer."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Factors:
    """The change of one parameter, seen as a matrix: its first dimension, and all others together.

    Attributes:
        left: float32 (m, r).
        right: float32 (r, n).
        scale: s.
        module: the module whose weight it changes, as the adapter calls it.
    """

    left: Tensor
    right: Tensor
    scale: float
    module: str = ""

    @property
    def shape(self) -> tuple[int, int]:
        """The matrix's (m, n)."""
        return len(self.left), self.right.shape[1]

    @property
    def rank(self) -> int:
        """The number r of products that are added up for each element."""
        return len(self.right)

    @property
    def zero(self) -> bool:
        """Whether it changes nothing, as an adapter that was never trained."""
        return self.scale == 0 or not (bool(torch.any(self.left)) and bool(torch.any(self.right)))

    def to(self, device: torch.device) -> Factors:
        """Return the same on a device."""
        if self.left.device == device:
            return self
        return replace(self, left=self.left.to(device), right=self.right.to(device))

    def rows(self, first: int, last: int) -> Tensor:
        """Return some rows of the matrix, float32 (last − first, n)."""
        out = self.left.new_empty(last - first, self.right.shape[1])
        _multiply(self.left[first:last], self.right, self.scale, out)
        return out

    def write(self, start: int, out: Tensor) -> None:
        """Write a run of elements, counted row by row.

        Args:
            start: the first of them.
            out: where to write, float32 (k,).
        """
        width, stop = self.right.shape[1], start + len(out)
        first, last = -(-start // width), stop // width
        if first <= last:
            begin, end = first * width - start, last * width - start
            _multiply(self.left[first:last], self.right, self.scale, out[begin:end].view(-1, width))
        else:
            begin, end = len(out), len(out)
        for low, high in ((0, begin), (end, len(out))):  # in rows of which it has a part
            if low < high:
                row, place = divmod(start + low, width)
                out[low:high] = self.rows(row, row + 1)[0, place : place + high - low]

    def at(self, places: Tensor) -> Tensor:
        """Return some elements, float32 (k,).

        Args:
            places: int64 (k,), counted row by row.
        """
        rows, columns = places // self.right.shape[1], places % self.right.shape[1]
        total = torch.zeros(len(places), device=self.left.device)
        for j in range(self.rank):
            total += self.left[rows, j] * self.right[j, columns]
        return total.mul_(self.scale)

    def whole(self) -> Tensor:
        """Return all elements, float32 (m·n,)."""
        out = torch.empty(len(self.left) * self.right.shape[1], device=self.left.device)
        self.write(0, out)
        return out


def _multiply(left: Tensor, right: Tensor, scale: float, out: Tensor) -> None:
    """Write s · left · right, float32 (m, n)."""
    if left.device.type != "cpu":
        torch.mul(left @ right, scale, out=out)
        return
    if out.numel() * len(right) >= SMALL and (compiled := _compiled()) is not None:
        compiled(left.numpy(), right.numpy(), np.float32(scale), out.numpy())
        return
    some = max(1, BLOCK // max(out.shape[1], 1))
    for rows, target in zip(left.split(some), out.split(some), strict=True):
        target.zero_()
        one = torch.empty_like(target)
        for j in range(len(right)):
            target += torch.mul(rows[:, j : j + 1], right[j], out=one)
        target *= scale


@functools.cache
def _compiled() -> Callable[..., None] | None:
    """Return the compiled loop; None where numba is not supported, which the log says once."""
    try:
        from evomerge.models.multiplying import multiply
    except Exception as error:  # numba raises whatever its parts do on platforms that it does not support
        logger.warning("numba cannot be used here (%s): adapters are multiplied out by torch, which is slower", error)
        return None
    return multiply
