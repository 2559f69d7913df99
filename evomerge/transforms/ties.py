"""TIES, frozen before the search: trim each task vector, elect signs, keep what agrees (Yadav et al. 2023, section 3).

In: task vectors. Out: T_k = τ_k where it is among the largest of its own task vector and has the elected sign, else 0.
These are the deltas of AdaMerging++ (Yang et al. 2024), and Σ_k T_k is what TIES calls the disjoint sum. As in the
paper, and unlike mergekit, the trim is global over the model and the election knows no weights. Unlike the authors'
code, exactly floor(density · n) elements are kept, however many are equal: bfloat16 experts have few magnitudes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from evomerge.task_vectors.cuts import Cut
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.magnitude import Trim, trimmed
from evomerge.transforms.parts import by_chunks, share
from evomerge.transforms.signs import Elect


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
        self.density = share(self.name, "density", density)
        self._trim, self._elect = Trim(self.density), Elect()

    def prepare(self, store: TaskVectors, statistics: Any) -> dict[str, dict[str, Cut]]:
        """Return what each row keeps: exactly floor(density · n) elements of the whole model, by magnitude."""
        return self._trim.prepare(store, statistics)

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Cut]]
    ) -> dict[str, Tensor]:
        """Trim, and set to zero what does not have the sign of the sum of the trimmed deltas; a sum of 0 is plus."""
        cuts = {row: state[row][name] for row in deltas}
        return by_chunks(
            deltas, list(deltas), lambda start, parts: self._elect.agreeing(trimmed(cuts, start, parts), True)
        )
