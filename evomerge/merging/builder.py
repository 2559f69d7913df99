"""The builder: sites and a method in, candidates out; compiled where there is a kernel, plain elsewhere.

In: sites, and coefficients of one candidate. Out: the live places of these sites, overwritten. Sites of one kind are
merged together. A site whose weights are all zero gets the base, bit for bit. What a kernel and the plain form make is
the same to the last bit on a CPU, except at the end of spans with more than four rows: there mergekit adds up in
another order (`kernels/exact.py`), so these few elements are made by the plain form.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import MergeError
from evomerge.common.progress import Steps
from evomerge.merging.kernels.choice import Kernel, kernel_of
from evomerge.merging.kernels.exact import INTERLEAVED, VECTOR
from evomerge.merging.kernels.form import Numbers
from evomerge.merging.kernels.plain import Part, combine
from evomerge.merging.kernels.table import Merges
from evomerge.merging.method import Formed, Method, SpanMethod
from evomerge.merging.sites import Site, Together
from evomerge.merging.streaming import streamed, windows
from evomerge.task_vectors.spans import chunks
from evomerge.task_vectors.store import TaskVectors

CHUNK = 1 << 20
"""Elements that the plain form merges together on a CPU, 4 MiB of float32."""
CHUNK_FAR = 1 << 24
"""The same of other devices, where starting a kernel takes longer."""
PLAIN = "plain"
SMALL = 1 << 20
"""Elements below which a model on a CPU is merged without kernels: compiling them would take longer than they save."""


class Builder:
    """Overwrites sites with candidates.

    Args:
        sites: all that is merged.
        method: how.
        vectors: the rows that the sites are of, so that what is derived of them is kept on disk.
        progress: told what is prepared.
        window: bytes of base and task vectors that are brought to the device of the model at a time; None: they are
            there.
    """

    def __init__(
        self,
        sites: Sequence[Site],
        method: Method,
        vectors: TaskVectors | None = None,
        progress: Steps | None = None,
        window: int | None = None,
    ) -> None:
        if isinstance(method, Formed):
            together = Together(sites, sites, vectors, progress)
            self._parts: Sequence[_Formed | _Spans] = [*_formed(together, method, window)]
        elif isinstance(method, SpanMethod):
            self._parts = [_Spans(sites, method)]
        else:
            raise TypeError(f"{method!r} is neither formed nor a method of spans")
        self.forms = frozenset(part.form for part in self._parts)

    @torch.no_grad()
    def build(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite all sites.

        Args:
            coefficients: {variable: float64 (G, K)}.

        Raises:
            MergeError: weights of both signs cancel where the method divides by their sum.
        """
        for part in self._parts:
            part.build(coefficients)


class _Formed:
    """Sites of one variant and a formed method, by a kernel where there is one."""

    def __init__(
        self, together: Together, method: Formed, kernel: Kernel | None = None, window: int | None = None
    ) -> None:
        self._together, self._method, self._kernel = together, method, kernel
        self._windows = None if window is None else windows(together.sites, window)
        self._prepared = method.prepare(together)
        self._ranks = method.ranks(self._prepared)
        self._table = None if window is not None else self._table_of(together.sites, slice(None))
        self.form = PLAIN if kernel is None else kernel.form

    def build(self, coefficients: Mapping[str, np.ndarray]) -> None:
        numbers = self._method.numbers(self._together, self._prepared, coefficients)
        if self._windows is None:
            flaws = self._merge(self._together.sites, self._ranks, numbers, self._table)
        else:
            flaws = 0
            for window, sites in streamed(self._together.sites, self._windows):
                ranks = self._ranks[window]
                flaws += self._merge(sites, ranks, numbers.of(window), self._table_of(sites, window))
        if flaws:
            raise MergeError(
                f"The weights cancel in {flaws} elements of the model, and method.normalize=true divides by their sum: "
                f"write method.normalize=false, or bounds without negative weights in space.bounds."
            )

    def _table_of(self, sites: Sequence[Site], window: slice) -> Merges | None:
        return None if self._kernel is None else self._kernel.table(sites, self._ranks[window])

    def _merge(
        self, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]], numbers: Numbers, table: Merges | None
    ) -> int:
        """Overwrite sites, and return how many quotients were refused."""
        skipped = (numbers.weight == 0).all(axis=1) & (not self._method.form.blends)
        flaws = 0 if table is None else table.merge(numbers, skipped)
        for s, site in enumerate(sites):
            if skipped[s]:
                site.live.copy_(as_rounded(site.base, site.rounded))
                continue
            for chunk in _whole(site) if table is None else _uneven(site):
                flaws += self._plain(s, site, chunk, ranks[s] if ranks else (), numbers)
        return flaws

    def _plain(self, s: int, site: Site, chunk: slice, ranks: Sequence[Tensor], numbers: Numbers) -> int:
        part = Part(s, chunk.start, site.span.start + chunk.start, [each[chunk] for each in ranks])
        deltas = [delta[chunk] for delta in site.deltas]
        merged, flaws = combine(self._method.form, part, site.base[chunk].float(), deltas, numbers)
        site.live[chunk].copy_(as_rounded(merged, site.rounded))
        return flaws


class _Spans:
    """Sites and a method with a merge of its own, which merges where base and deltas lie."""

    form = PLAIN

    def __init__(self, sites: Sequence[Site], method: SpanMethod) -> None:
        self._method = method
        self._sites = [
            (site, [method.prepare(row, site.span, delta) for row, delta in zip(site.names, site.deltas, strict=True)])
            for site in sites
        ]

    def build(self, coefficients: Mapping[str, np.ndarray]) -> None:
        for site, prepared in self._sites:
            chosen = {name: values[site.group, site.rows] for name, values in coefficients.items()}
            for chunk in _whole(site) if self._method.elementwise else (slice(0, len(site)),):
                some = [each[chunk] for each in prepared] if self._method.elementwise else prepared
                out = torch.empty(chunk.stop - chunk.start, dtype=torch.float32, device=site.base.device)
                self._method.merge(site.base[chunk].float(), some, chosen, out)
                site.live[chunk].copy_(as_rounded(out, site.rounded))


def as_rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return a tensor rounded to a dtype: as it is, if there is none."""
    return tensor if dtype is None else tensor.to(dtype)


def _formed(whole: Together, method: Formed, window: int | None) -> Iterator[_Formed]:
    """Yield the sites of each kernel and device; those without a kernel by their number of rows."""
    found: dict[Kernel | tuple[int, torch.device], list[Site]] = {}
    small = sum(len(site) for site in whole.sites) < SMALL
    for site in whole.sites:
        kernel = None
        if not (small and site.live.device.type == "cpu"):
            kernel = kernel_of(method.form, site, streamed=window is not None)
        found.setdefault(kernel or (len(site.rows), site.live.device), []).append(site)
    for key, some in found.items():
        yield _Formed(replace(whole, sites=some), method, key if isinstance(key, Kernel) else None, window)


def _whole(site: Site) -> Iterator[slice]:
    """Yield all of a site, in chunks."""
    return chunks(len(site), CHUNK if site.live.device.type == "cpu" else CHUNK_FAR)


def _uneven(site: Site) -> Iterator[slice]:
    """Yield the end of a site in which `torch.sum` adds up rows in another order; nothing where it does not."""
    size = len(site)
    if site.live.device.type == "cpu" and len(site.rows) > INTERLEAVED and size % VECTOR:
        yield slice(size - min(size, VECTOR + size % VECTOR), size)
