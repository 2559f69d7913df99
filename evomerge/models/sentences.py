"""The modules of sentence-transformers behind a model: how an embedding is made of its hidden states.

In: `modules.json` of a directory and the folders that it names (Reimers and Gurevych 2019, arXiv 1908.10084). Out:
modules of torch under the names of these folders, attached to a model of transformers, so that the weights of dense
layers are parameters like all others (`2_Dense.linear.weight`); and `sentence_embedding`, which runs them as
sentence-transformers does, prompts aside. A module of another kind is left alone: what has weights stays the base's.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError
from evomerge.models.files_beside import MODULES, module_folders
from evomerge.models.weight_files import read_json
from evomerge.models.weights import load_file

BARE = ("Normalize", "Dropout")
"""Modules that need no settings, so that no folder need be there."""
FILES = ("model.safetensors", "pytorch_model.bin")
"""Where the weights of a module are, in the order in which they are looked for."""
EARLIER = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""Settings of earlier years, each for one way to pool, in the order in which pooled vectors are joined."""


class Pooling(nn.Module):
    """Makes one vector of those of all tokens.

    Args:
        modes: how, one after the other; keys of `POOLED`.
    """

    def __init__(self, modes: Iterable[str]) -> None:
        super().__init__()
        self.modes = tuple(modes)

    def forward(self, hidden: Tensor, mask: Tensor) -> Tensor:
        """Return the pooled vectors of hidden states (n, T, d) and a mask (n, T), joined."""
        return torch.cat([POOLED[mode](hidden, mask.to(hidden.dtype)) for mode in self.modes], dim=-1)


class Dense(nn.Module):
    """A linear layer with an activation.

    Args:
        sizes: of its input and its output.
        bias: whether it has one.
        activation: what comes after it.
    """

    def __init__(self, sizes: tuple[int, int], bias: bool, activation: nn.Module) -> None:
        super().__init__()
        self.linear, self.activation = nn.Linear(*sizes, bias=bias), activation

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the activation of the linear map, (n, e)."""
        return self.activation(self.linear(embedding))


class Normalise(nn.Module):
    """Scales embeddings to length 1."""

    def forward(self, embedding: Tensor) -> Tensor:
        """Return the embeddings, scaled, (n, e)."""
        return nn.functional.normalize(embedding, dim=-1)


Step = Pooling | Dense | Normalise | nn.Identity


def attach_modules(model: nn.Module, path: Path, weights: bool = True) -> None:
    """Attach the modules of a directory to the model that was loaded from it, in the dtype of the model; none where one
    of them is of another kind or not there, since the others make no embedding without it.

    Args:
        model: of transformers.
        path: its directory.
        weights: read those of dense modules; otherwise they are on the meta device.

    Raises:
        CheckpointError: a module that is known has other settings or weights than it can have.
    """
    dtype, folders = next(model.parameters()).dtype, module_folders(path / MODULES)
    if any(_maker(path / folder, kind) is None for folder, kind in folders.items()):
        return
    for folder, kind in folders.items():
        file = path / folder / "config.json"
        with torch.device("meta"):
            module = MAKERS[_last(kind)](path / folder, read_json(file) if file.is_file() else {})
        if weights and (wanted := module.state_dict()):
            _check(path / folder, tensors := _read(path / folder), wanted)
            module.load_state_dict(tensors, assign=True)
        model.add_module(folder, module.to(dtype).eval().requires_grad_(False))


def module_files(path: Path, parameters: Collection[str]) -> dict[str, Path]:
    """Return the weight files of modules, by folder, of those whose parameters a live model has.

    Args:
        path: a model directory.
        parameters: names of the live model.
    """
    roots = {name.partition(".")[0] for name in parameters}
    folders = [folder for folder in module_folders(path / MODULES) if folder in roots]
    return {folder: file for folder in folders if (file := _file(path / folder)) is not None}


def module_tensors(files: Mapping[str, Path]) -> dict[str, Tensor]:
    """Return the tensors of modules, by folder and key.

    Args:
        files: of `module_files`.
    """
    return {f"{folder}.{key}": tensor for folder, file in files.items() for key, tensor in load_file(file).items()}


def settings_of(model: nn.Module) -> list[list[str]]:
    """Return what folders of modules say and `modules.json` does not, as plain data: how is pooled, what comes after
    a dense layer. A plain mean is left out: of that, runs of earlier versions say nothing.
    """
    found = []
    for folder, step in model.named_children():
        if isinstance(step, Pooling) and step.modes != ("mean",):
            found.append([folder, *step.modes])
        elif isinstance(step, Dense):
            found.append([folder, repr(step.activation)])
    return found


def embedding_of(model: nn.Module, hidden: Tensor, mask: Tensor | None) -> Tensor:
    """Return embeddings, (n, e), as sentence-transformers makes them.

    Args:
        model: with modules.
        hidden: its last hidden states, (n, T, d).
        mask: 1 for tokens and 0 for padding, (n, T); None where nothing is padded.
    """
    mask = hidden.new_ones(hidden.shape[:2]) if mask is None else mask.to(hidden.device)
    embedding: Tensor | None = None
    for step in model.children():
        if isinstance(step, Pooling):
            embedding = step(hidden, mask)
        elif isinstance(step, Step) and embedding is not None:
            embedding = step(embedding)
    if embedding is None:
        raise CheckpointError(
            f"The base says in no {MODULES} how an embedding is made, or by modules of other kinds than "
            f"{', '.join(MAKERS)}: pool its hidden states yourself."
        )
    return embedding


def sentence_embedding(model: Any, inputs: Mapping[str, Tensor]) -> Tensor:
    """Run a model of sentence-transformers, for a fitness of one's own.

    Args:
        model: as a fitness is given it.
        inputs: what its tokenizer makes of texts, padded.

    Returns:
        Embeddings, (n, e).
    """
    return embedding_of(model, model(**inputs).last_hidden_state, inputs.get("attention_mask"))


def _last(kind: str) -> str:
    return kind.rpartition(".")[2]


def _maker(folder: Path, kind: str) -> Any:
    """Return what makes a module; None where it is of another kind, or cannot be attached under the folder's name."""
    there = (folder / "config.json").is_file() or _last(kind) in BARE
    return MAKERS.get(_last(kind)) if there and "." not in folder.name else None


