"""The dtypes of the model that was scored: of the whole, and of each parameter.

In: a recipe and the directory of its base. Out: the dtype in which the live model was, which the recipe says or, up to
0.2, the base's own files; and from it the dtype of every parameter, since transformers keeps some in float32 (`wo` of a
T5 in float16). A merged model that is written so is loaded to exactly the tensors that were scored.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch

from evomerge.live import LiveModel, load_skeleton
from evomerge.recipe import DTYPES, Recipe
from evomerge.weights import load_file, read_json, weight_files

BY_NAME: dict[str, torch.dtype] = {name: getattr(torch, name) for name in DTYPES}


def name_of(dtype: Any) -> str:
    """Return the name of a dtype without torch's prefix."""
    return str(dtype).removeprefix("torch.")


def scored_dtype(recipe: Recipe, base: Path, skeleton: LiveModel) -> torch.dtype:
    """Return the dtype in which the model of a recipe was scored.

    A recipe up to 0.2 does not say it. Its model had the dtype in which transformers loads the base with `auto`: that
    of the config, else of the index, else of the first floating tensor in the first file.

    Args:
        recipe: of the model.
        base: the directory of its base.
        skeleton: of that base.
    """
    if recipe.dtype is not None:
        return BY_NAME[recipe.dtype]
    if (said := skeleton.model.config.dtype) is not None:
        return said
    first, *shards = weight_files(base)
    indexed = (read_json(first).get("metadata") or {}).get("dtype") if shards else None
    if indexed in BY_NAME:
        return BY_NAME[indexed]
    held = load_file(shards[0] if shards else first).values()
    return next((tensor.dtype for tensor in held if tensor.is_floating_point()), torch.float32)


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
