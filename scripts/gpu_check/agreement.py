"""Triton's kernel against the plain form, by form, dtype and kind of rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from evomerge.merging import methods
from evomerge.merging.kernels import gpu
from evomerge.merging.kernels.plain import Part, combine
from evomerge.merging.kernels.table import variant_of
from evomerge.merging.method import Formed
from evomerge.merging.sites import Site, Together
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.quantised import quantised
from evomerge.task_vectors.spans import Span

FORMS: dict[str, Formed] = {
    "linear": methods.Linear(),
    "ties": methods.Ties(),
    "ties, divided": methods.Ties(normalize=True, scale=0.7),
    "ties by count": methods.Ties(elect="count"),
    "dare": methods.Dare(),
    "dare_ties": methods.DareTies(),
    "della": methods.Della(),
    "breadcrumbs": methods.Breadcrumbs(),
    "nuslerp": methods.NuSlerp(),
    "slerp": methods.Slerp(),
}
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KINDS = ("expert", "dense", "int8", "int4", "masked")
SIZE = {"cuda": (1 << 20) + 17, "cpu": 64 * 3 + 17}
ROWS = 3


def agreement(device: str) -> list[dict[str, Any]]:
    """Return a line for each case: `{"form", "dtype", "kind", "differ", "ulp", "agrees"}`.

    Args:
        device: `cuda`, or `cpu` for Triton's interpreter.
    """
    cases = [(name, dtype, "expert") for name in FORMS for dtype in DTYPES]
    cases += [(name, "bfloat16", kind) for name in ("linear", "dare_ties") for kind in KINDS[1:]]
    return [compare(*case, device) for case in cases]


def compare(name: str, dtype: str, kind: str, device: str) -> dict[str, Any]:
    """Compare one case."""
    method = FORMS[name]
    here, there = (site_of(method.takes or ROWS, DTYPES[dtype], kind, where, SIZE[device]) for where in ("cpu", device))
    together = Together([here], [here])
    prepared = method.prepare(together)
    ranks = method.ranks(prepared)
    numbers = method.numbers(together, prepared, _coefficients(len(here.deltas)))
    part = Part(0, 0, here.span.start, ranks[0] if ranks else ())
    expected, _ = combine(method.form, part, here.base.float(), here.deltas, numbers)
    variant = variant_of(method.form, there)
    if variant is None:
        raise ValueError(f"{name} of {kind} in {dtype} has no kernel")
    gpu.Table(variant, [there], ranks).merge(numbers, np.zeros(1, dtype=bool))
    found, expected = there.live.cpu(), expected.to(DTYPES[dtype])
    ulp = int((_steps(found) - _steps(expected)).abs().max())
    differ = int((found != expected).sum())
    line = {"form": name, "dtype": dtype, "kind": kind, "differ": differ, "ulp": ulp}
    return line | {"agrees": ulp <= (0 if dtype == "float32" else 1)}


def site_of(rows: int, dtype: torch.dtype, kind: str, device: str, size: int) -> Site:
    """Return a site with rows of a kind, the same numbers on every device."""
    generator = torch.Generator().manual_seed(rows)
    base = (torch.randn(size, generator=generator) / 50).to(dtype)
    deltas = []
    for _ in range(rows):
        tuned = (base.float() + torch.randn(size, generator=generator) / 500).to(dtype)
        deltas.append(_delta(kind, base, tuned, torch.rand(size, generator=generator) > 0.3))
    base, names = base.to(device), [f"expert {k}" for k in range(rows)]
    live = torch.zeros_like(base)
    return Site(0, Span("p", 0, size), size, live, base, list(range(rows)), names, [each.over(base) for each in deltas])


def _delta(kind: str, base: Tensor, tuned: Tensor, mask: Tensor) -> Delta:
    if kind == "expert":
        return ExpertDelta(base, tuned)
    values = tuned.float() - base.float()
    if kind == "dense":
        return DenseDelta(values)
    if kind == "masked":
        return masked(DenseDelta(values), mask)
    return quantised(values, 8 if kind == "int8" else 4)


def _coefficients(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {"weight": rng.uniform(0.1, 0.9, (1, rows)), "density": rng.uniform(0.2, 0.9, (1, rows))}


def _steps(values: Tensor) -> Tensor:
    """Return numbers that differ by 1 between neighbours of a float dtype, int64."""
    bits = values.view(torch.int32 if values.dtype == torch.float32 else torch.int16).long()
    least = torch.iinfo(torch.int32 if values.dtype == torch.float32 else torch.int16).min
    return torch.where(bits >= 0, bits, least - bits)
