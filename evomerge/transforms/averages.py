"""Transforms that say how far to go from the base towards the average of the experts.

In: task vectors. Out: the same, each tensor times a factor that the angles between the experts give.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform


class ModelStock(Transform):
    """Go from the base towards the average of K experts as far as their angle says (Jang et al. 2024, section 3.3).

    The share of the way is t = K c / (1 + (K - 1) c), tensor by tensor, where c is the mean of the cosines between the
    task vectors of each two experts. Fine-tunes that differ by chance alone lie around their centre, and t leads to the
    point between base and average that is nearest to it. Where task vectors point away from each other there is no such
    point, and the base stays. One that is zero in a tensor has no angle there, and counts in the average alone.
    """

    name = "model_stock"
    title = "Model Stock: the average of the experts, as far from the base as the angles between them say"
    paper = "Jang et al. 2024, arXiv 2403.19522"
    mergekit = "model_stock"

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        """Return the number of task vectors, those that are zero somewhere included."""
        return len(store.rows)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the rows times t / K."""
        share = _share([delta.reshape(-1) for delta in deltas.values()], state)
        return {row: delta * (share / state) for row, delta in deltas.items()}


def _share(deltas: list[Tensor], number: int) -> float:
    """Return t, from 0 to 1: all of the way for a single expert, none where only one of several is not zero."""
    if number == 1:
        return 1.0
    lengths = [float(torch.linalg.vector_norm(delta)) for delta in deltas]
    cosines = [
        float((one / a) @ (other / b))
        for (one, a), (other, b) in combinations(zip(deltas, lengths, strict=True), 2)
        if a > 0 and b > 0
    ]
    cosine = sum(cosines) / len(cosines) if cosines else 0.0
    return way(number, cosine)


def way(number: int, cosine: float) -> float:
    """Return how far to go to the average of so many experts, 0 to 1, given the mean of their cosines."""
    return min(1.0, number * cosine / (1 + (number - 1) * cosine)) if cosine > 0 else 0.0
