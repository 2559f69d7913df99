"""TIES, frozen before the search: trim each task vector, elect signs, keep what agrees (Yadav et al. 2023, section 3).

In: task vectors. Out: T_k = τ_k where it is among the largest of its own task vector and has the elected sign, else 0.
These are the deltas of AdaMerging++ (Yang et al. 2024), and Σ_k T_k is what TIES calls the disjoint sum. As in the
paper, and unlike mergekit, the trim is global over the model and the election knows no weights. Unlike the authors'
code, exactly floor(density · n) elements are kept, however many are equal: bfloat16 experts have few magnitudes.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.cuts import Cut, find_cuts
from evomerge.task_vectors.spans import CHUNK
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.magnitude import count


class TrimElect(Transform):
    """Trim, elect and keep what agrees; see the module's docstring.

    Args:
        density: which share of its elements each task vector keeps, of all elements of all parameters, zeros included.

    Raises:
        ConfigError: the density is no number above 0, up to 1.
    """

    name = "ties"
    title = "TIES: differences to the base trimmed by magnitude and signs elected, once"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    mergekit = "ties"

    def __init__(self, density: float = 0.2) -> None:
        if isinstance(density, bool) or not isinstance(density, int | float) or not 0 < density <= 1:
            raise ConfigError(
                f"The transform ties has density={density}: it is the share of its elements that a task vector keeps, "
                f"so write a number above 0, up to 1, such as 0.2 for 20 %."
            )
        self.density = float(density)

    def prepare(self, store: TaskVectors, statistics: Any) -> dict[str, dict[str, Cut]]:
        """Return what each row keeps: exactly floor(density · n) elements of the whole model, by magnitude."""
        total = sum(math.prod(shape) for shape in store.parameters.values())
        keep = count(self.density, total)
        return {row: find_cuts(store.deltas[row], keep, store.parameters) for row in store.rows}

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Cut]]
    ) -> dict[str, Tensor]:
        """Trim, and set to zero what does not have the sign of the sum of the trimmed deltas; a sum of 0 is plus."""
        result = {row: torch.empty_like(delta) for row, delta in deltas.items()}
        for start in range(0, max((delta.numel() for delta in deltas.values()), default=0), CHUNK):
            parts = {row: delta.view(-1)[start : start + CHUNK] for row, delta in deltas.items()}
            trimmed = {row: torch.where(state[row][name].keeps(part, start), part, 0.0) for row, part in parts.items()}
            plus = reduce(torch.add, trimmed.values()) >= 0
            for row, part in trimmed.items():
                result[row].view(-1)[start : start + CHUNK] = torch.where((part > 0) == plus, part, 0.0)
        return result
