"""The live model: the base, loaded once by transformers, whose parameters every candidate overwrites.

In: a model directory and the transformers class to load it with; or any module of torch, transformers' or not. Out: the
model in eval mode without gradients, its tokenizer or image processor, and what is needed to open checkpoints by its
parameters: shapes (tied parameters once), tied names, what names in files mean. `load_skeleton` gives names and shapes
alone, where nothing is run.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evomerge.common.errors import CheckpointError, EvomergeError
from evomerge.models.adapter_files import is_adapter
from evomerge.models.adapters import open_adapter
from evomerge.models.checkpoint import MEMORY, Checkpoint, from_tensors, open_checkpoint
from evomerge.models.conversions import find_conversions
from evomerge.models.matching import Layout
from evomerge.models.parts import check_whole, find_part, is_part, open_part
from evomerge.models.pretrained import (
    Unavailable,
    can_tie,
    check_class,
    check_directory,
    empty_model,
    first_line,
    frozen,
    load_image_processor,
    load_model,
    load_tokenizer,
    moved,
    passed_over,
    read_config,
    remedy,
    rename_keys,
    takes_images,
    untie,
)
from evomerge.models.sentences import attach_modules
from evomerge.models.union import Union, unite
from evomerge.models.weight_files import check_readable
from evomerge.models.weights import dtype_name


@dataclass
class Turn:
    """Who wrote into a live model last, for all that write into it.

    Attributes:
        taken: a mark of who did; None as long as the base is in the model.
    """

    taken: object | None = None


@dataclass(frozen=True)
class LiveModel:
    """A loaded base.

    Attributes:
        model: in eval mode, parameters without gradients; without weights, on the meta device, in a skeleton.
        processor: of the base: its tokenizer, or its image processor if it takes pixels (`takes_images`); None in a
            skeleton, and of a module that came without.
        parameters: name -> shape, in the model's order; tied parameters under their first name only.
        tied: alias -> the name it is tied to.
        auto_class: the transformers class that it was loaded with; of a module, the name of its own class.
        computed: the parameters that its class never trains, so that files may leave them out.
        turn: who wrote into it last.
        narrow: the dtype that the checkpoint has, by the name of each parameter and buffer that the model holds in a
            wider one; see `computing.py`.
        compute: that wider dtype; None where the model computes in the checkpoint's.
        why: the reason, where evomerge has chosen between the two.
        part: the module that experts of another architecture stand for; None where there are none.
        union: the vocabulary of base and experts, where it has one for all of them.
    """

    model: Any
    processor: Any
    parameters: dict[str, tuple[int, ...]]
    tied: dict[str, str]
    auto_class: str
    computed: frozenset[str] = frozenset()
    turn: Turn = field(default_factory=Turn, compare=False)
    narrow: Mapping[str, torch.dtype] = field(default_factory=dict)
    compute: torch.dtype | None = None
    why: str = field(default="", compare=False)
    part: str | None = None
    union: Union | None = None

    def open(self, path: str | Path, **options: Any) -> Checkpoint:
        """Open a model directory, or an adapter on top of a base, by the parameters of this model.

        Args:
            path: of the base, of an expert, or of another model of the architecture.
            options: those of `open_checkpoint`.

        Raises:
            CheckpointError: it does not fit.
        """
        path = Path(path).expanduser()
        if self.union is not None:
            options.pop("vocabulary", None)
            if is_adapter(path):
                return self.union.adapter(self, path, **options)
            if options.get("base") is not None:
                return self.union.expert(self, path, **options)
            return self._holding(self.union.base(self, path, **options))
        if is_adapter(path):
            return open_adapter(path, self.parameters, self.layout(), **options)
        if options.get("base") is not None and is_part(self, path):
            return open_part(self, path, **options)
        found = open_checkpoint(path, self.parameters, self.layout(path), **options)
        if options.get("base") is not None:
            check_whole(self, found)
        return found

    def united(self, base: Path, experts: Iterable[Path]) -> LiveModel:
        """Return the same with rows for the tokens of all experts; see `unite`."""
        return unite(self, base, [path.expanduser() for path in experts])

    def _holding(self, base: Checkpoint) -> Checkpoint:
        """Write θ₀ of new tokens into the model, which has drawn them at random."""
        for name, tensor in base.fitted.items():
            parameter = self.model.get_parameter(name)
            if not parameter.is_meta:
                parameter.data.copy_(tensor)
        return base

    def with_part(self, part: str | None) -> LiveModel:
        """Return the same, of whose modules experts may be one.

        Args:
            part: the name of the module, or the end of it; None for no module.

        Raises:
            ConfigError: there is no such module.
        """
        return self if part is None else replace(self, part=find_part(self, part))

    def take(self, tensors: Mapping[str, Tensor], name: str, **options: Any) -> Checkpoint:
        """Make a checkpoint of tensors in memory, such as a state dict, by the parameters of this model.

        Args:
            tensors: by names of this model, or as transformers would find them in a file; they are not copied.
            name: what messages call them.
            options: those of `from_tensors`.

        Raises:
            CheckpointError: they do not fit.
        """
        return from_tensors(tensors, self.parameters, self.layout(), path=MEMORY / name, **options)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the whole checkpoint: what the configuration says, else that of the first floating parameter."""
        if isinstance(self.model, transformers.PreTrainedModel) and self.model.config.dtype is not None:
            return getattr(torch, dtype_name(self.model.config.dtype))
        name = next((name for name, one in self.model.named_parameters() if one.is_floating_point()), "")
        return self.dtypes.get(name, torch.float32)

    @property
    def dtypes(self) -> dict[str, torch.dtype]:
        """The dtype that the checkpoint has of every parameter, by its name: to that a merge is rounded."""
        return {name: self.narrow.get(name, one.dtype) for name, one in self.model.named_parameters()}

    def tensors(self) -> dict[str, Tensor]:
        """Return parameters and buffers by name, shared ones under their first."""
        return {**dict(self.model.named_parameters()), **dict(self.model.named_buffers())}

    def as_written(self) -> Any:
        """Return a copy of the model as it is now, in the dtypes of the checkpoint; it holds the same numbers."""
        return self._copied(self.narrow)

    def narrowed(self, dtype: torch.dtype) -> Any:
        """Return a copy of the model as it is now, in a dtype that holds fewer bits: nearly the same numbers.

        What transformers keeps in float32 when it loads a model in that dtype stays so: buffers that no file has, such
        as the frequencies of rotary embeddings, and modules that the class names.
        """
        kept, stored = getattr(self.model, "_keep_in_fp32_modules_strict", None) or (), set(self.model.state_dict())
        wider = {
            name: dtype
            for name, one in self.tensors().items()
            if one.is_floating_point() and one.dtype.itemsize > dtype.itemsize
            if name in stored and not any(part in name.split(".") for part in kept)
        }
        return self._copied(wider)

    def _copied(self, dtypes: Mapping[str, torch.dtype]) -> Any:
        """Return a copy of the model, with other dtypes for tensors of these names."""
        tensors, copies = self.tensors(), {}
        for name, dtype in dtypes.items():
            cast = tensors[name].detach().to(dtype)
            learned = isinstance(tensors[name], nn.Parameter)
            copies[id(tensors[name])] = nn.Parameter(cast, requires_grad=False) if learned else cast
        return copy.deepcopy(self.model, copies)

    def layout(self, path: Path | None = None) -> Layout:
        """Return what names in a model directory, or in a state dict (None), mean: those of this model, by what the
        directory's own config ties.
        """
        buffers = frozenset(name for name, _ in self.model.named_buffers())
        if not isinstance(self.model, transformers.PreTrainedModel):
            return Layout(tied=self.tied, buffers=buffers, computed=self.computed, transposed=self.transposed)
        config, own = None, None
        try:
            config = self.model.config if path is None else read_config(path)
            if path is not None:
                own = dict(empty_model(self.auto_class, config).all_tied_weights_keys) if can_tie(self.model) else {}
        except Exception:  # of another architecture, or damaged: whoever opens its files says what does not fit
            pass
        text = config and config.get_text_config()
        return Layout(
            prefix=self.model.base_model_prefix,
            tied=self.tied,
            own=own,
            buffers=buffers,
            computed=self.computed,
            spare=passed_over(self.model),
            rename=self.rename,
            convert=partial(find_conversions, self.model),
            tokens=getattr(text, "vocab_size", None),
            transposed=self.transposed,
        )

    @property
    def transposed(self) -> frozenset[str]:
        """The matrices whose first dimension is that of inputs."""
        found = (name for name, module in self.model.named_modules() if isinstance(module, Conv1D))
        return frozenset(f"{name}.weight" for name in found)

    def rename(self, keys: Iterable[str]) -> dict[str, str | None]:
        """Return the names that transformers gives to the keys of a file of this model; see `rename_keys`."""
        return rename_keys(self.model, keys)


