"""Transforms that minimise a loss of the task vectors alone, once, before the search: they need no data.

In: task vectors. Out: one merged row, or the experts' rows with a common change added; matrix by matrix. The losses are
sums of squares, so their gradients stand here as they are, and nothing is drawn: the same task vectors give the same
rows. All of it is float32. Some hundred steps on a large matrix take a while; `only` leaves embeddings out, which most
papers average (`rest=average`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from evomerge.task_vectors.cuts import Cut, find_cuts
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.base import Transform
from evomerge.transforms.magnitude import count
from evomerge.transforms.parts import positive, share, whole
from evomerge.transforms.spectral import matrices
from evomerge.transforms.svd import NOISE, svd

Gradient = Callable[[Tensor], Tensor]


class _Merged(Transform):
    """A transform that makes one row; what is no matrix is averaged. Abstract.

    Args:
        steps: how many are taken.
        rate: how large they are.
    """

    def __init__(self, steps: int, rate: float) -> None:
        self.steps = whole(self.name, "steps", steps, 0)
        self.rate = positive(self.name, "rate", rate, example=1e-5)

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the one row."""
        return ["merged"]

    def prepare(self, store: TaskVectors, statistics: Any) -> int:
        """Return the number of task vectors, those that are zero somewhere included."""
        return len(store.rows)


class Wudi(_Merged):
    """One row that disturbs no task vector in the directions of that task vector (Cheng et al. 2025: WUDI).

    From the sum of all task vectors, Adam minimises Σ_k ‖(M - τ_k) τ_kᵀ‖² / ‖τ_k‖² over M. The size of its steps does
    not depend on the task vectors, so those of another scale get there sooner or later.

    Args:
        steps: how many are taken.
        rate: how large they are.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "wudi"
    title = "WUDI: one difference to the base, optimised to disturb none of the experts'"
    paper = "Cheng et al. 2025, arXiv 2503.08099"

    def __init__(self, steps: int = 300, rate: float = 1e-5) -> None:
        super().__init__(steps, rate)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the row."""
        if not (deltas := _changed(deltas)):
            return {}
        total = sum(deltas.values(), torch.zeros(()))
        if not matrices(deltas):
            return {"merged": total / state}
        found = list(deltas.values())
        return {"merged": _adam(total, _disturbance(found, found), self.steps, self.rate)}


