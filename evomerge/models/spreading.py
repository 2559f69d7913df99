"""A model spread over several devices: put there, asked about it, and joined by models that share its parameters.

In: a model on the CPU, and the device of each module. Out: the same model, each parameter on its device, with hooks of
accelerate that bring inputs to where a module lies, and what comes out to where the inputs were. accelerate would also
keep what does not fit on the host or on a disk, and put copies of it on a GPU for each pass. A merge is written where a
parameter lies, and such a copy would not see it: `devices.py` refuses such maps.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from evomerge.models.pretrained import moved

COLUMNS = "logits_to_keep"
"""An input that picks hidden states where the model ends: it is not brought to where the model begins."""


def spread(model: nn.Module, where: Mapping[str, str]) -> Any:
    """Return a model with each parameter on its device, and hooks that bring inputs there.

    Args:
        model: on the CPU; changed.
        where: the device of each module, as `shared_evenly` gives it.
    """
    if len(set(where.values())) == 1:
        return moved(model, next(iter(where.values())))
    from accelerate import dispatch_model

    first = next(name for name, _ in model.named_parameters())
    with quiet():
        dispatch_model(
            model,
            dict(where),
            main_device=torch.device(where[holder_of(first, where)]),
            skip_keys=[*(getattr(model, "_skip_keys_device_placement", None) or ()), COLUMNS],
        )
    for name in ("to", "cuda"):  # accelerate warns there; on a copy of the model, its methods would move this one
        vars(model).pop(name, None)
    return model


def spread_like(view: Any, mine: nn.Module, model: Any, part: nn.Module) -> Any:
    """Return a model that shares parameters with another one, the rest of it where that one lies, or where it ends.

    Args:
        view: with parameters of the other one; changed.
        mine: the part of it that has them.
        model: the other one, on one device or spread over several.
        part: the part of it that is shared.
    """
    where = _map_of(model)
    if not is_spread(model):
        return view.to(next(model.parameters()).device)  # what is shared is there
    here, there = (
        next(f"{name}." if name else "" for name, module in whole.named_modules() if module is one)
        for whole, one in ((view, mine), (model, part))
    )
    found = {here + name.removeprefix(there): device for name, device in where.items() if name.startswith(there)}
    known, last = dict(view.named_modules()), [*where.values()][-1]
    found = {name: device for name, device in found.items() if name in known}
    for name, _ in (*view.named_parameters(remove_duplicate=False), *view.named_buffers()):
        if holder_of(name, found) is None:
            found[name.rpartition(".")[0]] = last
    return spread(view, found)


def is_spread(model: Any) -> bool:
    """Whether a model lies on several devices."""
    return len(set(_map_of(model).values())) > 1


def kinds_of(devices: Iterable[torch.device]) -> dict[str, str]:
    """Return on which kinds of devices a model lies, as a fingerprint says it. Which of a kind, and how many, changes
    no bit: no operation spans two of them.
    """
    devices = list(devices)
    found = {"device": " + ".join(sorted({device.type for device in devices}))}
    names = {torch.cuda.get_device_name(device) for device in devices if device.type == "cuda"}
    return {**found, **({"accelerator": " + ".join(sorted(names))} if names else {})}


def devices_of(where: Mapping[str, str], model: nn.Module) -> dict[str, str]:
    """Return the device of each parameter, by its name.

    Args:
        where: the device of each module.
        model: has the parameters.
    """
    return {name: where[holder_of(name, where)] for name, _ in model.named_parameters()}


def _map_of(model: Any) -> Mapping[str, Any]:
    """Return the map by which a model was spread, by whomever: accelerate leaves it on the model."""
    return getattr(model, "hf_device_map", None) or {}


def holder_of(name: str, where: Mapping[str, str]) -> Any:
    """Return the innermost module of a map that holds a tensor; None where none does."""
    parts = name.split(".")
    return next((module for end in range(len(parts), -1, -1) if (module := ".".join(parts[:end])) in where), None)


@contextmanager
def quiet() -> Iterator[None]:
    """Keep accelerate from advice on GPUs and offloading."""
    logger = logging.getLogger("accelerate")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)
