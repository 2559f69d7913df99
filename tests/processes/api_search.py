"""A search from Python that may kill itself."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import torch

import evomerge as em

CALLS = {"left": -1}


class Net(torch.nn.Module):
    """An embedding, two layers and a head, drawn from a seed."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(90, 8)
        self.layers = torch.nn.ModuleList([torch.nn.Linear(8, 8) for _ in range(2)])
        self.head = torch.nn.Linear(8, 3)
        generator = torch.Generator().manual_seed(seed)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids)
        for layer in self.layers:
            x = torch.tanh(layer(x))
        return self.head(x)


def tuned(model: torch.nn.Module, seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    state = model.state_dict()
    drawn = {name: 0.3 * torch.randn(tensor.shape, generator=generator) for name, tensor in state.items()}
    return {name: tensor + drawn[name].to(tensor.dtype) for name, tensor in state.items()}


def score(model, items):
    CALLS["left"] -= 1
    if CALLS["left"] == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with torch.no_grad():
        logits = model(torch.tensor([int(item.text) for item in items])).float().log_softmax(-1)
    return logits[torch.arange(len(items)), torch.tensor([item.label for item in items])]


def run(path: Path, dtype: torch.dtype = torch.float32, compute: str = "auto") -> em.Result:
    net = Net().to(dtype)
    candidate = em.Candidate(em.Family(net, red=tuned(net, 1), blue=tuned(net, 2), compute=compute), space="layer")
    tasks = {"red": em.items((str(i), i % 3) for i in range(90))}
    return em.search(candidate, score, tasks, searcher=em.cmaes(sigma=0.2), budget=24, run=path)


def run_and_die(path: Path, calls: int, *weights: Any) -> None:
    """Be killed within the `calls`-th call of the fitness."""
    torch.set_num_threads(1)
    CALLS["left"] = calls
    run(path, *weights)