def live_module(module: nn.Module, processor: Any = None, device: str | None = None) -> LiveModel:
    """Make a live model of a module of torch: a copy of it, so that candidates do not overwrite the module itself.

    Args:
        module: of transformers or of anybody's own; groups are made by the names of its parameters.
        processor: its tokenizer or image processor, for a fitness that needs one.
        device: to move the copy to; None for where the module is.

    Raises:
        CheckpointError: it has no floating parameters.
        ConfigError: there is no such device.
    """
    model = copy.deepcopy(module).eval().requires_grad_(False)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    if not any(parameter.is_floating_point() for parameter in model.parameters()):
        raise CheckpointError(f"{type(module).__name__} has no floating parameters, so there is nothing to merge.")
    tied = {
        alias: names[id(parameter)]
        for alias, parameter in model.named_parameters(remove_duplicate=False)
        if names[id(parameter)] != alias
    }
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    if device is not None:
        model = moved(model, device)
    return LiveModel(model, processor, shapes, tied, type(module).__name__)


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
    check_class(auto_class, "model.auto_class=AutoModel")
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    model, _ = load_model(path, auto_class)
    attach_modules(model, path)
    try:
        processor = load_image_processor(path) if takes_images(model) else load_tokenizer(path)
    except EvomergeError as error:
        if needs_processor:
            raise
        processor = Unavailable(error)
    model = moved(model, device)
    computed = frozen(empty_model(auto_class, model.config))  # a load makes all parameters alike
    return _described(model, processor, auto_class, computed)


