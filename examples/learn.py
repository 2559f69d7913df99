"""Learn coefficients by a gradient: with evomerge's searcher and a loss, and by hand with an optimizer of one's own."""

import tempfile
from pathlib import Path

import numpy as np
import torch

import evomerge as em
from evomerge.demo.pico import build_pico


def by_search(candidate: em.Candidate, tasks: dict) -> em.Result:
    """AdaMerging's steps on the labels of the search items; every tenth point is a finalist."""
    searcher = em.gradient(lr=0.02, steps=20, schedule="cosine", every=10)
    return em.search(candidate, "classification", tasks, searcher=searcher, budget=26, select_items=60, report_items=60)


def by_hand(candidate: em.Candidate, inputs: dict[str, torch.Tensor], steps: int = 20) -> tuple[float, float]:
    """Pull the hidden states of the merge towards those of the first expert; return the loss before and after."""
    with torch.no_grad():
        first = candidate.family.experts[0]
        wanted = candidate.set({first: 1.0})(**inputs).last_hidden_state.clone()
    seen: list[float] = []

    def loss(model: torch.nn.Module) -> torch.Tensor:
        value = torch.nn.functional.mse_loss(model(**inputs).last_hidden_state, wanted)
        seen.append(float(value.detach()))
        return value

    x = candidate.space.start({"weight": 0.3})
    for _ in range(steps):
        candidate.apply(x)
        slope = candidate.gradient(loss)
        x = np.clip(x - 0.05 * np.sign(slope), candidate.space.low, candidate.space.high)
    candidate.base()
    return seen[0], seen[-1]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        suite = build_pico(Path(folder) / "pico")
        candidate = em.Candidate(em.Family(suite.base, suite.experts), space="tensor")
        tasks = {name: {"items": str(task.items), "head": str(task.head)} for name, task in suite.tasks.items()}
        print(by_search(candidate, tasks))
        print(
            "loss by hand: {:.4f} -> {:.4f}".format(*by_hand(candidate, {"input_ids": torch.tensor([[2, 7, 9, 4, 3]])}))
        )
