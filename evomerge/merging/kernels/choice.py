"""Which kernel merges a site: numba's on CPUs, Triton's on CUDA; elsewhere none, and the plain form serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evomerge.merging.kernels import compiled, cpu, gpu
from evomerge.merging.kernels.form import Form
from evomerge.merging.kernels.table import Merges, Variant, variant_of
from evomerge.merging.sites import Site


@dataclass(frozen=True)
class Kernel:
    """What sites that are merged together have in common.

    Attributes:
        variant: of the kernel.
        device: on which they lie.
    """

    variant: Variant
    device: torch.device

    @property
    def form(self) -> str:
        """What it is called where it is said how candidates were made."""
        return self._make.form

    def table(self, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]]) -> Merges:
        """Return the table of such sites; see `table.Places`."""
        return self._make(self.variant, sites, ranks)

    @property
    def _make(self) -> type[cpu.Table] | type[gpu.Table]:
        return cpu.Table if self.device.type == "cpu" else gpu.Table


def kernel_of(form: Form, site: Site, streamed: bool = False) -> Kernel | None:
    """Return the kernel that merges a site; None where there is none. That a device has none is said once, by the log.

    Args:
        form: how it is merged.
        site: what.
        streamed: whether all of it is brought to the device of the model before it is merged.
    """
    device = site.live.device
    if compiled.available() if device.type == "cpu" else gpu.available(device):
        return None
    variant = variant_of(form, site) if streamed or _lies_on(site, device) else None
    return variant and Kernel(variant, device)


def _lies_on(site: Site, device: torch.device) -> bool:
    read = [site.base, *(tensor for delta in site.deltas for tensor in delta.layout().tensors)]
    return all(tensor.device == device for tensor in read)