def load_skeleton(path: Path, auto_class: str, dtype: torch.dtype | None = None) -> LiveModel:
    """Make what `load_live` would load without its weights: names and shapes, from config.json alone, offline, with no
    code of its own and without touching the global random state. What the files hold decides only whether two tensors
    that the config ties are one: transformers does not tie them where they differ.

    Args:
        path: a Hugging Face model directory.
        auto_class: the transformers class to load it with.
        dtype: of its parameters; None for what its config says.

    Raises:
        ConfigError: no such class.
        CheckpointError: there is no such directory, its weights are quantised, or transformers cannot make a model of
            its config.
    """
    check_class(auto_class, "auto_class: AutoModel")
    check_directory(path)
    check_readable(path)
    try:
        model = empty_model(auto_class, read_config(path), dtype)
    except Exception as error:  # of whatever kind the reader of its config raises
        raise CheckpointError(
            f"transformers cannot make the {auto_class} of {path}: {first_line(error)} "
            f"{remedy(path, 'config.json and weights')}"
        ) from error
    computed = frozen(model)
    untie(model, path)
    attach_modules(model, path, weights=False)
    return _described(model.eval().requires_grad_(False), None, auto_class, computed)


def _described(model: Any, processor: Any, auto_class: str, computed: frozenset[str]) -> LiveModel:
    parameters = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    return LiveModel(model, processor, parameters, dict(model.all_tied_weights_keys), auto_class, computed)
