"""The live model: the base, loaded once by transformers, whose parameters every candidate overwrites.

In: a model directory and the transformers class to load it with. Out: the model in eval mode without gradients, its
tokenizer or image processor, and what the checkpoints need to know about it: parameter shapes (tied parameters once),
tied names, the prefix of its class, the names that files of earlier years have. `load_model` also loads the classifiers
whose heads are kept beside the merge; `load_skeleton` gives names and shapes alone, where nothing is run.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.utils import logging as bars
from transformers.utils.import_utils import is_vision_available

from evomerge.errors import CheckpointError, ConfigError, EvomergeError

VOCABULARIES = {"tokenizer.json", "tokenizer.model", "tekken.json"}
"""Where any tokenizer may keep its vocabulary, beside the files that its class names."""


@dataclass(frozen=True)
class LiveModel:
    """A loaded base.

    Attributes:
        model: in eval mode, parameters without gradients; without weights, on the meta device, in a skeleton.
        processor: of the base: its tokenizer, or its image processor if it takes pixels (`takes_images`); None in a
            skeleton.
        parameters: name -> shape, in the model's order; tied parameters under their first name only.
        tied: alias -> the name it is tied to.
        prefix: `base_model_prefix` of its class, which may stand before the names in files.
    """

    model: Any
    processor: Any
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    prefix: str

    def rename(self, keys: Iterable[str]) -> dict[str, str | None]:
        """Return the names that transformers gives to the keys of a file of this model; see `rename_keys`."""
        return rename_keys(self.model, keys)


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


def load_live(
    path: Path, auto_class: str = "AutoModel", device: str = "auto", needs_processor: bool = True
) -> LiveModel:
    """Load a base from a directory, offline, with no code of its own and without touching the global random state.

    Args:
        path: a Hugging Face model directory.
        auto_class: the transformers class to load it with: AutoModel (no head), AutoModelForCausalLM ...
        device: a torch device, or `auto` for the first CUDA device, else the CPU.
        needs_processor: whether its tokenizer (image processor) must be there; else it may be `Unavailable`.

    Raises:
        ConfigError: no such class or device; or the model takes images, and Pillow is not installed.
        CheckpointError: transformers cannot load the directory, or it has no tokenizer (image processor).
    """
    _check_class(auto_class, "model.auto_class=AutoModel")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(path, auto_class)
    try:
        processor = _load_image_processor(path) if takes_images(model) else _load_tokenizer(path)
    except EvomergeError as error:
        if needs_processor:
            raise
        processor = Unavailable(error)
    try:
        model = model.to(device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"model.device={device} cannot be used here: {_first_line(error)} Write model.device=cpu."
        ) from error
    return _described(model, processor)


def load_skeleton(path: Path, auto_class: str, dtype: torch.dtype | None = None) -> LiveModel:
    """Make what `load_live` would load without its weights: names and shapes, from config.json alone, offline, with no
    code of its own and without touching the global random state.

    Args:
        path: a Hugging Face model directory.
        auto_class: the transformers class to load it with.
        dtype: of its parameters; None for what its config says.

    Raises:
        ConfigError: no such class.
        CheckpointError: there is no such directory, or transformers cannot make a model of its config.
    """
    _check_class(auto_class, "auto_class: AutoModel")
    _check_directory(path)
    try:
        with _silence(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            given = {"dtype": dtype} if dtype else {}
            model = getattr(transformers, auto_class).from_config(config, trust_remote_code=False, **given)
    except Exception as error:  # of whatever kind the reader of its config raises
        raise CheckpointError(
            f"transformers cannot make the {auto_class} of {path}: {_first_line(error)} "
            f"It must be a directory with config.json and weights, as save_pretrained writes it."
        ) from error
    return _described(model.eval().requires_grad_(False), None)


def tied_names(path: Path) -> dict[str, str]:
    """Return what the class that a model directory was saved from ties: alias -> source, with the prefix of that class.

    Its files may hold an alias once more where the live model, of another class, has no parameter of that name.
    """
    try:
        with _silence(), torch.random.fork_rng(devices=[]), torch.device("meta"):
            config = transformers.AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
            name = (config.architectures or [""])[0]
            return dict(getattr(transformers, name)(config).all_tied_weights_keys)
    except Exception:  # a class that transformers does not have, or that is not made from a config alone
        return {}


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
    _check_directory(path)
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


def _check_class(auto_class: str, example: str) -> None:
    if not auto_class.startswith("AutoModel") or not hasattr(transformers, auto_class):
        raise ConfigError(
            f"transformers has no class {auto_class}: write {example}, AutoModelForCausalLM or another AutoModel class."
        )


def _check_directory(path: Path) -> None:
    if not path.is_dir():
        raise CheckpointError(f"There is no directory {path}: name a model directory, as save_pretrained writes it.")


def _described(model: Any, processor: Any) -> LiveModel:
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return LiveModel(model, processor, parameters, dict(model.all_tied_weights_keys), model.base_model_prefix)


def _load_image_processor(path: Path) -> Any:
    if not is_vision_available():
        raise ConfigError(
            f"{path} is a model of images, which need Pillow, and that is not installed: pip install 'evomerge[vision]'"
        )
    try:
        with _silence():
            return transformers.AutoImageProcessor.from_pretrained(
                path,
                local_files_only=True,
                trust_remote_code=False,
                backend="pil",  # torchvision resizes a little otherwise: scores must not depend on what is installed
            )
    except Exception as error:  # of whatever kind the reader of its file raises
        raise CheckpointError(
            f"{path} has no image processor that transformers can load: {_first_line(error)} Save the base's beside "
            f"its weights: AutoImageProcessor.from_pretrained(<its origin>).save_pretrained(<this directory>)."
        ) from error


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
