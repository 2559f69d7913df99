"""What transformers is asked: models with and without weights, processors, and how it names what a file holds.

In: a model directory and a class. Out: models on the CPU in eval mode without gradients, or on the meta device; the
directory's tokenizer or image processor; new names for the keys of its files. Everything is offline and silent, runs no
code of the directory's own, and leaves the global random state alone.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import nn
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import logging as bars
from transformers.utils.import_utils import is_vision_available

from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError
from evomerge.models.adapter_files import is_adapter
from evomerge.models.matching import Layout, match
from evomerge.models.weight_files import check_readable, read_json, weight_files
from evomerge.models.weights import read_tensors, same

VOCABULARIES = {"tokenizer.json", "tokenizer.model", "tekken.json"}
"""Where any tokenizer may keep its vocabulary, beside the files that its class names."""


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
    check_directory(path)
    if is_adapter(path):
        weight_files(path)  # says that an adapter is no model
    if (path / "config.json").is_file():
        check_readable(path)
    try:
        # what the files lack is drawn at random; what is made in inference mode could never take part in a gradient
        with silence(), torch.random.fork_rng(devices=[]), torch.inference_mode(False):
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
            f"transformers cannot load {path} as {auto_class}: {first_line(error)} "
            f"{remedy(path, 'config.json, weights and tokenizer files')}"
        ) from error
    if info["mismatched_keys"]:
        name, found, expected = min(info["mismatched_keys"])
        raise CheckpointError(
            f"{path} contradicts itself: its files hold {name} with the shape {tuple(found)}, its config.json asks for "
            f"{tuple(expected)}. Put the config.json back that belongs to these weights."
        )
    for parameter in model.parameters():  # a file may hold a matrix transposed, as TensorFlow has it
        parameter.data = parameter.data.contiguous()
    return model.eval().requires_grad_(False), sorted(info["missing_keys"])


def remedy(path: Path, files: str) -> str:
    """Say what to do about a model directory that transformers cannot load; `files` are those that it needs."""
    if (path / "config.json").is_file():
        kind = read_json(path / "config.json").get("model_type")
        if isinstance(kind, str) and kind not in transformers.CONFIG_MAPPING:
            return (
                f"Its classes are none of transformers', and evomerge runs no code of a model: register those of "
                f"{kind!r} in a program of your own (AutoConfig.register, AutoModel.register), and use em.Family there."
            )
    return f"It must be a directory with {files}, as save_pretrained writes it."


def read_config(path: Path) -> Any:
    """Return the config of a model directory, as transformers resolves it."""
    with silence():
        return transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)


def empty_model(auto_class: str, config: Any, dtype: torch.dtype | None = None) -> Any:
    """Make a model of a config without weights, on the meta device; in the config's dtype where none is given.

    Raises:
        ValueError: transformers has no such class for this config.
    """
    known = getattr(getattr(transformers, auto_class), "_model_mapping", None)
    if known is not None and type(config) not in known and auto_class not in (getattr(config, "auto_map", None) or {}):
        # transformers says it too, but loads several hundred configs for the names in its message: a second or two
        raise ValueError(f"transformers has no {auto_class} for a config of type {config.model_type}.")
    with silence(), torch.random.fork_rng(devices=[]), torch.device("meta"):
        return getattr(transformers, auto_class).from_config(
            config, trust_remote_code=False, **({"dtype": dtype} if dtype else {})
        )


def frozen(model: Any) -> frozenset[str]:
    """Return the parameters that a new model's class never trains: positions that are computed, say."""
    return frozenset(name for name, parameter in model.named_parameters() if not parameter.requires_grad)


def can_tie(model: Any) -> bool:
    """Whether the class of a model, or of a part of it, ties any of its parameters under some setting."""
    return any(getattr(module, "_tied_weights_keys", None) for module in model.modules())


def takes_images(model: Any) -> bool:
    """Whether a transformers model is run on pixels, and not on tokens."""
    return getattr(model, "main_input_name", None) == "pixel_values"


def rename_keys(model: Any, keys: Iterable[str]) -> dict[str, str | None]:
    """Apply the renamings that transformers applies when it loads this model: vision models, say, are saved with
    `attention.attention.query` for what the model calls `attention.q_proj`.

    Args:
        model: a transformers model.
        keys: of the tensors of one file or index, which may also have the names of the model already.

    Returns:
        Key -> name, before the prefix of the model's class is added or taken away; None for a tensor that transformers
        fuses with others, splits or permutes, so that no parameter of the model is what the file holds.
    """
    transforms = get_model_conversion_mapping(model)  # new ones for each file: they remember what they have met
    names: dict[str, str | None] = {}
    for key in sorted(keys):
        name = key
        for transform in transforms:
            if isinstance(transform, WeightRenaming):
                name, _ = transform.rename_source_key(name)
        others = (transform for transform in transforms if not isinstance(transform, WeightRenaming))
        names[key] = None if any(other.rename_source_key(name)[1] is not None for other in others) else name
    return names


