"""Weighted sums of rows with the bits of mergekit on a CPU: the sum that makes all candidates.

In: K deltas and their weights. Out: Σ λ_k τ_k in float32, in the order in which `torch.sum` adds up K stacked tensors,
without stacking them. Every product is rounded before it is added. That order is:

- row by row, for the rows of a block of 16; the sums of the blocks are added up then (pairwise, up to 255 rows);
- interleaved, for the elements after the last multiple of a vector's length, if there are more than 4 rows;
- yet another one, if there is but a single element.

So the end of what has more than 4 rows is stacked and summed as it is, with a whole vector before it, or it could be a
single element. No other sum makes candidates: the plain one (row by row, no blocks, no ends) stands in its test, which
holds the two equal where their orders are the same.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from evomerge.task_vectors.delta import Delta

PARTIAL = 16
"""Rows that `torch.sum` adds up before it begins a new partial sum."""
VECTOR = 64
"""A multiple of the elements that its vector loop takes at a time, whatever the processor."""
INTERLEAVED = 4
"""Rows up to which its order behind that loop is the given one as well."""


def sum_weighted(deltas: Sequence[Delta], weights: Sequence[float], out: Tensor) -> None:
    """Write Σ λ_k τ_k.

    Args:
        deltas: K deltas of n elements.
        weights: K numbers.
        out: where to write, float32 (n,).
    """
    for start in range(0, len(deltas), PARTIAL):
        total = torch.empty_like(out) if start else out
        deltas[start].write(total, weights[start])
        for delta, weight in zip(
            deltas[start + 1 : start + PARTIAL], weights[start + 1 : start + PARTIAL], strict=True
        ):
            if weight != 0:
                delta.add_to(total, weight)
        if start:
            out.add_(total)
    if len(out) % VECTOR and len(deltas) > INTERLEAVED:
        end = slice(len(out) - min(len(out), VECTOR + len(out) % VECTOR), len(out))
        pairs = zip(deltas, weights, strict=True)
        torch.sum(torch.stack([delta[end].dense() * weight for delta, weight in pairs]), 0, out=out[end])
