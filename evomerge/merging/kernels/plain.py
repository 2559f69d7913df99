"""The plain reference of a form: what a kernel computes, in a few lines of torch, on any device.

In: a form, base and deltas of some elements, and the numbers of one candidate. Out: the merged elements in float32.
Candidates of devices and dtypes without a kernel are made by it, chunk by chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.exact import sum_weighted
from evomerge.merging.kernels.form import CANCELLED, Form, Numbers
from evomerge.task_vectors.cuts import Cut
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.draws import uniforms


@dataclass(frozen=True)
class Part:
    """Some elements of a site.

    Attributes:
        site: its place among the S of the numbers.
        start: its first element in the span.
        first: its first element in the parameter.
        ranks: of `ranked`: of each row, the rank of each of these elements, (n,).
    """

    site: int
    start: int
    first: int
    ranks: Sequence[Tensor] = ()


def combine(form: Form, part: Part, base: Tensor, deltas: Sequence[Delta], numbers: Numbers) -> tuple[Tensor, int]:
    """Merge some elements.

    Args:
        form: how.
        part: which elements they are.
        base: θ₀, float32 (n,).
        deltas: of the R rows.
        numbers: of the candidate.

    Returns:
        The merged elements, float32 (n,); how many quotients were refused, since weights cancel in them.
    """
    weights = numbers.weight[part.site].tolist()
    if form == Form():
        out = torch.empty_like(base)
        sum_weighted(deltas, weights, out)
        return out.add_(base), 0
    rows = [delta.added(base) if form.blends else delta.dense() for delta in deltas]
    if form.join == "mean":
        return _averaged(part, base, rows, weights, numbers), 0
    kept = [_kept(form, part, k, values, numbers) for k, values in enumerate(rows)]
    weighted = torch.stack([values * weight for values, weight in zip(kept, weights, strict=True)])
    if form.blends:
        total = base * _number(numbers.base, part.site)
        for row in weighted:
            total += row
        return total / _number(numbers.divisor, part.site) if form.divide else total, 0
    if form.elects:
        merged, flaws = _elected(form, weighted, weights)
    else:
        total, flaws = weighted.sum(0), 0
        merged = total / _number(numbers.divisor, part.site) if form.divide else total
    return base + (merged if form.scale == 1 else merged * form.scale), flaws


def _averaged(part: Part, base: Tensor, rows: Sequence[Tensor], weights: Sequence[float], numbers: Numbers) -> Tensor:
    """Return the average of base and rows; each product is added unrounded, as mergekit's `linear` does."""
    total = torch.zeros_like(base)
    for values, weight in zip((base, *rows), (_number(numbers.base, part.site), *weights), strict=True):
        total.addcmul_(values, torch.tensor(weight, dtype=torch.float32, device=base.device))
    return total / _number(numbers.divisor, part.site)


def _number(values: np.ndarray, site: int) -> float:
    return float(values[site])


def _kept(form: Form, part: Part, row: int, values: Tensor, numbers: Numbers) -> Tensor:
    """Return the elements of a row that take part, 0 elsewhere."""
    if form.keep == "all":
        return values
    if form.keep in ("largest", "between"):
        kept = Cut(*numbers.cut[part.site, row].tolist()).keeps(values, part.start)
        if form.keep == "between":
            kept &= ~Cut(*numbers.upper[part.site, row].tolist()).keeps(values, part.start)
        return torch.where(kept, values, 0.0)
    one, other = numbers.keys[part.site, row].tolist()
    draws = uniforms((one, other), part.first, len(values), values.device)
    chance = numbers.chance[part.site, row].tolist()
    if form.keep == "drawn":
        density, scale = chance
        return torch.where(draws < density, values * scale, 0.0)
    least, more, divides = chance
    chances = least + part.ranks[row].to(values.device, torch.float32) * more
    return torch.where(draws < chances, values / chances if divides else values, 0.0)


def _elected(form: Form, weighted: Tensor, weights: Sequence[float]) -> tuple[Tensor, int]:
    """Sum the weighted rows whose sign agrees with the elected one (Yadav et al. 2023, steps 2 and 3)."""
    votes = weighted if form.join == "elect" else weighted.sign()
    plus = votes.sum(0) >= 0
    agrees = torch.where(plus, weighted > 0, weighted < 0)
    merged = torch.where(agrees, weighted, 0.0).sum(0)
    if not form.divide:
        return merged, 0
    column = torch.tensor(weights, dtype=torch.float32, device=merged.device)[:, None]
    total, size = (agrees * column).sum(0), (agrees * column.abs()).sum(0)
    flaws = int((total.abs() < CANCELLED * size).sum())
    return merged / torch.where(total == 0, 1.0, total), flaws
