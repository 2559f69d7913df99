"""The live model: the base, loaded once by transformers, whose parameters every candidate overwrites.

In: a model directory and the transformers class to load it with. Out: the model in eval mode without gradients, its
tokenizer, and what the checkpoints need to know about it: parameter shapes (tied parameters once), tied names, the
prefix of its class. `load_model` also loads the classifiers whose heads are kept beside the merge.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.utils import logging as bars

from evomerge.errors import CheckpointError, ConfigError

VOCABULARIES = {"tokenizer.json", "tokenizer.model", "tekken.json"}
"""Where any tokenizer may keep its vocabulary, beside the files that its class names."""


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
        auto_class: the transformers class to load it with: AutoModel (no head), AutoModelForCausalLM ...
        device: a torch device, or `auto` for the first CUDA device, else the CPU.

    Raises:
        ConfigError: no such class or device.
        CheckpointError: transformers cannot load the directory, or it has no tokenizer.
    """
    if not auto_class.startswith("AutoModel") or not hasattr(transformers, auto_class):
        raise ConfigError(
            f"transformers has no class {auto_class}: write model.auto_class=AutoModel, AutoModelForCausalLM or "
            f"another AutoModel class."
        )
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(path, auto_class)
    tokenizer = _load_tokenizer(path)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device={device} cannot be used here: {_first_line(error)} Write model.device=cpu."
        ) from error
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return LiveModel(model, tokenizer, parameters, dict(model.all_tied_weights_keys), model.base_model_prefix)


def load_model(path: Path, auto_class: str, dtype: torch.dtype | str = "auto") -> tuple[Any, list[str]]:
    """Load a model on the CPU: offline, silently, without touching the global random state.

    Args:
        path: a Hugging Face model directory.
        auto_class: the transformers class to load it with.
        dtype: of its parameters; `auto` for that of its files.

    Returns:
        The model in eval mode, its parameters without gradients; and the names of the parameters that no file holds,
        whose values are random.

    Raises:
        CheckpointError: there is no such directory, or transformers cannot load it, or config and weights disagree.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}: name a model directory, as save_pretrained writes it.")
    try:
        # what the files lack is drawn at random; what is made in inference mode could never take part in a gradient
        with _silence(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
            model, info = getattr(transformers, auto_class).from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                dtype=dtype,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # or it raises an error that only points to the report it has printed
            )
    except Exception as error:  # of whatever kind the reader of any of its files raises
        raise CheckpointError(
            f"transformers cannot load {path} as {auto_class}: {_first_line(error)} "
            f"It must be a directory with config.json, weights and tokenizer files, as save_pretrained writes it."
        ) from error
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{path} contradicts itself: its files hold {name} with the shape {tuple(found)}, its config.json asks for "
            f"{tuple(expected)}. Put the config.json back that belongs to these weights."
        )
    return model.eval().requires_grad_(False), sorted(info["missing_keys"])


def _load_tokenizer(path: Path) -> Any:
    try:
        with _silence():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        named = set(tokenizer.vocab_files_names.values())
        if named and not any((path / name).is_file() for name in named | VOCABULARIES):
            raise OSError("no file holds a vocabulary.")  # transformers makes an empty one: every word is unknown to it
    except Exception as error:  # of whatever kind the reader of any of its files raises
        raise CheckpointError(
            f"{path} has no tokenizer that transformers can load: {_first_line(error)} Save the base's tokenizer "
            f"beside its weights: AutoTokenizer.from_pretrained(<its origin>).save_pretrained(<this directory>)."
        ) from error
    return tokenizer


@contextmanager
def _silence() -> Iterator[None]:
    """Keep transformers from printing reports, advice and bars while it loads, and put its settings back."""
    logger = logging.getLogger("transformers")
    level, active = logger.level, bars.is_progress_bar_enabled()
    logger.setLevel(max(level, logging.ERROR))
    if active:
        bars.disable_progress_bar()
    try:
        yield
    finally:
        logger.setLevel(level)
        if active:
            bars.enable_progress_bar()


def _first_line(error: Exception) -> str:
    return next(iter(str(error).splitlines()), type(error).__name__)
