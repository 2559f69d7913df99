"""The live model: the base, loaded once by transformers, whose parameters every candidate overwrites.

In: a model directory and the transformers class to load it with. Out: the model in eval mode without gradients, its tokenizer, and what the checkpoints
need to know about it: parameter shapes (tied parameters once), tied names, the prefix of its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from evomerge.errors import CheckpointError, ConfigError


@dataclass(frozen=True)
class LiveModel:
    """A loaded base.

    Attributes:
        model: in eval mode, parameters without gradients.
        tokenizer: of the base.
        parameters: name -> shape, in the model's order; tied parameters under their first name only.
        tied: alias -> the name it is tied to.
        prefix: `base_model_prefix` of its class, which may stand before the names in files.
    """

    model: Any
    tokenizer: Any
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    prefix: str


def load_live(path: Path, auto_class: str = "AutoModel", device: str = "auto") -> LiveModel:
    """Load a base from a directory, offline, with no code of its own and without touching the global random state.

    Args:
        path: a Hugging Face model directory.
        auto_class: the transformers class to load it with, e.g. AutoModel (a backbone without head) or AutoModelForCausalLM.
        device: a torch device, or `auto` for the first accelerator, else the CPU.

    Raises:
        ConfigError: no such class or device.
        CheckpointError: transformers cannot load the directory.
    """
    if not auto_class.startswith("AutoModel") or not hasattr(transformers, auto_class):
        raise ConfigError(
            f"transformers has no class {auto_class}: write model.auto_class=AutoModel, AutoModelForCausalLM or another AutoModel class."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        with torch.random.fork_rng():  # a head that the files lack is drawn at random by transformers
            model = getattr(transformers, auto_class).from_pretrained(
                path, local_files_only=True, trust_remote_code=False, dtype="auto"
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError) as error:
        raise CheckpointError(
            f"transformers cannot load {path} as {auto_class}: {str(error).splitlines()[0]} "
            f"It must be a directory with config.json, weights and tokenizer files, as save_pretrained writes it."
        ) from error
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device={device} cannot be used here: {str(error).splitlines()[0]} Write model.device=cpu."
        ) from error
    model.eval().requires_grad_(False)
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return LiveModel(model, tokenizer, parameters, dict(model.all_tied_weights_keys), model.base_model_prefix)
