"""The kind `low_rank`: s·B·A, multiplied out where its elements are needed (Hu et al. 2022, arXiv 2106.09685).

In: the factors of one parameter. Out: τ = s·B·A in any run of its elements. A LoRA adapter takes r·(m + n) numbers for
a matrix of m·n so, and nobody holds the product but for the elements that are worked on.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain

import torch
from torch import Tensor

from evomerge.models.checkpoint import Checkpoint
from evomerge.models.factors import Factors
from evomerge.task_vectors.delta import Delta, Layout, add_product, copied


@dataclass(frozen=True, eq=False)
class LowRankDelta:
    """A run of elements of a product of two factors.

    Attributes:
        factors: of the whole parameter.
        start: the first element, counted row by row.
        stop: the one after the last.
    """

    factors: Factors
    start: int
    stop: int

    @property
    def nbytes(self) -> int:
        """Bytes of the factors; of some elements, as large a share of them."""
        rows, width = self.factors.shape
        size = self.factors.left.nbytes + self.factors.right.nbytes
        return size * self.stop // (rows * width) - size * self.start // (rows * width)

    @property
    def bound(self) -> float:
        """0: nothing is lost."""
        return 0.0

    def __len__(self) -> int:
        return self.stop - self.start

    def __getitem__(self, span: slice) -> LowRankDelta:
        first, last, _ = span.indices(len(self))
        return replace(self, start=self.start + first, stop=self.start + max(first, last))

    def at(self, places: Tensor) -> Tensor:
        """Return some elements."""
        return self.factors.at(places + self.start)

    def over(self, base: Tensor) -> LowRankDelta:
        """Return it on the device of the base, of which it needs nothing else."""
        return replace(self, factors=self.factors.to(base.device))

    def held(self, pinned: bool) -> LowRankDelta:
        """Return it copied into memory."""
        left, right = (copied(one, pinned) for one in (self.factors.left, self.factors.right))
        return replace(self, factors=replace(self.factors, left=left, right=right))

    def dense(self) -> Tensor:
        """Return s·B·A there, float32 (n,), newly computed."""
        self.write(out := torch.empty(len(self), device=self.factors.left.device))
        return out

    def added(self, base: Tensor) -> Tensor:
        """Return θ₀ + τ."""
        return base + self.dense()

    def layout(self) -> Layout:
        """Return the factors from the first row on; no kernel reads them."""
        row, start = divmod(self.start, self.factors.shape[1])
        return Layout("low_rank", (self.factors.left[row:], self.factors.right), start)

    def product(self, gradient: Tensor) -> Tensor:
        """Return ⟨gradient, s·B·A⟩ as s·⟨gradient·Aᵀ, B⟩, float64 (): without the product of the factors where the
        delta has whole rows.

        Args:
            gradient: of these elements, float32 or float64 (n,), where the factors lie.
        """
        width = self.factors.shape[1]
        first, last = -(-self.start // width), self.stop // width
        if first >= last:
            return (gradient * self.dense()).sum(dtype=torch.float64)
        begin, end = first * width - self.start, last * width - self.start
        left, right = (one.to(gradient.dtype) for one in (self.factors.left[first:last], self.factors.right))
        total = (gradient[begin:end].view(-1, width) @ right.T).mul_(left).sum(dtype=torch.float64) * self.factors.scale
        for rest in (slice(0, begin), slice(end, len(self))):
            if rest.start < rest.stop:
                total += (gradient[rest] * self[rest].dense()).sum(dtype=torch.float64)
        return total

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ."""
        self.factors.write(self.start, out)
        if weight != 1:
            out.mul_(weight)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ."""
        add_product(out, self.dense(), weight)


def factors_of(delta: Delta) -> Factors | None:
    """Return the factors of a parameter, for what is done to them in place of their product; None where it has none."""
    return delta.factors if isinstance(delta, LowRankDelta) else None


class AdapterDeltas(Mapping[str, Delta]):
    """The deltas of an adapter by parameter: factors, and those of what it holds as a whole.

    Args:
        expert: the adapter.
        parameters: the names, in the order of the live model.
        whole: the others' deltas, each of which is asked for when it is needed.
    """

    def __init__(self, expert: Checkpoint, parameters: Iterable[str], whole: Mapping[str, Delta]) -> None:
        found = {name: expert.factors[name] for name in parameters if name in expert.factors}
        self._factors = {
            name: LowRankDelta(one, 0, one.shape[0] * one.shape[1]) for name, one in found.items() if not one.zero
        }
        self._whole = whole

    def __getitem__(self, name: str) -> Delta:
        return self._factors[name] if name in self._factors else self._whole[name]

    def __contains__(self, name: object) -> bool:
        return name in self._factors or name in self._whole

    def __iter__(self) -> Iterator[str]:
        return chain(self._factors, self._whole)

    def __len__(self) -> int:
        return len(self._factors) + len(self._whole)
