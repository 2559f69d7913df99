"""Where the live model lies: on one device, or which of its modules on which of several (`model.device_map`).

In: the settings `model.device` and `model.device_map`; later the model, on the CPU or the meta device. Out: a map from
modules to devices that holds for it, or a refusal. accelerate finds the map of `auto`. `spreading.py` puts it there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers.utils.import_utils import is_accelerate_available

from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO
from evomerge.common.machine import ROOM
from evomerge.common.names import listed, nearest
from evomerge.models.pretrained import first_line
from evomerge.models.spreading import holder_of, quiet, spread

EXAMPLE = "'model.device_map={model.embed_tokens: cuda:0, model.layers: cuda:1, ...}'"
GIB = 2**30


@dataclass(frozen=True)
class Devices:
    """Where a model is to lie: the settings `model.device` and `model.device_map`.

    Attributes:
        device: a torch device, or `auto`.
        map: None for that device alone; `auto`, or the device of each module by its name.
    """

    device: str = AUTO
    map: Any = None

    def check(self) -> None:
        """Refuse what means nothing here, before a model is loaded.

        Raises:
            ConfigError: the map is none, a device is not there, weights would be offloaded, or accelerate is missing.
        """
        if self.map is None:
            return
        if not is_accelerate_available():
            raise ConfigError(
                "model.device_map needs accelerate, which is not installed: pip install 'evomerge[large]'"
            )
        if self.map != AUTO and not (isinstance(self.map, Mapping) and self.map):
            raise ConfigError(
                f"model.device_map={self.map} is no map of modules to devices: write model.device_map=auto, or "
                f"{EXAMPLE}."
            )
        devices = {AUTO} if self.map == AUTO else {*self._named().values()}
        if self.device != AUTO and devices != {self.device}:
            raise ConfigError(
                f"model.device={self.device} and model.device_map say two things about where the model lies: leave one "
                f"of them out."
            )
        if len(kinds := {torch.device(device).type for device in devices - {AUTO}}) > 1:
            raise ConfigError(
                f"model.device_map spreads the model over devices of several kinds ({', '.join(sorted(kinds))}), and "
                f"what lies on the CPU would be copied to a GPU for each pass, where no merge is written. Name GPUs "
                f"alone; task vectors may lie in the host's memory: model.place=host."
            )

    @property
    def first(self) -> str:
        """Where a model is loaded: one that is spread later stays mapped from its files until then."""
        return self.device if self.map is None else "cpu"

    @property
    def kind(self) -> str | None:
        """The kind of device that a model is spread over, `cpu` or `cuda`; None where it stays where it is loaded."""
        if self.map is None:
            return None
        if self.map == AUTO:
            return "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(next(iter(self._named().values()))).type

    def spread(self, model: nn.Module) -> None:
        """Put a loaded model where it is to lie: last, so that nothing replaces a module that has hooks.

        Args:
            model: on `first`; changed.

        Raises:
            ConfigError: the map names what the model has not, leaves something out, or takes apart what belongs
                together; or the GPUs are too small.
        """
        if self.map == AUTO:
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            free = {f"cuda:{index}": int(torch.cuda.mem_get_info(index)[0] * (1 - ROOM)) for index in range(count)}
            spread(model, shared_evenly(model, free) if free else {"": "cpu"})
        elif self.map is not None:
            spread(model, checked_map(model, self._named()))

    def _named(self) -> dict[str, str]:
        return {str(module): _device(str(module), name) for module, name in self.map.items()}


def shared_evenly(model: nn.Module, free: Mapping[str, int]) -> dict[str, str]:
    """Spread a model over devices as evenly as whole layers allow.

    Args:
        model: may be on the meta device.
        free: the bytes that it may take, by device.

    Raises:
        ConfigError: they are too few.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import get_balanced_memory

    names, whole = list(free), sorted(_whole(model))
    with quiet():
        limits = get_balanced_memory(model, dict(enumerate(free.values())), whole)
        found = infer_auto_device_map(model, limits, whole)
    if lost := [module for module, at in found.items() if at == "disk"]:
        size = sum(parameter.nbytes for parameter in model.parameters()) / GIB
        raise ConfigError(
            f"model.device_map=auto: the model takes {size:.1f} GiB, and {listed(lost)} finds no room on "
            f"{', '.join(f'{name} ({most / GIB:.1f} GiB)' for name, most in free.items())}: give a worker more GPUs "
            f"(evaluator.gpus), or take a smaller model."
        )
    return {module: names[int(str(at))] for module, at in found.items()}


def _device(module: str, name: Any) -> str:
    """Return a device as torch writes it.

    Raises:
        ConfigError: there is none such here.
    """
    where = f"model.device_map puts {module or 'the model'} on {name}"
    text = f"cuda:{name}" if isinstance(name, int) and not isinstance(name, bool) else str(name)
    if text in ("disk", "meta"):
        raise ConfigError(
            f"{where}, where no weights can be merged: evomerge refuses to offload weights. Name GPUs; task vectors "
            f"may lie on disk: model.place=disk."
        )
    try:
        device = torch.device(text)
    except RuntimeError as error:
        raise ConfigError(f"{where}, which is no device: write cuda:0, cuda:1 ...") from error
    if device.type == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if (device.index or 0) >= count:
            seen = f"{count} GPUs, the last of them cuda:{count - 1}" if count else "no GPU"
            raise ConfigError(f"{where}, and this process sees {seen}: write model.device_map=auto, or another device.")
        return f"cuda:{device.index or 0}"
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"{where}, which cannot be used here: {first_line(error)}") from error
    return str(device)


def checked_map(model: nn.Module, where: dict[str, str]) -> dict[str, str]:
    """Return a map, and refuse one that is not of this model.

    Args:
        model: on any device.
        where: the device of each module.

    Raises:
        ConfigError: see `Devices.spread`.
    """
    modules = dict(model.named_modules())
    for module in where:
        if module not in modules:
            near = ", ".join(nearest(module, modules, 3, 0.0))
            raise ConfigError(
                f"model.device_map names the module {module}, which {type(model).__name__} has not. The nearest are "
                f"{near}."
            )
    held = {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers())}
    if left := [name for name in held if holder_of(name, where) is None]:
        raise ConfigError(f"model.device_map leaves {listed(left)} without a device: give their modules one.")
    at = {name: where[holder_of(name, where)] for name in held}
    for name, module in modules.items():
        if type(module).__name__ in _whole(model):
            devices = sorted({at[one] for one in at if one.startswith(f"{name}.")})
            if len(devices) > 1:
                raise ConfigError(
                    f"model.device_map takes {name} apart ({' and '.join(devices)}), and a {type(module).__name__} "
                    f"adds up what its parts give: put all of it on one device."
                )
    tied: Mapping[str, str] = getattr(model, "all_tied_weights_keys", None) or {}
    for alias, name in tied.items():
        if at[alias] != at[name]:
            raise ConfigError(
                f"model.device_map puts {alias} on {at[alias]} and {name} on {at[name]}, and these are one tensor: "
                f"put both on one device."
            )
    return where


def _whole(model: nn.Module) -> set[str]:
    """Return the classes of modules that must not be taken apart, as the model's own class says."""
    return set(getattr(model, "_no_split_modules", None) or ())
