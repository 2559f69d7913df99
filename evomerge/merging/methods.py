"""Methods: how one candidate is built from its coefficients, per span of a parameter.

In: the base and the deltas of a span, and the coefficients of its group. Out: the merged span, θ₀ plus a combination of
the λ_k and τ_k, in float32. A method names the variables that each (group, row) has. Elections and masks are recomputed
per candidate (`coupling: per_candidate` of mergekit), with density as a second variable that is searched like the
weight. What is done to the task vectors once, before the search, is a transform (`transforms/`), of which a method sees
nothing but the rows.

    linear      Σ_k λ_k τ_k: task arithmetic (Ilharco et al. 2023); of transformed task vectors too, such as TIES'
    ties        trim by magnitude, elect signs, sum those that agree (Yadav et al. 2023), weighted before the election
    dare_ties   drop at random and rescale, then elect and sum (Yu et al. 2024), with masks nested in the density
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import MergeError
from evomerge.merging.kernels.exact import sum_weighted
from evomerge.space.coefficients import Variable
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.spans import Span

WEIGHT = Variable("weight", 0.0, 1.5, 0.4)
DENSITY = Variable("density", 0.0, 1.0, 0.5)
CANCELLED = 1e-3
"""The share of their magnitudes to which weights may cancel in a sum that divides."""


@runtime_checkable
class Method(Protocol):
    """Builds a span of a candidate; see the module's docstring.

    Attributes:
        name: what recipes call it.
        title: what it does, in a few words, for a model's card.
        paper: where it was published, as one cites it.
        mergekit: what mergekit calls it; None where it has nothing of the kind.
        variables: which coefficients each (group, row) has.
        elementwise: whether it takes each element by itself. Then `prepare` returns the delta, and a span may be merged
            in chunks.
        linear: whether the merged span is linear in the weights, so that it has a gradient. Then it is elementwise.
    """

    name: str
    title: str
    paper: str
    mergekit: str | None
    variables: tuple[Variable, ...]
    elementwise: bool
    linear: bool

    def prepare(self, row: str, span: Span, delta: Delta) -> Any:
        """Return what `merge` needs of a delta: the delta itself, and what can be computed once for all candidates."""
        ...

    def merge(self, base: Tensor, prepared: Sequence[Any], coefficients: Mapping[str, np.ndarray], out: Tensor) -> None:
        """Write the merged span into `out`, float32 (n,).

        Args:
            base: θ₀ of the span, float32 (n,).
            prepared: what `prepare` returned, for each row whose delta is not zero here.
            coefficients: {variable: (number of those rows,)}.
            out: where to write.
        """
        ...


class Linear:
    """Task arithmetic: θ = θ₀ + Σ_k λ_k τ_k (Ilharco et al. 2023, section 2)."""

    name = "linear"
    title = "the base plus the weighted sum of the experts' differences to it (task arithmetic)"
    paper = "Ilharco et al. 2023, arXiv 2212.04089"
    mergekit: str | None = "task_arithmetic"
    variables = (WEIGHT,)
    elementwise = True
    linear = True

    def prepare(self, row: str, span: Span, delta: Delta) -> Delta:
        """Return the delta: nothing can be computed once."""
        return delta

    def merge(
        self, base: Tensor, prepared: Sequence[Delta], coefficients: Mapping[str, np.ndarray], out: Tensor
    ) -> None:
        """Write θ₀ + Σ λ_k τ_k in float32: the sum first, then θ₀, as mergekit adds them.

        On CPUs both merge to the same bits, of up to 255 experts, none of them without a delta here
        (`kernels/exact.py`). A weight of 0 adds nothing, so λ = 0 is the base bit for bit.
        """
        weights = coefficients["weight"].tolist()
        if not any(weights):
            out.copy_(base)
            return
        sum_weighted([delta.over(base) for delta in prepared], weights, out)
        out.add_(base)


class Ties:
    """Trim, elect, merge (Yadav et al. 2023, section 3), with weights and densities per candidate as mergekit has them.

    Trimming keeps exactly floor(density · n) elements of the span by magnitude (the lower index wins a tie). The
    weighted, trimmed deltas elect the sign of each element by their sum (0 counts as plus), and those that agree are
    summed; with `normalize` the sum is divided by the weights that agree, which makes the overall scale of the
    weights meaningless, so it is off by default.
    """

    name = "ties"
    title = "TIES: differences to the base trimmed by magnitude, signs elected, those that agree summed"
    paper = "Yadav et al. 2023, arXiv 2306.01708"
    mergekit: str | None = "ties"
    variables = (WEIGHT, DENSITY)
    elementwise = False
    linear = False

    def __init__(self, normalize: bool = False) -> None:
        self.normalize = normalize

    def prepare(self, row: str, span: Span, delta: Delta) -> tuple[Tensor, Tensor]:
        """Return the delta, float32 (n,), and the rank of each element by magnitude, largest first, int32 (n,): any
        density is then one comparison.
        """
        values = delta.dense()
        order = torch.argsort(values.abs(), descending=True, stable=True)
        ranks = torch.empty(len(order), dtype=torch.int32, device=values.device)
        ranks[order] = torch.arange(len(order), dtype=torch.int32, device=values.device)
        return values, ranks

    def merge(
        self,
        base: Tensor,
        prepared: Sequence[tuple[Tensor, Tensor]],
        coefficients: Mapping[str, np.ndarray],
        out: Tensor,
    ) -> None:
        """Write base + the elected sum."""
        trimmed = []
        for (delta, ranks), density in zip(prepared, coefficients["density"].tolist(), strict=True):
            keep = math.floor(density * delta.numel() + 1e-9)  # 0.29 * 100 is 28.999999999999996
            trimmed.append(torch.where(ranks < keep, delta, 0.0))
        torch.add(base, elect(trimmed, coefficients["weight"], self.normalize), out=out)


class DareTies:
    """Drop and rescale (Yu et al. 2024), then the election and sum of TIES without a trim.

    An element is kept where its uniform draw u < density and divided by the density, so the expectation of the delta
    stays. The draws depend on the seed, the row and the parameter alone: masks are nested in the density, the
    fitness is the same for the same coefficients, and no global random state is touched.
    """

    name = "dare_ties"
    title = "DARE with the election of TIES: differences dropped at random and rescaled, signs elected, summed"
    paper = "Yu et al. 2024, arXiv 2311.03099"
    mergekit: str | None = "dare_ties"
    variables = (WEIGHT, DENSITY)
    elementwise = False
    linear = False

    def __init__(self, seed: int = 0, normalize: bool = False) -> None:
        self.seed = seed
        self.normalize = normalize

    def prepare(self, row: str, span: Span, delta: Delta) -> tuple[Tensor, Tensor]:
        """Return the delta and one uniform draw per element, both float32 (n,)."""
        values = delta.dense()
        key = hashlib.sha256(f"{self.seed}/{row}/{span.parameter}/{span.start}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(key[:8], "big") >> 1)
        return values, torch.rand(len(values), generator=generator).to(values.device)

    def merge(
        self,
        base: Tensor,
        prepared: Sequence[tuple[Tensor, Tensor]],
        coefficients: Mapping[str, np.ndarray],
        out: Tensor,
    ) -> None:
        """Write base + the elected sum of what was kept."""
        kept = []
        for (delta, draws), density in zip(prepared, coefficients["density"].tolist(), strict=True):
            kept.append(torch.where(draws < density, delta / density, 0.0))
        torch.add(base, elect(kept, coefficients["weight"], self.normalize), out=out)


def elect(deltas: Sequence[Tensor], weights: np.ndarray, normalize: bool) -> Tensor:
    """Sum the weighted deltas whose sign agrees with the sign of their sum (Yadav et al. 2023, steps 2 and 3).

    Args:
        deltas: K tensors (n,).
        weights: (K,).
        normalize: divide by the sum of the weights that agree (1 where none does), as mergekit does by default.

    Returns:
        The elected sum, (n,).

    Raises:
        MergeError: weights of both signs agree in an element and cancel to less than `CANCELLED` of their magnitudes:
            the division would make weights of thousands and more of them.
    """
    weighted = torch.stack([delta * weight for delta, weight in zip(deltas, weights.tolist(), strict=True)])
    sign = torch.where(weighted.sum(0) >= 0, 1.0, -1.0)
    agrees = weighted * sign > 0
    merged = torch.where(agrees, weighted, 0.0).sum(0)
    if not normalize:
        return merged
    column = torch.as_tensor(weights, dtype=torch.float32, device=merged.device)[:, None]
    total = (agrees * column).sum(0)
    if weights.min() < 0 < weights.max():
        cancelled = total.abs() < CANCELLED * (agrees * column.abs()).sum(0)
        if cancelled.any():
            given = ", ".join(f"{weight:.4g}" for weight in weights.tolist())
            raise MergeError(
                f"The weights {given} cancel in {int(cancelled.sum())} elements of a tensor, and method.normalize=true "
                f"divides by their sum: write method.normalize=false, or bounds without negative weights in "
                f"space.bounds."
            )
    return merged / torch.where(total == 0, 1.0, total)
