"""Floating buffers of a family, such as the running statistics of batch norm: what a merge has of them.

In: the `Checkpoint`s of base and experts. Out: tensors by name. They are no parameters, so no coefficient weighs them.
With `base` they are the base's, with `average` the mean over the experts, and with `recalibrate` they are taken anew of
each candidate (`fitness/recalibration.py`), as the statistics of a merge are those of no expert (Jordan et al. 2023,
REPAIR).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown

if TYPE_CHECKING:  # whoever reads settings or a recipe needs no torch
    from torch import Tensor

    from evomerge.models.checkpoint import Checkpoint

BASE, AVERAGE, RECALIBRATE = "base", "average", "recalibrate"
CHOICES = (BASE, AVERAGE, RECALIBRATE)
"""What `model.buffers` may be."""


def floating_buffers(checkpoint: Checkpoint) -> dict[str, Tensor]:
    """Return the floating buffers that the files of a model hold, by their names in the live model."""
    held = {checkpoint.names[key]: checkpoint.tensors[key] for key in checkpoint.buffers}
    return {name: tensor for name, tensor in held.items() if tensor.is_floating_point()}


def averaged(base: Checkpoint, experts: Mapping[str, Checkpoint]) -> dict[str, Tensor]:
    """Return the mean of the experts' floating buffers, taken in float64 and rounded to the base's dtype. An expert
    that lacks one counts with the base's.
    """
    import torch

    held = [floating_buffers(expert) for expert in experts.values()]
    return {
        name: torch.stack([own.get(name, ours).double() for own in held]).mean(0).to(ours.dtype)
        for name, ours in floating_buffers(base).items()
    }


def check_buffers(given: Mapping[str, str]) -> None:
    """Refuse what a recipe cannot say of buffers.

    Raises:
        ConfigError: it says so.
    """
    if not given:
        return
    if given.get("name") not in CHOICES[1:]:
        raise ConfigError(f"recipe: buffers.name: {unknown('choice', str(given.get('name')), CHOICES[1:])}")
    if given["name"] == RECALIBRATE:
        parts = PurePosixPath(given.get("file", "")).parts
        if len(parts) != 2 or parts[0] != "buffers" or parts[1] == ".." or "sha256" not in given:
            raise ConfigError(
                "recipe: recalibrated buffers need their file in buffers/ beside the recipe, and its sha256."
            )
