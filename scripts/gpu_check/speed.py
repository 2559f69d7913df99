"""How fast merges are on a card: the bandwidth of each form beside that of a copy, and layers of a model of 7 B."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import torch

from evomerge.merging.kernels import gpu
from evomerge.merging.kernels.form import Numbers
from evomerge.merging.kernels.table import variant_of
from evomerge.merging.sites import Site
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.expert import ExpertDelta
from evomerge.task_vectors.spans import Span
from gpu_check.agreement import FORMS, ROWS

SIZE = 1 << 27
TIMES = 15
LAYER = [(4096, 4096)] * 4 + [(11008, 4096)] * 3 + [(4096,)] * 2
"""The parameters of a layer of Llama 2 7B (Touvron et al. 2023)."""
LAYERS = 32
ROOM = 0.8
"""Share of the free memory that layers take."""


def bandwidth() -> list[dict[str, Any]]:
    """Return `{"case", "seconds", "bytes_a_second", "of_copy"}`, of a copy and of every form on kept bfloat16."""
    copied, nbytes = _copy()
    rate = nbytes / copied
    lines = [{"case": "copy", "seconds": copied, "bytes_a_second": rate, "of_copy": 1.0}]
    for name in FORMS:
        rows = FORMS[name].takes or ROWS
        some = _site(SIZE, rows)
        seconds = seconds_of(_merge(name, [some]))
        own = (rows + 2) * some.base.nbytes / seconds
        lines.append({"case": name, "seconds": seconds, "bytes_a_second": own, "of_copy": own / rate})
    return lines


def _copy() -> tuple[float, int]:
    """Return the seconds of a copy, and the bytes that it reads and writes."""
    source, target = (torch.zeros(2 * SIZE, dtype=torch.bfloat16, device="cuda") for _ in range(2))
    return seconds_of(lambda: target.copy_(source)), 2 * source.nbytes


def layers() -> dict[str, Any]:
    """Return the seconds of a linear merge of some layers, and of all if each took as long."""
    elements = sum(int(np.prod(shape)) for shape in LAYER)
    count = int(min(LAYERS, torch.cuda.mem_get_info()[0] * ROOM // ((ROWS + 2) * 2 * elements)))
    if not count:
        return {"skipped": "not one layer fits into the free memory"}
    sites = [_site(int(np.prod(shape)), ROWS) for _ in range(count) for shape in LAYER]
    found: dict[str, Any] = {"layers": count, "experts": ROWS, "dtype": "bfloat16"}
    for name in ("linear", "ties", "dare_ties"):
        seconds = seconds_of(_merge(name, sites))
        found[name] = {"seconds": seconds, f"scaled_to_{LAYERS}_layers": seconds * LAYERS / count}
    return found


def seconds_of(work: Callable[[], Any]) -> float:
    """Return the median seconds of some work on the card."""
    work()
    found = []
    for _ in range(TIMES):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        work()
        end.record()
        torch.cuda.synchronize()
        found.append(start.elapsed_time(end) / 1000)
    return median(found)


def _site(size: int, rows: int, device: str = "cuda") -> Site:
    """Return a site whose numbers are made on the device: on a CPU that would take minutes."""
    base = torch.empty(size, dtype=torch.bfloat16, device=device).normal_(std=0.02)
    deltas: list[Delta] = [ExpertDelta(base, base + torch.randn_like(base) / 500) for _ in range(rows)]
    names = [f"expert {k}" for k in range(rows)]
    return Site(0, Span("p", 0, size), size, torch.empty_like(base), base, list(range(rows)), names, deltas)


def _merge(name: str, sites: list[Site]) -> Callable[[], int]:
    """Return what merges sites, with numbers such as a candidate has: cuts in the middle, densities of a half."""
    form, shape = FORMS[name].form, (len(sites), len(sites[0].deltas))
    if form.keep == "ranked":
        ranks = [[torch.zeros(len(site), dtype=torch.uint16) for _ in site.deltas] for site in sites]
    else:
        ranks = []
    variant = variant_of(form, sites[0])
    if variant is None:
        raise ValueError(f"{name} has no kernel")
    table = gpu.Table(variant, sites, ranks)
    cut = np.broadcast_to(np.array([np.float32(0.0014).view(np.uint32), 0], dtype=np.uint32), (*shape, 2))
    numbers = Numbers(
        weight=np.full(shape, 0.4, dtype=np.float32),
        base=np.full(shape[0], 0.5, dtype=np.float32),
        divisor=np.full(shape[0], 1.2, dtype=np.float32),
        keys=np.arange(2 * shape[0] * shape[1], dtype=np.uint32).reshape(*shape, 2),
        chance=np.full((*shape, 3 if form.keep == "ranked" else 2), 0.5, dtype=np.float32),
    )
    if form.keep in ("largest", "between"):
        numbers = replace(numbers, keys=np.zeros(0), cut=cut, upper=cut + np.uint32(1 << 23))
    return lambda: table.merge(numbers, np.zeros(len(sites), dtype=bool))
