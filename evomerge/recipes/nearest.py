"""What any merge changes of a base's matrices, as the factors of a rank that are nearest to it.

In: a recipe and its opened sources. Out: for each matrix that the merge changes, the largest singular values of the
change with their vectors: its nearest factors of this rank in the Frobenius norm, with what they leave out. A change of
anything else, such as a bias, has no factors, and is refused by name.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.common.progress import Steps
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel
from evomerge.recipes.combined import Combined, truncated
from evomerge.recipes.rebuild import Rebuild
from evomerge.recipes.recipe import Recipe

FACTORED = (nn.Linear, nn.Embedding, nn.Conv1d, nn.Conv2d, nn.Conv3d, Conv1D)
"""The modules whose weights PEFT changes by factors."""


def nearest(
    recipe: Recipe, live: LiveModel, base: Checkpoint, experts: Mapping[str, Checkpoint], rank: int, progress: Steps
) -> dict[str, Combined]:
    """Return the factors of what a merge changes, by parameter.

    Args:
        recipe: what to build.
        live: its skeleton.
        base: θ₀.
        experts: θ_k by name.
        rank: at most.
        progress: told of the decompositions, in elements.

    Raises:
        ConfigError: the merge changes more than matrices of layers.
    """
    parameters = {name: shape for name, shape in live.parameters.items() if name not in base.missing}
    rebuild = Rebuild(recipe, base, experts, parameters)

    def change(name: str) -> Tensor:
        rebuild.write(name, merged := torch.empty(math.prod(parameters[name])))
        return merged.sub_(base.tensor(name).reshape(-1).float())

    matrices = [name for name in parameters if _is_factored(live.model, name)]
    if others := [name for name in parameters if name not in matrices and bool(torch.any(change(name)))]:
        raise ConfigError(
            f"--adapter: the merge changes {listed(others)}, and an adapter changes weights of linear layers, "
            "convolutions and embeddings alone. Leave --adapter out: `evomerge merge` then writes a whole model."
        )
    found, done, total = {}, 0, sum(math.prod(parameters[name]) for name in matrices)
    for name in matrices:
        one = change(name)
        if bool(torch.any(one)):
            found[name] = truncated(one.view(parameters[name][0], -1), rank)
        done += one.numel()
        progress("singular values", done, total)
    return found


def _is_factored(model: nn.Module, name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return leaf == "weight" and isinstance(model.get_submodule(module), FACTORED)