class OptMerge(_Merged):
    """The same of low-rank parts of the task vectors, from their average, by momentum (Wei et al. 2025: OptMerge).

    Of each of K task vectors the loss sees the first ⌊min(m, n) / K⌋ singular values. In the paper embeddings, the head
    and the vision tower are left out.

    Args:
        steps: how many are taken.
        rate: how large they are, as a share of the gradient.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "optmerge"
    title = "OptMerge: the average difference to the base, optimised to disturb the experts' strongest parts little"
    paper = "Wei et al. 2025, arXiv 2505.19892"

    def __init__(self, steps: int = 300, rate: float = 1e-4) -> None:
        super().__init__(steps, rate)

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: int) -> dict[str, Tensor]:
        """Return the row."""
        if not (deltas := _changed(deltas)):
            return {}
        mean = sum(deltas.values(), torch.zeros(())) / state
        if not matrices(deltas):
            return {"merged": mean}
        rank = min(mean.shape) // state
        kept = [svd(delta).first(rank).product() for delta in deltas.values()]
        gradient, speed = _disturbance(list(deltas.values()), kept), torch.zeros_like(mean)
        for _ in range(self.steps):
            speed.mul_(0.9).add_(gradient(mean))
            mean.sub_(speed, alpha=self.rate)
        return {"merged": mean}


class Doge(Transform):
    """Change all task vectors alike, so that together they stay near each one of them (Wei et al. 2025: DOGE).

    T_k = λ_k mask_k (τ_k + Δ), where λ_k is a scale over the length of τ_k and the mask keeps its largest elements.
    Adam minimises Σ_j ‖diag(τ_j (τ_j - Σ_k λ_k (τ_k + Δ))ᵀ)‖² over Δ, and takes no step in the directions that the
    task vectors have in common. As in the paper's code, what is no matrix stays the base's.

    Args:
        density: which share of its elements each task vector keeps, of all matrices.
        scale: what λ_k times the length of τ_k is.
        subspace: the common directions are one of so many.
        steps: how many are taken.
        rate: how large they are.

    Raises:
        ConfigError: a setting means nothing.
    """

    name = "doge"
    title = "DOGE: differences to the base with a common change that keeps their sum near each one"
    paper = "Wei et al. 2025, arXiv 2501.01230"

    def __init__(
        self, density: float = 0.3, scale: float = 0.07, subspace: int = 6, steps: int = 400, rate: float = 1e-4
    ) -> None:
        self.density = share(self.name, "density", density, example=0.3)
        self.scale = positive(self.name, "scale", scale, example=0.07)
        self.subspace = whole(self.name, "subspace", subspace)
        self.steps = whole(self.name, "steps", steps, 0)
        self.rate = positive(self.name, "rate", rate, example=1e-4)

    def prepare(self, store: TaskVectors, statistics: Any) -> dict[str, dict[str, Cut]]:
        """Return what each row keeps of each matrix."""
        found = {name: math.prod(shape) for name, shape in store.parameters.items() if len(shape) == 2}
        kept = count(self.density, sum(found.values()))
        return {row: find_cuts(store.deltas[row], kept, found) for row in store.rows}

    def apply(
        self, name: str, deltas: Mapping[str, Tensor], state: Mapping[str, Mapping[str, Cut]]
    ) -> dict[str, Tensor]:
        """Return the changed rows."""
        if not matrices(deltas := _changed(deltas)):
            return {}
        tasks = torch.stack(list(deltas.values()))
        scales = self.scale / torch.linalg.vector_norm(tasks, dim=(1, 2))
        shared = self._shared(tasks, min(tasks.shape[1:]) // len(state))
        gradient = _distance(tasks, scales)

        def apart(delta: Tensor) -> Tensor:
            found = gradient(delta)
            return found - shared @ (shared.T @ found)

        change = _adam(torch.zeros_like(tasks[0]), apart, self.steps, self.rate)
        return {
            row: torch.where(state[row][name].keeps(delta.reshape(-1)).view(delta.shape), scale * (delta + change), 0)
            for (row, delta), scale in zip(deltas.items(), scales, strict=True)
        }

    def _shared(self, tasks: Tensor, each: int) -> Tensor:
        """Return the directions that tasks have in common, (m, r): of the first ones of each, together."""
        if not each:
            return tasks.new_zeros(tasks.shape[1], 0)
        found = svd(torch.cat([svd(task).u[:, :each] for task in tasks], dim=1))
        certain = int((found.s > NOISE * found.s[0]).sum())
        return found.u[:, : min(certain, min(tasks.shape[1:]) // self.subspace)]


def _changed(deltas: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the deltas that are not zero: the losses divide by their lengths."""
    return {row: delta for row, delta in deltas.items() if delta.any()}


def _disturbance(tasks: Sequence[Tensor], parts: Sequence[Tensor]) -> Gradient:
    """Return the gradient of Σ_k ‖(M - P_k) P_kᵀ‖² / ‖τ_k‖² over M, which is 2 (M A - B).

    Args:
        tasks: τ_k, (m, n) each.
        parts: P_k, (m, n) each: what the loss sees of them.
    """
    a, b = torch.zeros(parts[0].shape[1], parts[0].shape[1]), torch.zeros_like(parts[0])
    for task, part in zip(tasks, parts, strict=True):
        product = part.T @ part / torch.linalg.vector_norm(task).square()
        a += product
        b += part @ product
    return lambda merged: 2 * (merged @ a - b)


def _distance(tasks: Tensor, scales: Tensor) -> Gradient:
    """Return the gradient of Σ_j ‖diag(τ_j (τ_j - Σ_k λ_k (τ_k + Δ))ᵀ)‖² over Δ.

    Args:
        tasks: τ_k, (K, m, n).
        scales: λ_k, (K,).
    """
    every = scales.sum()
    own = torch.einsum("kmn,kmn->km", tasks, tasks - torch.einsum("k,kmn->mn", scales, tasks))

    def gradient(delta: Tensor) -> Tensor:
        rest = own - every * torch.einsum("kmn,mn->km", tasks, delta)
        return -2 * every * torch.einsum("km,kmn->mn", rest, tasks)

    return gradient


def _adam(x: Tensor, gradient: Gradient, steps: int, rate: float) -> Tensor:
    """Take steps of Adam with its usual constants (Kingma and Ba 2015, algorithm 1), in place."""
    mean, square = torch.zeros_like(x), torch.zeros_like(x)
    for step in range(1, steps + 1):
        found = gradient(x)
        mean.mul_(0.9).add_(found, alpha=0.1)
        square.mul_(0.999).addcmul_(found, found, value=0.001)
        size = (square / (1 - 0.999**step)).sqrt_().add_(1e-8)
        x.addcdiv_(mean, size, value=-rate / (1 - 0.9**step))
    return x
