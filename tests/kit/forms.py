"""All forms of merges, and sites on which they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from evomerge.merging import methods
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta
from tests.kit.methods import site_of

SIZE = 64 * 33
FORMS = {
    "linear": methods.Linear(),
    "ties": methods.Ties(),
    "ties normalized": methods.Ties(normalize=True),
    "ties by count": methods.Ties(elect="count"),
    "dare": methods.Dare(seed=3),
    "dare normalized": methods.Dare(normalize=True, scale=1.3),
    "dare_ties": methods.DareTies(seed=3),
    "della": methods.Della(),
    "della summed": methods.Della(elect=None, rescale=False),
    "breadcrumbs": methods.Breadcrumbs(gamma=0.1),
    "breadcrumbs elected": methods.Breadcrumbs(gamma=0.1, elect="sum", normalize=True, scale=0.7),
}


def drawn(rows: int, dtype: torch.dtype, kind: str = "expert", size: int = SIZE, **more: Any) -> Site:
    """A site with deltas that are zero in a fifth of their elements, and with many equal ones."""
    generator = torch.Generator().manual_seed(rows)
    base = (torch.randn(size, generator=generator) / 50).to(dtype)
    deltas: list[Delta] = []
    for _ in range(rows):
        tuned = torch.randn(size, generator=generator) / 500 * (torch.rand(size, generator=generator) > 0.2)
        expert = (base.float() + tuned).to(dtype)
        deltas.append(ExpertDelta(base, expert) if kind == "expert" else DenseDelta(expert.float() - base.float()))
    return site_of(base, deltas, **{"live": dtype, "width": 64 if size % 64 == 0 else None, **more})


def coefficients(rows: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(rows)
    return {
        "weight": rng.uniform(0.1, 1, (1, rows)),
        "density": rng.uniform(0.2, 0.9, (1, rows)),
    }
