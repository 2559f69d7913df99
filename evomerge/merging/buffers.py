"""The floating buffers of a live model, as a merge, the base and an expert have them.

In: those of the base, and what a merge has: tensors, or what makes them once its parameters are in the model. Out: the
live model's buffers, overwritten in place.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

Merged = Mapping[str, Tensor] | Callable[[], None]
"""The buffers of a merge by name; or what writes those of the candidate that is in the live model."""


class Buffers:
    """Writes the floating buffers of a live model.

    Args:
        model: the live model.
        base: those of the base, by name.
        merged: what a merge has of them.
    """

    def __init__(self, model: nn.Module, base: Mapping[str, Tensor], merged: Merged) -> None:
        self._live = {name: buffer for name, buffer in model.named_buffers() if name in base}
        self._base, self._merged = base, merged

    def merge(self) -> None:
        """Write those of the merge whose parameters are in the model."""
        if callable(self._merged):
            self._merged()
        else:
            self.write(self._merged)

    def restore(self) -> None:
        """Write those of the base."""
        self.write(self._base)

    @torch.no_grad()
    def write(self, tensors: Mapping[str, Tensor]) -> None:
        """Write these; others stay."""
        for name, tensor in tensors.items():
            if name in self._live:
                self._live[name].copy_(tensor)
