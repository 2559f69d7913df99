"""Transforms that look at what other task vectors say of an element: that it matters, or that it is free.

In: task vectors. Out: the same, with zeros where elements are left out, or weighted by how far they are trusted.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.cuts import count, find_cuts
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import Parts, by_chunks, share, whole


class Consensus(Transform):
    """Keep the elements that matter to several tasks (Wang et al. 2024, section 4).

    An element matters to a task where |τ_t| > threshold · |Σ_k τ_k - τ_t|. In the paper the threshold of each task is
    chosen by its labels; here it is one for all.

    Args:
        threshold: how large an element must be beside all others together.
        agree: to how many tasks it must matter: 2 drops what is selfish or useless, 1 what is useless.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "consensus"
    title = "Consensus: differences to the base where they matter to several tasks"
    paper = "Wang et al. 2024, arXiv 2405.07813"

    def __init__(self, threshold: float = 0.4, agree: int = 2) -> None:
        self.threshold, self.agree = _threshold(self.name, threshold), whole(self.name, "agree", agree)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows where enough tasks agree."""

        def agreed(start: int, parts: Parts) -> Parts:
            matters = _matters(parts, reduce(torch.add, parts.values()), self.threshold)
            kept = torch.stack(list(matters.values())).sum(0) >= self.agree
            return {row: torch.where(kept, part, 0) for row, part in parts.items()}

        return by_chunks(deltas, list(deltas), agreed)


class Tall(Transform):
    """TALL masks: of the sum of all task vectors, for each task the elements that matter to it (Wang et al. 2024,
    section 3).

    One row with weight 1, and all others with 0, is the model that the paper gives the task of that row; weights of
    several rows mix these models. Which elements matter is said at `Consensus`.

    Args:
        threshold: how large an element must be beside all others together.

    Raises:
        ConfigError: it means nothing.
    """

    name = "tall"
    title = "TALL masks: for each task, the elements of the sum of all differences to the base that matter to it"
    paper = "Wang et al. 2024, arXiv 2405.07813"

    def __init__(self, threshold: float = 0.4) -> None:
        self.threshold = _threshold(self.name, threshold)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the sum, in each row where it matters to the task of the row."""

        def masked(start: int, parts: Parts) -> Parts:
            total = reduce(torch.add, parts.values())
            return {row: torch.where(m, total, 0) for row, m in _matters(parts, total, self.threshold).items()}

        return by_chunks(deltas, list(deltas), masked)


def _matters(parts: Parts, total: Tensor, threshold: float) -> Parts:
    """Return for each task which of some elements matter to it, bool; `total` is their sum over the tasks."""
    return {row: part.abs() > threshold * (total - part).abs() for row, part in parts.items()}


def _threshold(name: str, threshold: Any) -> float:
    """Return a setting that must be a number from 0 on.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(threshold, bool) or not isinstance(threshold, int | float) or not 0 <= threshold < 1e6:
        raise ConfigError(f"The transform {name} has threshold={threshold}: write a number from 0 on, such as 0.4.")
    return float(threshold)


class Cabs(Transform):
    """Keep `keep` of every `of` elements, and none that an earlier task vector has kept (Yang et al. 2025, section 4).

    The first expert chooses the largest elements of each block, the next one the largest of those that are left, and so
    on; the order of the experts decides. Elements of a last block that is not whole are left out, as in the authors'
    code.

    Args:
        keep: how many elements of a block each task vector keeps.
        of: the size of a block: elements of the flattened tensor that follow each other.

    Raises:
        ConfigError: a setting is no whole number, or a block is smaller than what is kept of it.
    """

    name = "cabs"
    title = "CABS: differences to the base sparse in every block, and apart from each other"
    paper = "Yang et al. 2025, arXiv 2503.01874"

    def __init__(self, keep: int = 64, of: int = 256) -> None:
        self.keep, self.of = whole(self.name, "keep", keep), whole(self.name, "of", of)
        if keep > of:
            raise ConfigError(f"The transform cabs keeps {keep} of {of}: write a keep that is not larger than `of`.")

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows with what each may keep."""
        result: dict[str, Tensor] = {}
        taken: Tensor | None = None
        for row, delta in deltas.items():
            flat = delta.reshape(-1)
            blocks = flat[: len(flat) // self.of * self.of].reshape(-1, self.of)
            taken = torch.zeros(blocks.shape, dtype=torch.bool) if taken is None else taken
            free = torch.where(taken, 0, blocks)
            chosen = torch.argsort(free.abs(), dim=1, descending=True, stable=True)[:, : self.keep]
            kept = torch.zeros_like(free).scatter_(1, chosen, free.gather(1, chosen))
            taken |= torch.zeros_like(taken).scatter_(1, chosen, True)
            result[row] = torch.zeros_like(delta)
            result[row].view(-1)[: blocks.numel()] = kept.reshape(-1)
        return result


class Sce(Transform):
    """Select, calculate, erase (Wan et al. 2024, section 3.3), as mergekit does it: tensor by tensor.

    Select the elements whose variance over the experts is largest; weigh each expert by the mean square of its selected
    elements; erase those whose sign is not that of their sum; and divide by the weights that are left.

    Args:
        density: which share of the elements that vary is selected.

    Raises:
        ConfigError: it is no share.
    """

    name = "sce"
    title = "SCE: elements selected by variance, experts weighted by their squares, minority signs erased"
    paper = "Wan et al. 2024, arXiv 2408.07990"
    mergekit = "sce"

    def __init__(self, density: float = 1.0) -> None:
        self.density = share(self.name, "density", density, example=0.1)

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        """Return the number of task vectors, those that are zero somewhere included."""
        return len(store.rows)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the rows, each times its weight over the sum of all that agree."""
        if not deltas:
            return {}
        selected = self._selected(deltas, state)
        squares = {row: float((torch.where(selected, d, 0).double() ** 2).mean()) for row, d in deltas.items()}
        total = sum(squares.values())
        even = total < 1e-6  # as in mergekit: there is nothing to weigh by
        weights = {row: 1 / state if even else square / total for row, square in squares.items()}
        flat = selected.reshape(-1)

        def weighed(start: int, parts: Parts) -> Parts:
            held = {row: torch.where(flat[start : start + len(part)], part, 0) for row, part in parts.items()}
            plus = reduce(torch.add, held.values()) >= 0
            agree = {row: (part != 0) & ((part > 0) == plus) for row, part in held.items()}
            divisor = reduce(torch.add, [weights[row] * each.float() for row, each in agree.items()]).clamp(min=1e-6)
            return {row: torch.where(agree[row], weights[row] * part / divisor, 0) for row, part in held.items()}

        return by_chunks(deltas, list(deltas), weighed)

    def _selected(self, deltas: Mapping[str, Tensor], rows: int) -> Tensor:
        """Return which elements are selected, bool of the parameter's shape."""
        first = next(iter(deltas.values()))
        if self.density == 1:
            return torch.ones(first.shape, dtype=torch.bool)

        def variance(start: int, parts: Parts) -> Parts:
            mean = reduce(torch.add, parts.values()) / rows
            absent = (rows - len(parts)) * mean**2
            return {"": reduce(torch.add, [(part - mean) ** 2 for part in parts.values()], absent) / rows}

        spread = by_chunks(deltas, [""], variance)[""].reshape(-1)
        kept = count(self.density, int(torch.count_nonzero(spread)))
        cut = find_cuts({0: DenseDelta(spread)}, kept, [0])[0]
        return cut.keeps(spread).reshape(first.shape)
