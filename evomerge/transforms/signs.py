"""Transforms in which task vectors agree on the sign, or on the owner, of each element.

In: task vectors. Out: of each one the elements that it may keep; or one row that stands for all of them. After a trim,
an election is TIES in any of its published forms: `transform=[trim,elect]`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.spans import CHUNK, chunks
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import Parts, by_chunks, one_of


class Elect(Transform):
    """Elect the sign of each element, and keep what agrees (Yadav et al. 2023, section 3).

    Args:
        by: the `sum` of the elements, or the `count` of their signs.
        join: whether what agrees is to be added up (`sum`), or averaged (`mean`): then each row is divided by how many
            agree, as the paper does.
        zero: the sign where the sum is 0: `plus`, or that of the `majority` of all elements, as in the authors' code,
            where that is minus if it is 0 as well.

    Raises:
        ConfigError: a setting is none of these.
    """

    name = "elect"
    title = "signs elected, and differences to the base kept where they agree"
    paper = "Yadav et al. 2023, arXiv 2306.01708"

    def __init__(self, by: str = "sum", join: str = "sum", zero: str = "plus") -> None:
        self.by = one_of(self.name, "by", by, ("sum", "count"))
        self.join = one_of(self.name, "join", join, ("sum", "mean"))
        self.zero = one_of(self.name, "zero", zero, ("plus", "majority"))

    def prepare(self, store: TaskVectors, statistics: Any) -> bool:
        """Return whether a sum of 0 counts as plus."""
        if self.zero == "plus":
            return True
        balance = 0
        for name in store.parameters:
            found = [store.deltas[row][name] for row in store.rows if name in store.deltas[row]]
            for chunk in chunks(len(found[0]) if found else 0, CHUNK):
                balance += int(self._votes([delta[chunk].dense() for delta in found]).sign().sum())
        return balance > 0

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: bool) -> dict[str, Tensor]:
        """Return the rows with what agrees."""
        return by_chunks(deltas, list(deltas), lambda start, parts: self.agreeing(parts, state))

    def agreeing(self, parts: Parts, zero: bool) -> Parts:
        """Return some elements of rows with zeros where they have not the elected sign.

        Args:
            parts: the same elements of all rows.
            zero: whether a sum of 0 counts as plus.
        """
        votes = self._votes(list(parts.values()))
        plus = votes >= 0 if zero else votes > 0
        kept = {row: torch.where((part > 0) == plus, part, 0) for row, part in parts.items()}
        if self.join == "sum":
            return kept
        number = reduce(torch.add, [(part != 0).float() for part in kept.values()]).clamp(min=1)
        return {row: part / number for row, part in kept.items()}

    def _votes(self, parts: Sequence[Tensor]) -> Tensor:
        return reduce(torch.add, parts if self.by == "sum" else [part.sign() for part in parts])


class MagMax(Transform):
    """Leave each element to the task vector in which it is largest (Marczak et al. 2024); of equal ones, to the last.

    With the same weight for all rows that is the paper's one merged vector.
    """

    name = "magmax"
    title = "MagMax: each element of the one expert that changed it most"
    paper = "Marczak et al. 2024, arXiv 2407.06322"

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return what each row owns."""

        def owned(start: int, parts: Parts) -> Parts:
            largest, owner = torch.zeros(len(next(iter(parts.values())))), torch.tensor(-1)
            for place, part in enumerate(parts.values()):
                size = part.abs()
                owner = torch.where(size >= largest, place, owner)
                largest = torch.maximum(size, largest)
            return {row: torch.where(owner == place, part, 0) for place, (row, part) in enumerate(parts.items())}

        return by_chunks(deltas, list(deltas), owned)


class Unified(Transform):
    """One row: the elected sign, and the largest of the elements that have it (Huang et al. 2024, section 4: EMR).

    That is what the experts of EMR-Merging share; its masks and scales, one of each for every task, make other models
    of it, which no merge can hold. A sum of 0 counts as minus, as in the authors' code.
    """

    name = "unified"
    title = "the unified task vector of EMR-Merging: elected signs, and the largest element that has them"
    paper = "Huang et al. 2024, arXiv 2405.17461"

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the one row."""
        return ["unified"]

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the unified row."""

        def unified(start: int, parts: Parts) -> Parts:
            plus = reduce(torch.add, parts.values()) > 0
            agreeing = [torch.where((part > 0) == plus, part.abs(), 0) for part in parts.values()]
            largest = reduce(torch.maximum, agreeing)
            return {"unified": torch.where(plus, largest, -largest)}

        return by_chunks(deltas, self.rows([]), unified)
