"""What is in a live model, as a model directory: the weights that `evomerge merge` would write, to the bit.

In: the live model and the base's files, or a module that came from no directory. Out: a `Writer`. Everything that is
the same for all candidates is written once; of a candidate, the weights alone. They are in the checkpoint's dtype,
under the names of the base's files; what is neither parameter nor buffer is the base's.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_model
from torch import Tensor
from transformers import PreTrainedModel

from evomerge.common.errors import NotFinite
from evomerge.fitness.capabilities import Writer
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel
from evomerge.models.templates import write_template
from evomerge.models.weights import dtype_name
from evomerge.recipes.beside import look_beside
from evomerge.recipes.copies import tied_copies
from evomerge.recipes.filling import Filling
from evomerge.recipes.model import write_config
from evomerge.recipes.shards import bytes_of, plan_shards, write_shards


def writer_of(live: LiveModel, base: Checkpoint, template: Path | None = None) -> Writer:
    """Return what writes the candidates in a live model as directories.

    Args:
        live: the model.
        base: θ₀, its files, or what holds its tensors in memory.
        template: the directory of the expert whose chat template they have; None for the base's.
    """
    return DirectoryWriter(live, base, template) if base.path.is_dir() else ModuleWriter(live)


class DirectoryWriter:
    """Writes a live model whose base came from a directory."""

    def __init__(self, live: LiveModel, base: Checkpoint, template: Path | None) -> None:
        self._base, self._dtype, self._template = base, live.dtype, template
        self._beside = look_beside(base.path, {}, base.modules, live.union and live.union.tokenizer)
        self._tokens = live.union and live.union.size
        self._shards = plan_shards(base, live.dtypes, copies=tied_copies(base, live.dtype))
        self.nbytes = bytes_of(self._shards) + self._beside.nbytes

    def prepare(self, directory: Path) -> None:
        """Write what lies beside the weights, and the config."""
        self._beside.copy(directory)
        if self._template is not None:
            write_template(directory, self._template)
        write_config(self._base, directory, dtype_name(self._dtype), self._tokens)

    @torch.no_grad()
    def write(self, model: Any, directory: Path) -> None:
        """Write the weights."""
        parameters, own = _Parameters(model), dict(model.named_buffers())
        buffers = {key: own[self._base.names[key]] for key in self._base.buffers}
        write_shards(self._shards, Filling(parameters, self._base, parameters.shapes, buffers), directory)


class _Parameters:
    """The parameters of a live model, as what rebuilds a merge has them."""

    def __init__(self, model: Any) -> None:
        self._own = dict(model.named_parameters())
        self.shapes = {name: tuple(parameter.shape) for name, parameter in self._own.items()}

    def write(self, name: str, out: Tensor) -> None:
        out.copy_(self._own[name].reshape(-1))
        _check_finite(name, out)


class ModuleWriter:
    """Writes a live model whose base came from no directory, as `write_module` does."""

    def __init__(self, live: LiveModel) -> None:
        self._live = live
        self.nbytes = sum(tensor.nbytes for tensor in live.tensors().values())

    def prepare(self, directory: Path) -> None:
        """Write the tokenizer or image processor, if it has one."""
        if isinstance(self._live.model, PreTrainedModel) and self._live.processor is not None:
            self._live.processor.save_pretrained(directory)

    @torch.no_grad()
    def write(self, model: Any, directory: Path) -> None:
        """Write the weights, and the config of a model of transformers."""
        for name, parameter in model.named_parameters():
            _check_finite(name, parameter)
        written = self._live.as_written() if self._live.narrow else model
        if isinstance(written, PreTrainedModel):
            written.save_pretrained(directory)
        else:
            save_model(written, str(directory / "model.safetensors"))


def _check_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel() and not torch.isfinite(torch.stack(tensor.aminmax())).all():
        raise NotFinite(f"{name} of the merged model is not finite, so no command can score it")
