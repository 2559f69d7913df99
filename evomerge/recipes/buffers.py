"""The floating buffers of a merge, beside its recipe and in its files.

In: a problem with a candidate in its live model, or a recipe and its sources. Out: a file of statistics that were taken
anew, `buffers/statistics.safetensors` beside the recipe, which names it by its hash; and the tensors that a merged
model has in place of the base's.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.models.buffers import AVERAGE, BASE, RECALIBRATE, averaged, floating_buffers
from evomerge.models.checkpoint import Checkpoint
from evomerge.problem import Problem
from evomerge.recipes.recipe import Recipe

FILE = "buffers/statistics.safetensors"


def keep_buffers(problem: Problem, directory: Path) -> dict[str, str]:
    """Write the buffers of the candidate that is in the live model, if a recipe cannot tell them otherwise.

    Args:
        problem: what is searched.
        directory: where the recipe will be.

    Returns:
        What the recipe says of buffers.
    """
    if problem.buffers == BASE:
        return {}
    if problem.buffers == AVERAGE:
        return {"name": AVERAGE}
    base, live = floating_buffers(problem.vectors.base), dict(problem.live.model.named_buffers())
    content = save({name: live[name].to("cpu", tensor.dtype).contiguous() for name, tensor in base.items()})
    (directory / FILE).parent.mkdir(exist_ok=True)
    (directory / FILE).write_bytes(content)
    return {"name": RECALIBRATE, "file": FILE, "sha256": hashlib.sha256(content).hexdigest()}


def merged_buffers(
    recipe: Recipe, beside: Path, base: Checkpoint, experts: Mapping[str, Checkpoint]
) -> dict[str, Tensor]:
    """Return the tensors of the base's files that a merge has otherwise, by key.

    Args:
        recipe: of the merge.
        beside: the directory of the recipe.
        base: θ₀.
        experts: θ_k by name.

    Raises:
        ConfigError: the file of the recipe is not there.
        CheckpointError: it is not the one that the recipe was written with.
    """
    if not recipe.buffers:
        return {}
    own = averaged(base, experts) if recipe.buffers["name"] == AVERAGE else load_file(statistics_of(recipe, beside))
    keys = {base.names[key]: key for key in base.buffers}
    return {keys[name]: tensor for name, tensor in own.items()}


def put_statistics(model: nn.Module, file: Path) -> None:
    """Write the statistics of a recipe into a live model."""
    own = dict(model.named_buffers())
    with torch.no_grad():
        for name, tensor in load_file(file).items():
            own[name].copy_(tensor)


def statistics_of(recipe: Recipe, beside: Path) -> Path:
    """Return the file of statistics of a recipe.

    Raises:
        ConfigError: it is not there.
        CheckpointError: it is another one.
    """
    file = beside / recipe.buffers["file"]
    if not file.is_file():
        raise ConfigError(
            f"The statistics that were taken anew for this recipe are not at {file}: copy the recipe with the "
            f"{Path(FILE).parent}/ beside it."
        )
    if hashlib.sha256(file.read_bytes()).hexdigest() != recipe.buffers["sha256"]:
        raise CheckpointError(f"{file} has changed since the recipe was written: copy it anew, with the recipe.")
    return file
