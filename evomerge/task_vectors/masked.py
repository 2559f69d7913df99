"""The kind `masked`: some elements of another delta, and 0 elsewhere.

In: a delta τ, and a bit for each element. Out: T = mask ⊙ τ. So a trimmed task vector takes an eighth of a byte a
parameter beside the task vector itself, instead of four.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Delta, Layout, add_product, copied

WORD = 32
"""Bits of a word of a mask."""
STEP = 64
"""Elements that a slice of a mask begins at a multiple of, as groups of quantised deltas do."""


@dataclass(frozen=True, eq=False)
class MaskedDelta:
    """Some elements of a delta.

    Attributes:
        whole: the delta, n elements.
        words: uint32, bit i mod 32 of word i div 32 for element i, counted from `first` on; of whole multiples of 64.
        first: the bit of the first element.
    """

    whole: Delta
    words: Tensor
    first: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the mask and of the delta below it."""
        return self.words.nbytes + self.whole.nbytes

    @property
    def bound(self) -> float:
        """That of the delta below it: what is masked is exactly 0."""
        return self.whole.bound

    @property
    def mask(self) -> Tensor:
        """Which elements it has, bool (n,), newly computed."""
        return unpacked(self.words)[self.first : self.first + len(self)]

    def __len__(self) -> int:
        return len(self.whole)

    def __getitem__(self, span: slice) -> MaskedDelta:
        whole = self.whole[span]
        begin = self.first + span.indices(len(self))[0]
        end = -(-(begin + len(whole)) // STEP) * STEP
        return MaskedDelta(whole, self.words[begin // STEP * STEP // WORD : end // WORD], begin % STEP)

    def at(self, places: Tensor) -> Tensor:
        """Return some elements."""
        bits = places + self.first
        kept = self.words.view(torch.uint8)[bits // 8] >> bits % 8 & 1
        return torch.where(kept.bool(), self.whole.at(places), 0.0)

    def over(self, base: Tensor) -> MaskedDelta:
        """Return it on the device of the base, with a mask that begins where what is kept of the delta does."""
        return MaskedDelta(self.whole.over(base), self.words.to(base.device), self.first).aligned()

    def aligned(self) -> MaskedDelta:
        """Return it with a mask that begins where what is kept of the delta does; copied, if need be."""
        start = self.whole.layout().start
        return self if start == self.first else MaskedDelta(self.whole, packed(self.mask, start), start)

    def held(self, pinned: bool) -> MaskedDelta:
        """Return it copied into memory."""
        return MaskedDelta(self.whole.held(pinned), copied(self.words, pinned), self.first)

    def dense(self) -> Tensor:
        """Return mask ⊙ τ, newly computed."""
        return torch.where(self.mask, self.whole.dense(), 0.0)

    def added(self, base: Tensor) -> Tensor:
        """Return θ₀ + T."""
        return base + self.dense()

    def layout(self) -> Layout:
        """Return what is kept of the delta, and the mask. That lives as long as this delta if `over` made it."""
        below, mask = self.whole.layout(), self.aligned()
        return Layout(f"masked {below.kind}", (*below.tensors, mask.words), below.start)

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·T."""
        torch.mul(self.dense(), weight, out=out)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·T."""
        add_product(out, self.dense(), weight)


def masked(delta: Delta, mask: Tensor) -> MaskedDelta:
    """Return some elements of a delta of a whole parameter; of a masked one, of the delta below it.

    Args:
        delta: of n elements.
        mask: bool (n,).
    """
    if isinstance(delta, MaskedDelta):
        return masked(delta.whole, mask & delta.mask)
    return MaskedDelta(delta, packed(mask))


def packed(mask: Tensor, first: int = 0) -> Tensor:
    """Return a mask, bool (n,), as uint32 words, in which it begins at the bit `first`."""
    size = -(-(first + len(mask)) // STEP) * STEP
    bits = torch.zeros(size, dtype=torch.uint8, device=mask.device)
    bits[first : first + len(mask)] = mask
    places = torch.arange(8, dtype=torch.uint8, device=mask.device)
    return (bits.view(-1, 8) << places).sum(1, dtype=torch.uint8).view(torch.uint32)


def unpacked(words: Tensor) -> Tensor:
    """Return the bits of words, bool (32 · words,)."""
    places = torch.arange(8, dtype=torch.uint8, device=words.device)
    return (words.view(torch.uint8)[:, None] >> places & 1).view(-1).bool()
