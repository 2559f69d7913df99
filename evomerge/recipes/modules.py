"""A merged model that came from no directory, written to one.

In: a module with the merge in it, its recipe, and its tokenizer if it has one. Out: a directory, as a whole or not at
all: of a model of transformers what `save_pretrained` writes, of any other module its state dict in model.safetensors;
and the recipe beside it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors.torch import save_model
from torch import nn
from transformers import PreTrainedModel

from evomerge.common.directories import whole_directory
from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.recipes.recipe import Recipe


def write_module(model: nn.Module, recipe: Recipe, out: Path, processor: Any = None) -> Path:
    """Write a module with its recipe.

    Args:
        model: holds the merge.
        recipe: what it was merged from.
        out: the directory to make; missing or empty.
        processor: its tokenizer or image processor; None for none.

    Raises:
        ConfigError: the directory holds something.
    """
    if out.exists() and (out.is_file() or any(out.iterdir())):
        raise ConfigError(f"{out} holds other files, and nothing is overwritten: name a new directory.")
    with whole_directory(out) as directory:
        if isinstance(model, PreTrainedModel):
            model.save_pretrained(directory)
            if processor is not None:
                processor.save_pretrained(directory)
        else:
            save_model(model, str(directory / "model.safetensors"))
        write_atomically(directory / "recipe.yaml", recipe.to_yaml())
    return out
