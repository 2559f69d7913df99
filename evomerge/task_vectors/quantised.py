"""The kinds `int8` and `int4`: codes of 8 or 4 bits, with a step and a zero for each group of elements.

In: a task vector in float32. Out: x̂ = (code − zero) · step, the asymmetric quantisation of Kim et al. 2025, "Task
Vector Quantization for Memory-Efficient Model Merging" (arXiv 2503.06921): a range, of which 0 is always a part, is cut
into 2^bits − 1 steps, and its zero is the code of 0, which so stays exactly 0. The paper takes the range of a tensor;
here it is that of 64 elements of the flat parameter, since a single large element would coarsen all others.

An element is off by half a step at most, and by what float32 arithmetic adds (`SLACK`).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Layout, add_product, copied
from evomerge.task_vectors.spans import CHUNK

GROUP = 64
"""Elements that share a step and a zero; the last group of a parameter is filled up with zeros."""
HALF = GROUP // 2
"""Elements of a group in the low halves of its bytes, if codes have 4 bits; the others are in the high ones."""
SLACK = 2.0**-13
"""In steps, what roundings in float32 add to half a step: the quotient that is rounded to a code, of up to 255 steps,
the code of 0, the step itself and the product: 4 · 255 · 2^-24 are less than this.
"""
SMALLEST = torch.finfo(torch.float32).tiny
"""The smallest step: below it, roundings are not relative any more."""
LARGEST = 2.0**127
"""The largest magnitude that still has a code in float32, half a step beyond it."""


@dataclass(frozen=True, eq=False)
class QuantisedDelta:
    """A task vector in codes.

    Attributes:
        bits: of a code, 8 or 4.
        codes: uint8; (64 · groups,) of 8 bits. Of 4 bits (32 · groups,): byte j of a group holds element j in its low
            half and element j + 32 in its high one.
        steps: float32 (groups,).
        zeros: uint8 (groups,).
        start: the element of the first group at which the delta begins.
        length: n.
    """

    bits: int
    codes: Tensor
    steps: Tensor
    zeros: Tensor
    start: int
    length: int

    @property
    def nbytes(self) -> int:
        """Bytes of codes, steps and zeros."""
        return self.codes.nbytes + self.steps.nbytes + self.zeros.nbytes

    @property
    def bound(self) -> float:
        """Half of the largest step, and what float32 adds."""
        return float(self.steps.max()) * (0.5 + SLACK) if self.length else 0.0

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, span: slice) -> QuantisedDelta:
        first, stop, _ = span.indices(self.length)
        length, first = max(stop - first, 0), self.start + first
        groups = slice(first // GROUP, -(-(first + length) // GROUP))
        size = len(self.codes) // max(len(self.steps), 1)
        codes = self.codes[size * groups.start : size * groups.stop]
        return QuantisedDelta(self.bits, codes, self.steps[groups], self.zeros[groups], first % GROUP, length)

    def at(self, places: Tensor) -> Tensor:
        """Return some elements, decoded."""
        places = places + self.start
        groups, inside = places // GROUP, places % GROUP
        if self.bits == 8:
            codes = self.codes[places]
        else:
            codes = self.codes[groups * HALF + inside % HALF] >> inside // HALF * 4 & 15
        return (codes.to(torch.float32) - self.zeros[groups]) * self.steps[groups]

    def over(self, base: Tensor) -> QuantisedDelta:
        """Return it on the device of the base, of which it needs nothing else."""
        if self.codes.device == base.device:
            return self
        codes, steps, zeros = (tensor.to(base.device) for tensor in (self.codes, self.steps, self.zeros))
        return QuantisedDelta(self.bits, codes, steps, zeros, self.start, self.length)

    def held(self, pinned: bool) -> QuantisedDelta:
        """Return it copied into memory."""
        codes, steps, zeros = (copied(tensor, pinned) for tensor in (self.codes, self.steps, self.zeros))
        return QuantisedDelta(self.bits, codes, steps, zeros, self.start, self.length)

    def dense(self) -> Tensor:
        """Return (code − zero) · step, newly computed."""
        groups = len(self.steps)
        if self.bits == 8:
            whole = self.codes.view(groups, GROUP).to(torch.float32)
        else:
            packed = self.codes.view(groups, HALF)
            whole = torch.empty(groups, GROUP, dtype=torch.float32, device=packed.device)
            whole[:, :HALF], whole[:, HALF:] = packed & 15, packed >> 4
        whole.sub_(self.zeros[:, None]).mul_(self.steps[:, None])
        return whole.view(-1)[self.start : self.start + self.length]

    def added(self, base: Tensor) -> Tensor:
        """Return θ₀ + τ."""
        return base + self.dense()

    def layout(self) -> Layout:
        """Return codes, steps and zeros."""
        return Layout(f"int{self.bits}", (self.codes, self.steps, self.zeros), self.start)

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ."""
        torch.mul(self.dense(), weight, out=out)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ."""
        add_product(out, self.dense(), weight)


def quantised(values: Tensor, bits: int) -> QuantisedDelta:
    """Quantise a task vector of one parameter.

    Args:
        values: float32 (n,), on a CPU, of magnitudes up to `LARGEST`.
        bits: 8 or 4.
    """
    groups = -(-len(values) // GROUP)
    codes = torch.empty(groups, GROUP * bits // 8, dtype=torch.uint8)
    steps, zeros = torch.empty(groups), torch.empty(groups, dtype=torch.uint8)
    some = CHUNK // GROUP
    for first in range(0, groups, some):
        here = slice(first, first + some)
        part = values[GROUP * first : GROUP * (first + some)]
        part = torch.nn.functional.pad(part, (0, -len(part) % GROUP)).view(-1, GROUP)
        found, steps[here], zeros[here] = encoded(part, 2**bits - 1)
        codes[here] = found if bits == 8 else found[:, :HALF] | found[:, HALF:] << 4
    return QuantisedDelta(bits, codes.view(-1), steps, zeros, 0, len(values))


def encoded(values: Tensor, levels: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return codes, steps and zeros of groups, one a row (Kim et al. 2025, section 3).

    Args:
        values: float32 (groups, m).
        levels: the largest code, 2^bits − 1.

    Returns:
        uint8 (groups, m), float32 (groups,), uint8 (groups,).
    """
    low, high = (edge.double() for edge in values.aminmax(dim=1))
    low, high = low.clamp_max(0), high.clamp_min(0)
    steps = ((high - low) / levels).float().clamp_min(SMALLEST)
    zeros = (-low.float() / steps).round_().clamp_(0, levels)
    codes = (values / steps[:, None]).round_().add_(zeros[:, None]).clamp_(0, levels)
    empty = (low == 0) & (high == 0)
    return codes.to(torch.uint8), steps.masked_fill_(empty, 0.0), zeros.to(torch.uint8)
