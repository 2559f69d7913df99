"""Two merged models, tensor by tensor: how many are the same bits, and how far the others are apart.

In: the tensors of both by file key. Out: a `Verdict`. Distances are in units in the last place (ulp) of the dtype in
which the models were saved: how many floating numbers of that dtype lie between two values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

LIMIT = 1
"""How many units in the last place an element may differ by."""
NEAR = 1e-6
"""How far elements may be from each other where the last bits may differ, as a share of the largest of a tensor."""
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}


@dataclass
class Verdict:
    """What a comparison found.

    Attributes:
        tensors: how many tensors were compared.
        bit_equal: how many of them are the same bits.
        max_ulp: the largest distance of two elements.
        faults: what must not be: tensors that one lacks, other shapes or dtypes, elements too far apart.
        notes: what may be: a tied tensor that only one of them writes a second time.
    """

    tensors: int = 0
    bit_equal: int = 0
    max_ulp: int = 0
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def compare(
    ours: Mapping[str, Tensor],
    theirs: Mapping[str, Tensor],
    tied: Mapping[str, str] | None = None,
    limit: int | None = LIMIT,
) -> Verdict:
    """Compare every tensor of two models.

    Args:
        ours: file key -> tensor.
        theirs: the same of the other model.
        tied: alias -> key: an alias may be there or not, if it holds what the key holds.
        limit: how many units in the last place an element may differ by; None: any number.
    """
    verdict = Verdict()
    for key in sorted({*ours, *theirs}):
        if key in ours and key in theirs:
            _compare_tensor(key, ours[key], theirs[key], verdict, limit)
            continue
        who, held, lacks = ("evomerge", ours, "mergekit") if key in ours else ("mergekit", theirs, "evomerge")
        source = (tied or {}).get(key, key)
        if source != key and source in held and torch.equal(held[key], held[source]):
            verdict.notes.append(f"{who} also writes {key}, which is tied to {source}")
        else:
            verdict.faults.append(f"{lacks} lacks {key}")
    return verdict


def ulp_distance(one: Tensor, other: Tensor) -> Tensor:
    """Return how many numbers of their dtype lie between the elements of two tensors, int64; 0 for -0.0 and 0.0."""
    return (_place(one) - _place(other)).abs()


def _place(tensor: Tensor) -> Tensor:
    """The place of each element among all numbers of its dtype: their bits as an integer, mirrored below zero."""
    bits = tensor.contiguous().view(BITS[tensor.dtype]).long()
    return torch.where(bits < 0, torch.iinfo(BITS[tensor.dtype]).min - bits, bits)


def _compare_tensor(key: str, one: Tensor, other: Tensor, verdict: Verdict, limit: int | None) -> None:
    verdict.tensors += 1
    if (one.shape, one.dtype) != (other.shape, other.dtype):
        verdict.faults.append(
            f"{key} is {one.dtype} {tuple(one.shape)} by evomerge, {other.dtype} {tuple(other.shape)} by mergekit"
        )
        return
    same = torch.equal(one.contiguous().view(torch.uint8), other.contiguous().view(torch.uint8))
    if same or one.numel() == 0:
        verdict.bit_equal += 1
        return
    if one.dtype not in BITS:
        verdict.faults.append(f"{key} differs, and is {one.dtype}")
        return
    largest = int(ulp_distance(one, other).max())
    verdict.max_ulp = max(verdict.max_ulp, largest)
    if limit is not None and largest > limit:
        verdict.faults.append(f"{key} differs by up to {largest} ulp")
