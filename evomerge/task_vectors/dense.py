"""The kind `dense`: the task vector itself, float32 or bfloat16, in memory or mapped from a file (`files.py`)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Layout, add_product, copied

ALIGNMENT = 64  # bytes: a line of the processor's cache, and the widest register

SMALLEST = 2.0**-133
"""The smallest number above 0 in bfloat16."""


@dataclass(frozen=True, eq=False)
class DenseDelta:
    """A task vector as it is.

    Attributes:
        values: float32 (n,); or bfloat16, rounded half to even.
    """

    values: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the values."""
        return self.values.nbytes

    @property
    def bound(self) -> float:
        """0 in float32; in bfloat16, half of a unit in the last of 8 binary places of the largest element."""
        if self.values.dtype == torch.float32:
            return 0.0
        largest = float(self.values.abs().max()) if len(self.values) else 0.0
        return max(2.0 ** (math.frexp(largest)[1] - 9) if largest else 0.0, SMALLEST / 2)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, span: slice) -> DenseDelta:
        return DenseDelta(self.values[span])

    def at(self, places: Tensor) -> Tensor:
        """Return some of the values."""
        return self.values[places].float()

    def over(self, base: Tensor) -> DenseDelta:
        """Return it on the device of the base, of which it needs nothing else."""
        return self if self.values.device == base.device else DenseDelta(self.values.to(base.device))

    def held(self, pinned: bool) -> DenseDelta:
        """Return it copied into memory."""
        return DenseDelta(copied(self.values, pinned))

    def dense(self) -> Tensor:
        """Return the values, themselves if they are float32."""
        return self.values.float()

    def added(self, base: Tensor) -> Tensor:
        """Return θ₀ + τ."""
        return base + self.values

    def layout(self) -> Layout:
        """Return the values."""
        return Layout("dense", (self.values,))

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ."""
        torch.mul(self.dense(), weight, out=out)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ."""
        add_product(out, self.dense(), weight)


def flattened(tensors: Mapping[str, Tensor]) -> dict[str, DenseDelta]:
    """Return the deltas of float32 tensors, by parameter."""
    return {name: DenseDelta(tensor.reshape(-1)) for name, tensor in tensors.items()}
