"""Models and task vectors of so few bits that their merges are exact in float32, in any order of the sum."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors
from tests.kit.models import LLAMA, LLAMA_TIED, pico
from tests.kit.tiny import Tiny, checkpoint

EXPERTS = ("a", "b", "c")


def rounded(tensor: Tensor, unit: float) -> Tensor:
    """So few bits that sums of a base and scaled deltas are exact in float32, in any order."""
    return (tensor / unit).round() * unit


def llama(tied: bool = True, dtype: torch.dtype = torch.float64) -> Any:
    model: Any = pico(LlamaForCausalLM, LLAMA_TIED if tied else LLAMA).eval().requires_grad_(False)
    for parameter in model.parameters():
        parameter.data = rounded(parameter.data / 8, 2**-6)
    return model.to(dtype)


def tiny(dtype: torch.dtype = torch.float32) -> Any:
    model = Tiny(dtype)
    for parameter in model.parameters():
        parameter.data = rounded(parameter.data, 2**-6)
    return model


def vectors_of(model: nn.Module, absent: tuple[tuple[str, str], ...] = ()) -> TaskVectors:
    base = {name: parameter.clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    deltas = {
        expert: {
            name: rounded(torch.randn(p.shape, generator=generator) / 16, 2**-8)
            for name, p in base.items()
            if (expert, name) not in absent
        }
        for expert in EXPERTS
    }
    shapes = {name: tuple(p.shape) for name, p in base.items()}
    rows = {expert: flattened(held) for expert, held in deltas.items()}
    return TaskVectors(checkpoint(base), {e: checkpoint({}) for e in EXPERTS}, shapes, rows)
