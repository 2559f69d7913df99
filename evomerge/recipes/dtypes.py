"""The dtypes of the model that was scored: of the whole, and of each parameter.

In: a recipe and the directory of its base. Out: the dtype in which the live model was, which the recipe says or, up to
0.2, the base's own files; and from it the dtype of every parameter, since transformers keeps some in float32 (`wo` of a
T5 in float16). A merged model that is written so is loaded to exactly the tensors that were scored.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch

from evomerge.common.names import DTYPES
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel, load_skeleton
from evomerge.models.weights import loaded_dtype
from evomerge.recipes.recipe import Recipe

BY_NAME: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


def scored_dtype(recipe: Recipe, base: Checkpoint, skeleton: LiveModel) -> torch.dtype:
    """Return the dtype in which the model of a recipe was scored.

    A recipe up to 0.2 does not say it. Its model had the dtype in which transformers loads the base with `auto`.

    Args:
        recipe: of the model.
        base: θ₀.
        skeleton: of that base.
    """
    if recipe.dtype is not None:
        return BY_NAME[recipe.dtype]
    return getattr(torch, loaded_dtype(base.path, base.tensors, skeleton.model.config.dtype))


def parameter_dtypes(base: Path, auto_class: str, dtype: torch.dtype) -> dict[str, torch.dtype]:
    """Return the dtype of every parameter, by its name, of a base that transformers has loaded in a dtype.

    Args:
        base: its directory.
        auto_class: the transformers class that it was loaded with.
        dtype: of the whole.
    """
    model = load_skeleton(base, auto_class, dtype).model
    found = {name: parameter.dtype for name, parameter in model.named_parameters()}
    for pattern, kept in model._get_dtype_plan(dtype).items():
        found |= {name: kept for name in found if re.search(pattern.replace("*", ".*"), name)}
    return found