def _pooling(path: Path, config: Mapping[str, Any]) -> Pooling:
    given = config.get("pooling_mode") or [mode for key, mode in EARLIER.items() if config.get(key)] or ["mean"]
    modes = [given] if isinstance(given, str) else list(given)
    if unknown := [mode for mode in modes if mode not in POOLED]:
        raise CheckpointError(f"{path / 'config.json'} pools by {unknown[0]}; there is {', '.join(POOLED)}.")
    return Pooling(modes)


def _dense(path: Path, config: Mapping[str, Any]) -> Dense:
    more = {name: config.get(name) for name in ("module_input_name", "module_output_name")}
    if config.get("use_residual") or any(value not in (None, "sentence_embedding") for value in more.values()):
        raise CheckpointError(
            f"{path / 'config.json'}: a dense module with a residual, or of anything but the embedding, is not known "
            f"here. Take the folder out of {MODULES} and merge the model without it."
        )
    name = str(config.get("activation_function", "torch.nn.modules.activation.Tanh"))
    kind = getattr(nn, name.rpartition(".")[2], None) if name.startswith("torch.nn.") else None
    try:
        if not (isinstance(kind, type) and issubclass(kind, nn.Module)):
            raise TypeError(f"activation_function is {name}")
        return Dense((config["in_features"], config["out_features"]), config.get("bias", True), kind())
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path / 'config.json'} describes no dense module that can be built: {error}. It needs in_features, "
            f"out_features and an activation_function of torch.nn."
        ) from error


def _file(folder: Path) -> Path | None:
    return next((folder / name for name in FILES if (folder / name).is_file()), None)


def _read(folder: Path) -> dict[str, Tensor]:
    if (file := _file(folder)) is None:
        raise CheckpointError(f"{folder} holds no weights: neither {' nor '.join(FILES)}. Download it again.")
    return load_file(file)


def _check(folder: Path, tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> None:
    found, asked = ({name: tuple(one.shape) for name, one in held.items()} for held in (tensors, wanted))
    if found != asked:
        raise CheckpointError(
            f"{folder} contradicts itself: its weights are {found}, its config.json asks for {asked}."
        )


def _mean(hidden: Tensor, mask: Tensor, power: float = 1.0) -> Tensor:
    return (hidden * mask[:, :, None]).sum(1) / mask.sum(1, keepdim=True).clamp(min=1e-9) ** power


def _weighted(hidden: Tensor, mask: Tensor) -> Tensor:
    first = mask.argmax(1, keepdim=True)
    places = torch.arange(1, mask.shape[1] + 1, device=mask.device) - first
    return _mean(hidden, mask * places)


def _at(hidden: Tensor, places: Tensor) -> Tensor:
    return hidden[torch.arange(len(hidden), device=hidden.device), places]


POOLED: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cls": lambda hidden, mask: _at(hidden, mask.argmax(1)),
    "max": lambda hidden, mask: hidden.masked_fill(mask[:, :, None] == 0, float("-inf")).max(1).values,
    "mean": _mean,
    "mean_sqrt_len_tokens": lambda hidden, mask: _mean(hidden, mask, 0.5),
    "weightedmean": _weighted,
    "lasttoken": lambda hidden, mask: _at(hidden, mask.shape[1] - 1 - mask.flip(1).argmax(1)),
}
"""Ways to pool: hidden states (n, T, d) and a mask (n, T) of their dtype -> (n, d)."""
MAKERS: dict[str, Callable[[Path, Mapping[str, Any]], Step]] = {
    "Pooling": _pooling,
    "Dense": _dense,
    "Normalize": lambda path, config: Normalise(),
    "Dropout": lambda path, config: nn.Identity(),  # which does something in training alone
}
"""The modules that are known, by the last part of their class."""
