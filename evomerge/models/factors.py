"""Low-rank factors: the change of one parameter by a LoRA adapter, and how it is multiplied out.

In: B and A of an adapter (Hu et al. 2022, arXiv 2106.09685), laid out as the parameter is. Out: s·B·A, or any run of
its elements, in float32. An element is Σ_j B[i, j] A[j, c] for ascending j, each product rounded before it is added,
and then times s. So its bits do not depend on which other elements are asked for, nor on threads, as those of a matrix
product of BLAS do: what is scored and what is written are the same. Other devices than a CPU take a matrix product.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

BLOCK = 1 << 15
"""Elements that are multiplied out together: few enough for a processor's cache."""


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
        return _product(self.left[first:last], self.right).mul_(self.scale)

    def write(self, start: int, out: Tensor) -> None:
        """Write a run of elements, counted row by row.

        Args:
            start: the first of them.
            out: where to write, float32 (k,).
        """
        width, stop = self.right.shape[1], start + len(out)
        some = max(1, BLOCK // width) if out.device.type == "cpu" else len(self.left)
        for first in range(start // width, -(-stop // width), some):
            last = min(first + some, -(-stop // width))
            begin, end = max(start, first * width), min(stop, last * width)
            out[begin - start : end - start] = self.rows(first, last).view(-1)[begin - first * width :][: end - begin]

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


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return left · right, float32 (m, n)."""
    if left.device.type != "cpu":
        return left @ right
    out, one = left.new_zeros(len(left), right.shape[1]), left.new_empty(len(left), right.shape[1])
    for j in range(len(right)):
        out += torch.mul(left[:, j : j + 1], right[j], out=one)
    return out
