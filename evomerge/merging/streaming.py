"""Task vectors that do not fit beside the model: they come from the host, window by window.

In: sites whose base and deltas lie in the memory of the host, or on disk, and the model on one device elsewhere. Out:
the same sites with base and deltas on the device of the model, some of them at a time, in order. The next window is on
its way while this one is used, so two of them are on the device. What is merged is the same as without.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

from evomerge.merging.sites import Site


def windows(sites: Sequence[Site], size: int) -> list[slice]:
    """Cut sites into windows.

    Args:
        sites: in their order.
        size: bytes of base and deltas in a window; a site with more is a window by itself.
    """
    found, start, held = [], 0, 0
    for place, site in enumerate(sites):
        if held and held + site.nbytes > size:
            found.append(slice(start, place))
            start, held = place, 0
        held += site.nbytes
    return [*found, slice(start, len(sites))] if sites else []


def streamed(sites: Sequence[Site], cuts: Sequence[slice]) -> Iterator[tuple[slice, list[Site]]]:
    """Yield each window with its sites on the device of the model; the next one is brought meanwhile.

    Args:
        sites: as they lie.
        cuts: the windows.
    """
    if not cuts:
        return
    device = sites[0].live.device
    beside = torch.cuda.Stream(device) if device.type == "cuda" else None
    with ThreadPoolExecutor(1) as loader:
        coming = loader.submit(_moved, sites[cuts[0]], beside)
        for place, cut in enumerate(cuts):
            here = coming.result()
            if place + 1 < len(cuts):
                coming = loader.submit(_moved, sites[cuts[place + 1]], beside)
            yield cut, here
            if beside is not None:  # or the next window would be put where this one is still read
                torch.cuda.current_stream(device).synchronize()
            del here


def _moved(sites: Sequence[Site], beside: torch.cuda.Stream | None) -> list[Site]:
    """Copy base and deltas to the device of the model, there beside what else goes on."""
    if beside is None:
        return [site.moved() for site in sites]
    with torch.cuda.stream(beside):
        moved = [site.moved() for site in sites]
        beside.synchronize()
    return moved
