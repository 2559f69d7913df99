"""Rows merged by a method, without a model around them: by its kernel, and by the plain form."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.builder import Builder
from evomerge.merging.kernels import compiled, products
from evomerge.merging.method import Method
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.spans import Span


def site_of(
    base: Tensor,
    deltas: Sequence[Delta],
    live: torch.dtype = torch.float32,
    rounded: torch.dtype | None = None,
    width: int | None = None,
    start: int = 0,
) -> Site:
    """A span of a parameter `p`, of one group, with rows r0, r1 ..."""
    n = len(base)
    span, names = Span("p", start, start + n), [f"r{k}" for k in range(len(deltas))]
    live_part = torch.full((n,), 7, dtype=live)
    return Site(0, span, width or n, live_part, base, list(range(len(deltas))), names, list(deltas), rounded)


def merged(
    method: Method,
    deltas: Tensor | Sequence[Tensor],
    weight: Sequence[float],
    density: Sequence[float] | None = None,
    base: Tensor | None = None,
    **more: Sequence[float],
) -> Tensor:
    """What a method makes of float32 deltas."""
    base = torch.zeros(len(deltas[0])) if base is None else base
    site = site_of(base, [DenseDelta(delta) for delta in deltas])
    given = {"weight": weight, "density": density or [1.0] * len(deltas), **more}
    Builder([site], method).build({name: np.array([values], dtype=float) for name, values in given.items()})
    return site.live


def plainly(monkeypatch) -> None:
    """Let no kernel be there from now on."""
    for module in (compiled, products):
        monkeypatch.setattr(module, "available", lambda: "not here")
