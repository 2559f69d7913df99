"""Transforms of matrices by their singular values; what is no matrix is averaged.

In: task vectors; each matrix of one is decomposed as U diag(s) Vᵀ, in float32. Out: rows, matrix by matrix. Large
matrices take a while: `only` leaves embeddings out, and with `rest=average` they are averaged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.parts import positive, share, whole
from evomerge.transforms.svd import EXACT, Svd, checked_way, leading, orthogonal, svd

_share = share  # where an argument is called so


def truncated(matrix: Tensor, share: float, how: str) -> Tensor:
    """Return the nearest matrix that has but a share of the singular values, at least one."""
    return leading(matrix, max(1, int(share * min(matrix.shape) + 1e-9)), how).product()


class _Leading(Transform):
    """A transform that needs the largest singular values alone; abstract.

    Attributes:
        svd: how they are found (see `svd.leading`).
    """

    svd: str

    @property
    def settings(self) -> dict[str, Any]:
        """All settings; `svd` only where it is not the usual, which earlier recipes do not name."""
        return {name: value for name, value in super().settings.items() if (name, value) != ("svd", EXACT)}


class Truncate(_Leading):
    """Keep the largest singular values of each matrix: T_k is the nearest matrix to τ_k of a lower rank.

    By itself it shows what the low-rank step of the other spectral methods does.

    Args:
        share: which share of the singular values is kept, at least one.
        svd: `exact` or `randomised`.

    Raises:
        ConfigError: it is no share, or there is no such way.
    """

    name = "truncate"
    title = "differences to the base of a lower rank"
    paper = "Eckart and Young 1936, The approximation of one matrix by another of lower rank"

    def __init__(self, share: float = 0.2, svd: str = EXACT) -> None:
        self.share, self.svd = _share(self.name, "share", share), checked_way(self.name, svd)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the rows of a lower rank; those of what is no matrix as they are."""
        return {row: truncated(d, self.share, self.svd) if d.dim() == 2 else d for row, d in deltas.items()}


class _Mean(Transform):
    """A transform that averages what is no matrix; abstract."""

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        """Return the number of task vectors, those that are zero somewhere included."""
        return len(store.rows)


class Star(_Mean):
    """Keep the directions that carry most, and scale them up to carry all (Lee et al. 2025, section 3).

    The first singular values whose sum reaches a share of all are kept, and multiplied by what was lost; then all task
    vectors are averaged.

    Args:
        energy: the share of the sum of the singular values.

    Raises:
        ConfigError: it is no share.
    """

    name = "star"
    title = "STAR: differences to the base of a lower rank, rescaled and averaged"
    paper = "Lee et al. 2025, arXiv 2502.10339"

    def __init__(self, energy: float = 0.4) -> None:
        self.energy = share(self.name, "energy", energy, example=0.4)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the rescaled rows, over their number."""
        return {row: (self._kept(d) if d.dim() == 2 else d) / state for row, d in deltas.items()}

    def _kept(self, delta: Tensor) -> Tensor:
        found = svd(delta)
        sums = found.s.double().cumsum(0)
        rank = 1 + int(torch.searchsorted(sums, self.energy * sums[-1] * (1 - 1e-9)))
        kept = found.first(min(rank, len(sums)))
        return kept._replace(s=kept.s * float(sums[-1] / sums[len(kept.s) - 1])).product()


class TsvM(_Leading, _Mean):
    """Merge the largest singular vectors of all tasks, made orthogonal (Gargiulo et al. 2025, section 4: TSV-M).

    Of each of K tasks the first ⌊min(m, n) / K⌋ are kept. The left ones of all tasks together are replaced by the
    nearest orthogonal ones, and so are the right ones.

    Args:
        svd: how these are found: `exact` or `randomised`.

    Raises:
        ConfigError: there is no such way.
    """

    name = "tsvm"
    title = "TSV-M: singular vectors of all tasks made orthogonal"
    paper = "Gargiulo et al. 2025, arXiv 2412.00081"

    def __init__(self, svd: str = EXACT) -> None:
        self.svd = checked_way(self.name, svd)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return what each task adds: its block of the orthogonal vectors."""
        rank = min(next(iter(deltas.values())).shape) // state if matrices(deltas) else 0
        if not rank:
            return {row: delta / state for row, delta in deltas.items()}
        kept = [leading(delta, rank, self.svd) for delta in deltas.values()]
        u = orthogonal(torch.cat([one.u for one in kept], dim=1)).split(rank, dim=1)
        v = orthogonal(torch.cat([one.v for one in kept], dim=1)).split(rank, dim=1)
        return {row: Svd(u[k], kept[k].s, v[k]).product() for k, row in enumerate(deltas)}


class IsoC(_Mean):
    """One row: the sum of all task vectors, its singular values all replaced by their mean (Marczak et al. 2025,
    section 4: Iso-C).
    """

    name = "iso_c"
    title = "Iso-C: the sum of the differences to the base, as strong in all its directions"
    paper = "Marczak et al. 2025, arXiv 2502.04959"

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the one row."""
        return ["merged"]

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the row."""
        if not deltas:
            return {}
        total = sum(deltas.values(), torch.zeros(()))
        if not matrices(deltas):
            return {"merged": total / state}
        found = svd(total)
        return {"merged": found._replace(s=found.s.mean().expand_as(found.s)).product()}


