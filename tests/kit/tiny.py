"""A model of two blocks with a tied head, checkpoints in memory, and coefficients for tests of merges."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.models.checkpoint import from_tensors as checkpoint

__all__ = ["Tiny", "checkpoint", "state", "weights"]


class Tiny(nn.Module):
    """Two blocks between an embedding and a head that is tied to it."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.embed = nn.Embedding(7, 4)
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(2)])
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)
        self.head.weight = self.embed.weight
        self.to(dtype).requires_grad_(False)


def weights(groups: int, *values: float) -> dict[str, np.ndarray]:
    return {"weight": np.tile(np.array(values), (groups, 1)), "density": np.full((groups, len(values)), 0.6)}


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: parameter.clone() for name, parameter in model.named_parameters()}