def passed_over(model: Any) -> re.Pattern[str] | None:
    """Return what transformers passes over in a file of a model: what its class says, and buffers of earlier years."""
    patterns: list[str] = list(model._keys_to_ignore_on_load_unexpected or ())
    for ending, pattern in (("rotary_emb.inv_freq", r"rotary_emb\.inv_freq"), ("position_ids", r"(^|\.)position_ids$")):
        if any(name.endswith(ending) for name, _ in model.named_buffers()):
            patterns.append(pattern)
    return re.compile("|".join(f"({pattern})" for pattern in patterns)) if patterns else None


def load_tokenizer(path: Path) -> Any:
    """Load the tokenizer of a model directory.

    Raises:
        CheckpointError: it has none.
    """
    try:
        with silence():
            tokenizer = transformers.AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
        named = set(tokenizer.vocab_files_names.values())
        if named and not any((path / name).is_file() for name in named | VOCABULARIES):
            raise OSError("no file holds a vocabulary.")  # transformers makes an empty one: every word is unknown to it
    except Exception as error:  # of whatever kind the reader of any of its files raises
        raise CheckpointError(
            f"{path} has no tokenizer that transformers can load: {first_line(error)} Save the base's tokenizer "
            f"beside its weights: AutoTokenizer.from_pretrained(<its origin>).save_pretrained(<this directory>)."
        ) from error
    return tokenizer


def load_image_processor(path: Path) -> Any:
    """Load the image processor of a model directory.

    Raises:
        ConfigError: Pillow is not installed.
        CheckpointError: it has none.
    """
    if not is_vision_available():
        raise ConfigError(
            f"{path} is a model of images, which need Pillow, and that is not installed: pip install 'evomerge[vision]'"
        )
    try:
        with silence():
            return transformers.AutoImageProcessor.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                backend="pil",  # torchvision resizes a little otherwise: scores must not depend on what is installed
            )
    except Exception as error:  # of whatever kind the reader of its file raises
        raise CheckpointError(
            f"{path} has no image processor that transformers can load: {first_line(error)} Save the base's beside "
            f"its weights: AutoImageProcessor.from_pretrained(<its origin>).save_pretrained(<this directory>)."
        ) from error


def check_class(auto_class: str, example: str) -> None:
    """Refuse a name that is no class of transformers which loads models.

    Args:
        auto_class: the name.
        example: what to write, up to the first class.

    Raises:
        ConfigError: there is no such class.
    """
    if not auto_class.startswith("AutoModel") or not hasattr(transformers, auto_class):
        raise ConfigError(
            f"transformers has no class {auto_class}: write {example}, AutoModelForCausalLM or another AutoModel class."
        )


def moved(model: Any, device: str) -> Any:
    """Return a model on a device.

    Raises:
        ConfigError: there is no such device.
    """
    try:
        return model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device={device} cannot be used here: {first_line(error)} Write model.device=cpu."
        ) from error


class Unavailable:
    """Stands for a processor that cannot be loaded, where it may be that nobody needs it: any use raises the reason.

    Args:
        error: the reason.
    """

    def __init__(self, error: EvomergeError) -> None:
        self._error = error

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what Python itself asks of any object
            raise AttributeError(name)
        raise self._error

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Raise the reason."""
        raise self._error


def untie(model: Any, path: Path) -> None:
    """Take apart what the files hold as two different tensors, as transformers does at load."""
    tied = model.all_tied_weights_keys
    if not tied:
        return
    tensors = read_tensors(weight_files(path))
    layout = Layout(prefix=model.base_model_prefix, rename=lambda keys: rename_keys(model, keys))
    held = match(tensors, {*tied.keys(), *tied.values()}, layout).held
    for alias, source in list(tied.items()):
        if alias in held and source in held and not same(tensors[held[alias][0]], tensors[held[source][0]]):
            owner, _, leaf = alias.rpartition(".")
            setattr(model.get_submodule(owner), leaf, nn.Parameter(torch.empty_like(model.get_parameter(source))))
            del tied[alias]


def check_directory(path: Path) -> None:
    """Refuse a path at which there is no directory.

    Raises:
        CheckpointError: there is none.
    """
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}: name a model directory, as save_pretrained writes it.")


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says, or its class where it says nothing."""
    return next(iter(str(error).splitlines()), type(error).__name__)


@contextmanager
def silence() -> Iterator[None]:
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
