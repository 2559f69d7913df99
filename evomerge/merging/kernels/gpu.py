"""Compiled merges on a GPU: the table of the CPU, and a kernel in Triton that starts at most twice for each variant.

In: sites of one variant, all of whose tensors lie on the device. Out: the same sites, overwritten with a candidate.
Pieces of full length that begin at multiples of 16 bytes are read in whole vectors; ends and other sites, element by
element. Of a candidate nothing but its numbers goes to the device.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from evomerge.merging.kernels.form import Numbers
from evomerge.merging.kernels.table import COLUMNS, HEAD, Places, Row, Variant
from evomerge.merging.sites import Site

BLOCK = 1 << 10
"""Elements that a program merges at once."""
STEPS = 16
"""Blocks of a piece, one after the other in the same program."""
VECTOR = 16
"""Bytes that a thread reads together."""
_DTYPES = ("float32", "bfloat16", "float16")
_KINDS = ("dense", "expert", "int8", "int4")

logger = logging.getLogger(__name__)


def available(device: torch.device) -> str | None:
    """Return why there are no kernels for a device that is not a CPU; None if there are. Said once, by the log."""
    return _missing(device.type)


@functools.cache
def _missing(kind: str) -> str | None:
    why = "there are no kernels for it"
    if kind == "cuda":
        try:
            import evomerge.merging.kernels.gpu_kernel  # noqa: F401

            return None
        except Exception as error:  # Triton raises whatever its parts do on platforms that it does not support
            why = f"Triton cannot be used here ({error})"
    logger.warning("merges on the device %s take the plain form, which is slower: %s", kind, why)
    return why


class Table:
    """Sites of one variant and the kernel that merges them; a `Merges`.

    Args:
        variant: of all of them.
        sites: what is merged, on one device.
        ranks: see `Places`; copied to the device.
    """

    form = "triton"

    def __init__(self, variant: Variant, sites: Sequence[Site], ranks: Sequence[Sequence[Tensor]] = ()) -> None:
        device = sites[0].live.device
        self._live = sites[0].live
        self._constants = constants(variant)
        self._places = Places(sites, [[each.to(device) for each in some] for some in ranks])
        pieces = self._places.pieces(STEPS * BLOCK)
        full = _aligned(self._places.places)[pieces[:, 0]] & (pieces[:, 2] - pieces[:, 1] == STEPS * BLOCK)
        self._pieces = {
            way: torch.from_numpy(some).to(device) for way in (True, False) if len(some := pieces[full == way])
        }
        self._arrays = [torch.empty_like(array, device=device) for array in self._written()]
        self._flaws = torch.zeros(1, dtype=torch.int32, device=device)

    def _written(self) -> list[Tensor]:
        at = self._places
        return [torch.from_numpy(array) for array in (at.places, at.floats, at.whole.view(np.int32), at.spans)]

    def merge(self, numbers: Numbers, skipped: np.ndarray) -> int:
        """Overwrite the sites; see `Merges`."""
        from evomerge.merging.kernels.gpu_kernel import launch

        self._places.write(numbers, skipped)
        for target, array in zip(self._arrays, self._written(), strict=True):
            target.copy_(array)
        self._flaws.zero_()
        with torch.cuda.device_of(self._live):
            for full, pieces in self._pieces.items():
                launch(len(pieces), *self._arrays, pieces, self._flaws, FULL=full, **self._constants)
        self._places.written()
        counts = self._constants["DIVIDE"] and self._constants["JOIN"] in ("elect", "count")
        return int(self._flaws) if counts else 0  # reading it waits for the device


def constants(variant: Variant) -> dict[str, float | str | bool]:
    """Return what the kernel is compiled for."""
    return {
        "KEEP": variant.form.keep,
        "JOIN": variant.form.join,
        "DIVIDE": variant.form.divide,
        "SCALE": variant.form.scale,
        "R": len(variant.rows),
        "ROWS": sum(_code(row) << (8 * k) for k, row in enumerate(variant.rows)),
        "BASE": _DTYPES.index(variant.base),
        "LIVE": _DTYPES.index(variant.live),
        "ROUNDED": _DTYPES.index(variant.rounded),
        "STEPS": STEPS,
        "BLOCK": BLOCK,
    }


def _code(row: Row) -> int:
    return _KINDS.index(row.kind) | _DTYPES.index(row.dtype) << 2 | row.masked << 4


def _aligned(places: np.ndarray) -> np.ndarray:
    """Whether all that is read in vectors begins at a multiple of their length, boolean (S,)."""
    rows = places[:, HEAD:].reshape(len(places), -1, len(COLUMNS))
    read = rows[:, :, [COLUMNS.index("values"), COLUMNS.index("ranks")]].reshape(len(places), -1)
    return (np.concatenate([places[:, :2], read], axis=1) % VECTOR == 0).all(axis=1)