class IsoCts(_Mean):
    """A common row, and one of each task: the directions of the sum, and what each task has beside them; all as strong
    (Marczak et al. 2025, section 4: Iso-CTS).

    How strong is the mean of all singular values, as many as the smaller side of the matrix has. An expert that left a
    matrix as it was has zeros among them, and no directions: the authors' code gives it some that mean nothing.

    Args:
        share: which share of the directions is common.
        zeros: whether these zeros count in the mean. They did not before there was this setting.

    Raises:
        ConfigError: `share` is no share.
    """

    name = "iso_cts"
    title = "Iso-CTS: common and task-specific directions, all as strong"
    paper = "Marczak et al. 2025, arXiv 2502.04959"

    def __init__(self, share: float = 0.8, zeros: bool = True) -> None:
        self.share, self.zeros = _share(self.name, "share", share), zeros

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the common row and the experts'."""
        return ["common", *experts]

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the rows."""
        if not matrices(deltas):
            return {row: delta / state for row, delta in deltas.items()}
        total = svd(sum(deltas.values(), torch.zeros(())))
        size = len(total.s)
        each = min(round((size - int(size * self.share)) / state), size // state)
        common = total.first(size - each * state)
        own = [svd(delta - common.u @ (common.u.T @ delta)).first(each) for delta in deltas.values()]
        blocks = [*own, common]
        ranks = [len(block.s) for block in blocks]
        u = orthogonal(torch.cat([block.u for block in blocks], dim=1)).split(ranks, dim=1)
        v = orthogonal(torch.cat([block.v for block in blocks], dim=1)).split(ranks, dim=1)
        absent = torch.zeros(size - sum(ranks) if self.zeros else 0)
        mean = torch.cat([*(block.s for block in blocks), absent]).mean()
        made = [Svd(u[k], mean.expand(rank), v[k]).product() for k, rank in enumerate(ranks)]
        return {"common": made[-1], **dict(zip(deltas, made[:-1], strict=True))}


class Cart(_Leading):
    """The average of all experts as a row, and what each has beside it, of a lower rank (Choi et al. 2024: CART).

    The paper's λ is for what each has beside the average, which has a weight of 1. Of two experts with one weight it is
    their average: what each has beside it is the opposite of the other's. What is no matrix keeps its rank, and so it
    is averaged where the experts have one weight.

    Args:
        share: which share of the singular values of each centred matrix is kept, at least one.
        scale: the factor of all rows but the average, λ in the paper.
        svd: how the singular values are found: `exact` or `randomised`.

    Raises:
        ConfigError: there is no such share, factor or way.
    """

    name = "cart"
    title = "CART: the average of the experts, and their differences to it of a lower rank"
    paper = "Choi et al. 2024, arXiv 2412.12153"
    unscaled = ("average",)

    def __init__(self, share: float = 0.12, scale: float = 2.0, svd: str = EXACT) -> None:
        self.share, self.svd = _share(self.name, "share", share, example=0.12), checked_way(self.name, svd)
        self.scale = positive(self.name, "scale", scale, example=2.0)

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the average and the experts'."""
        return ["average", *experts]

    def prepare(self, store: TaskVectors, statistics: None) -> tuple[str, ...]:
        """Return all task vectors by name: one that is zero somewhere is averaged, too."""
        return tuple(store.rows)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: tuple[str, ...]) -> dict[str, Tensor]:
        """Return the rows."""
        if not deltas:
            return {}
        average = sum(deltas.values(), torch.zeros(())) / len(state)
        made = {"average": average}
        for row in state:
            centred = deltas[row] - average if row in deltas else -average
            made[row] = self.scale * (truncated(centred, self.share, self.svd) if centred.dim() == 2 else centred)
        return made


class Ranks(Transform):
    """Split each matrix by its singular values, a row for each part, so that each part has a coefficient of its own.

    The first part has the largest singular values, and each reaches twice as far as the one before; of a matrix with no
    more of them than parts, each part is one. Together they are the task vector. What is no matrix
    stays in a row of the expert's name. With masks over the weights of parts, learned by gradient, it is AdaRank (Lee
    et al. 2025), which has a mask for each singular value.

    Args:
        parts: how many.

    Raises:
        ConfigError: it is no such number.
    """

    name = "ranks"
    title = "differences to the base in parts by singular values"
    paper = "Lee et al. 2025, arXiv 2503.22178"
    alone = "with one weight for all its rows it is task arithmetic"

    def __init__(self, parts: int = 8) -> None:
        self.parts = whole(self.name, "parts", parts)

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return for each expert its own row, and its parts from 1."""
        return [row for expert in experts for row in (expert, *(f"{expert}.{p + 1}" for p in range(self.parts)))]

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: None) -> dict[str, Tensor]:
        """Return the parts of matrices, and what is no matrix as it is."""
        made: dict[str, Tensor] = {}
        for row, delta in deltas.items():
            if delta.dim() != 2:
                made[row] = delta
                continue
            u, s, v = svd(delta)
            for part, some in enumerate(self._places(len(s))):
                made[f"{row}.{part + 1}"] = Svd(u[:, some], s[some], v[:, some]).product()
        return made

    def _places(self, rank: int) -> list[slice]:
        """Return where the singular values of each part are, among so many."""
        ends = [0]
        for part in range(self.parts):
            ends.append(min(max(rank >> (self.parts - 1 - part), ends[-1] + 1), rank))
        return [slice(*pair) for pair in pairwise(ends)]


def matrices(deltas: Mapping[str, Tensor]) -> bool:
    """Return whether deltas are matrices, and there is one."""
    return all(delta.dim() == 2 for delta in deltas.values()) and bool(deltas)
