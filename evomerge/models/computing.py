"""The dtype in which the live model computes, where that is not the dtype that its checkpoint has.

In: a loaded model, and the setting `model.compute`. Out: the same model with its tensors in a wider dtype, which holds
every value of the narrower one. Whatever is put into it is rounded to the dtype of the checkpoint first (`merger.py`),
so the weights that are scored are those that a merge is written with, and only the arithmetic is another. A processor
without arithmetic in bfloat16 takes several times as long for a forward pass in bfloat16 as for one in float32.
"""

from __future__ import annotations

import time
from dataclasses import replace

import torch

from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO
from evomerge.common.names import DTYPES, dtype_name, unknown
from evomerge.models.live import LiveModel

SHAPE = (768, 576, 1536)
"""Of the product that is timed: 8 texts of 96 tokens into the feed-forward layer of a small language model."""
TRIES = 3
"""How often it is made in each dtype; the fastest counts, since whatever else runs here only makes it slower."""
MUCH = 1.25
"""How many times as long it must take in the checkpoint's dtype for float32 to be chosen: else the real thing is."""


def computed_in(live: LiveModel, asked: str | None, kind: str | None = None) -> LiveModel:
    """Return a live model in the dtype that is asked for; its tensors are cast in place.

    Args:
        live: as it was loaded.
        asked: the name of a dtype; `auto` for the fastest one here that holds its weights; None for that of the
            checkpoint.
        kind: of the device that it will lie on; None for where it lies.

    Raises:
        ConfigError: there is no such dtype, or it cannot hold the weights.
    """
    if asked is None:
        return live
    if asked not in (AUTO, *DTYPES):
        raise ConfigError(f"model.compute: {unknown('choice', asked, (AUTO, *DTYPES))}")
    chosen, why = choose(live, kind) if asked == AUTO else (getattr(torch, asked), "")
    if chosen == live.dtype:
        return replace(live, why=why)
    if torch.promote_types(chosen, live.dtype) != chosen:
        name, own = dtype_name(chosen), dtype_name(live.dtype)
        raise ConfigError(
            f"model.compute={name}: {name} cannot hold the weights of this base, which are {own}, so the scores would "
            f"be those of other weights than a merge is written with. Write model.compute=auto; or save base and "
            f"experts in {name} first, and merge those."
        )
    narrow = {}
    for name, tensor in live.tensors().items():
        floating = tensor.is_floating_point() and tensor.dtype != chosen
        if floating and torch.promote_types(tensor.dtype, chosen) == chosen:  # what is finer already stays so
            narrow[name] = tensor.dtype
            tensor.data = tensor.data.to(chosen)
    if not narrow:  # a config that says another dtype than its model has, as after `model.float()`
        return live
    return replace(live, narrow=narrow, compute=chosen, why=why)


def choose(live: LiveModel, kind: str | None = None) -> tuple[torch.dtype, str]:
    """Return the dtype in which a forward pass is fastest where a model lies, of its own and float32, and the reason.

    On a CPU a product of matrices is timed in both, for a fraction of a second; other devices are made for 16 bits.

    Args:
        live: the model.
        kind: of the device that it will lie on; None for where it lies.
    """
    own, kind = live.dtype, kind or next(live.model.parameters()).device.type
    if own.itemsize >= torch.float32.itemsize:
        return own, ""
    if kind != "cpu":
        return own, f"as on any {kind}"
    times = product_seconds((own, torch.float32))
    ratio = times[own] / times[torch.float32]
    why = f"here a product in {dtype_name(own)} takes {ratio:.1f} times as long as in float32"
    return (torch.float32 if ratio > MUCH else own), why


@torch.inference_mode()
def product_seconds(dtypes: tuple[torch.dtype, ...]) -> dict[torch.dtype, float]:
    """Return the seconds that a product of matrices takes on the CPU in each dtype, at the threads that torch has.

    Args:
        dtypes: timed one after the other, round by round.
    """
    rows, inner, columns = SHAPE
    ones = {dtype: (torch.ones(rows, inner, dtype=dtype), torch.ones(columns, inner, dtype=dtype)) for dtype in dtypes}
    seconds = dict.fromkeys(dtypes, float("inf"))
    for tried in range(TRIES + 1):
        for dtype, (inputs, weight) in ones.items():
            started = time.perf_counter()
            torch.nn.functional.linear(inputs, weight)
            if tried:  # the first one pays for what is set up lazily
                seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    return seconds
