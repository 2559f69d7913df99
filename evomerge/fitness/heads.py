"""Classification heads, which stay outside the merge.

    FrozenHead   logits = scale · f · Wᵀ + b. With f the normalised mean of the last hidden states and W from class
                 names: the zero-shot heads of CLIP and AdaMerging. With f the first hidden state and the mean of the
                 others: the linear probes of DINOv2 (Oquab et al. 2023)
    OwnHead      the head that an expert was fine-tuned with, kept beside the merged backbone

A head says which module to run (`module`) and how to read logits off its output (`logits`). Tasks whose heads run the
same module share its batches.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError, EvomergeError
from evomerge.common.names import listed
from evomerge.models.live import load_skeleton
from evomerge.models.pretrained import load_model, takes_images
from evomerge.models.sentences import embedding_of
from evomerge.models.spreading import spread_like
from evomerge.models.weight_files import weight_files
from evomerge.models.weights import read_tensors

SCALE = 20.0  # of the cosines: logits of a head
SENTENCE = "sentence"
POOLINGS = ("mean", "cls_mean", SENTENCE)
"""What a head makes of the last hidden states of an item: their mean; or the first, and the mean of the others, one
after the other (the linear probes of DINOv2, Oquab et al. 2023); or what the base's own modules of
sentence-transformers make of them."""


class Head(Protocol):
    """Turns the output of a module into class logits; see the module's docstring."""

    def module(self, model: nn.Module) -> nn.Module:
        """Return the module to run: the live model, or one that shares its parameters."""
        ...

    def logits(
        self, output: Any, attention_mask: Tensor | None, rows: Tensor, model: nn.Module | None = None
    ) -> Tensor:
        """Return logits (len(rows), C) for some rows of a batch; images have no mask. Who runs the live model names it,
        for heads that use its modules of sentence-transformers.
        """
        ...

    @property
    def classes(self) -> int | None:
        """The number C of classes, where it is known before the first forward pass."""
        ...


class FrozenHead:
    """A matrix of class embeddings or a linear probe, as `suite.write_head` writes it.

    Args:
        path: a safetensors file with `weight`, float32 (C, d), perhaps `bias` (C,), and in its metadata `pooling`,
            `scale`, and `normalise` ("true" where it is not said).

    Raises:
        CheckpointError: the file is missing or is not such a head.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with safe_open(path, "pt") as file:
                metadata = file.metadata() or {}
                self._weight = file.get_tensor("weight")
                bias = file.get_tensor("bias") if "bias" in file.keys() else None  # noqa: SIM118  (no mapping)
            self._scale = float(metadata["scale"])
            self._pooling = metadata["pooling"]
            self._normalise = {"true": True, "false": False}[metadata.get("normalise", "true")]
            self._bias = self._weight.new_zeros(len(self._weight)) if bias is None else bias
            if self._weight.dim() != 2 or self._bias.shape != self._weight.shape[:1]:
                raise ValueError(f"weight {tuple(self._weight.shape)} and bias {tuple(self._bias.shape)}")
        except (OSError, SafetensorError, KeyError, ValueError) as error:
            raise CheckpointError(
                f"{path} is no frozen head ({error}): it must be a safetensors file with a tensor `weight` (classes, "
                f"width), perhaps `bias` (classes,), and the metadata pooling=mean and scale, as "
                f"evomerge.runs.suite.write_head writes it."
            ) from error
        if self._pooling not in POOLINGS:
            raise CheckpointError(
                f"{path} asks for {self._pooling} pooling; only {' and '.join(POOLINGS)} pooling are known."
            )

    @property
    def classes(self) -> int:
        """The number of rows of the matrix."""
        return len(self._weight)

    def module(self, model: nn.Module) -> nn.Module:
        """Return the live model, without a head that it may have."""
        return _backbone(model)

    def logits(
        self, output: Any, attention_mask: Tensor | None, rows: Tensor, model: nn.Module | None = None
    ) -> Tensor:
        """Return scale · features · Wᵀ + b, (len(rows), C)."""
        hidden, mask = output.last_hidden_state, None
        hidden = hidden[rows.to(hidden.device)]
        if attention_mask is not None:  # it lies where the model begins, and hidden states where it ends
            mask = attention_mask[rows].to(hidden.device)
        if self._pooling == SENTENCE:
            features = embedding_of(model or nn.Module(), hidden, mask).float()
        else:
            features = pool(hidden.float(), mask, self._pooling)
        if self._normalise:
            features = nn.functional.normalize(features, dim=-1)
        if self._weight.device != features.device:
            with torch.inference_mode(False):  # what is kept must also serve where gradients are taken
                self._weight, self._bias = self._weight.to(features.device), self._bias.to(features.device)
        if self._weight.shape[1] != features.shape[1]:
            raise CheckpointError(
                f"The head {self._path} has the width {self._weight.shape[1]}, the model {features.shape[1]}: "
                f"it was made for another base."
            )
        return self._scale * features @ self._weight.T + self._bias


def pool(hidden: Tensor, mask: Tensor | None, pooling: str) -> Tensor:
    """Make features of hidden states.

    Args:
        hidden: (n, T, d).
        mask: (n, T), 1 for tokens and 0 for padding, which stands on the right; None where nothing is padded.
        pooling: one of `suite.POOLINGS`.

    Returns:
        (n, d), or (n, 2 d) for `cls_mean`.
    """
    if pooling == "cls_mean":
        rest = pool(hidden[:, 1:], None if mask is None else mask[:, 1:], "mean")
        return torch.cat([hidden[:, 0], rest], dim=-1)
    if mask is None:
        return hidden.mean(1)
    weights = mask[:, :, None].to(hidden.dtype)
    return (hidden * weights).sum(1) / weights.sum(1)


class OwnHead:
    """The head of an expert: its whole classifier is loaded, and what is merged is replaced by the live model's own.

    What is not merged (the classifier, and a pooler that only the expert has) stays the expert's.

    Args:
        path: the expert's directory, saved from a model for sequence (or image) classification.
        merged: the names of the live model's parameters that are merged.
    """

    def __init__(self, path: Path, merged: Collection[str]) -> None:
        self._path = path
        self._merged = merged
        self._view: tuple[nn.Module, nn.Module] | None = None

    @property
    def classes(self) -> int | None:
        """The number of rows that the head has in the files, if it has one.

        Raises:
            CheckpointError: config.json asks for another number of rows.
        """
        return count_classes(self._path)

    def module(self, model: nn.Module) -> nn.Module:
        """Return the expert's classifier over the live model's parameters; the same one every time for the same model.

        Raises:
            CheckpointError: the directory holds no classifier, or one of another architecture than the live model's.
        """
        if self._view is None or self._view[0] is not model:
            self._view = (model, self._make_view(model))
        return self._view[1]

    def logits(
        self, output: Any, attention_mask: Tensor | None, rows: Tensor, model: nn.Module | None = None
    ) -> Tensor:
        """Return the classifier's logits, (len(rows), C)."""
        return output.logits[rows.to(output.logits.device)].float()

    @torch.inference_mode(False)  # what is kept must also serve where gradients are taken
    def _make_view(self, model: nn.Module) -> nn.Module:
        merged = {id(parameter) for name, parameter in model.named_parameters() if name in self._merged}
        live = {name: p for name, p in _backbone(model).named_parameters() if id(p) in merged}
        first = next(model.parameters())
        kind = "Image" if takes_images(model) else "Sequence"
        view, fresh = load_model(self._path, f"AutoModelFor{kind}Classification")  # not cast, it stays in its file
        own = dict(view.base_model.named_parameters())
        shared = live.keys() & own.keys()  # a classifier without pooler does not run the base's
        tokens = getattr(view.config, "vocab_size", None)  # rows for them may be more or fewer (model.vocabulary)
        other = [name for name in shared if own[name].shape != live[name].shape and len(own[name]) != tokens]
        if not shared or other or any(own[name].shape[1:] != live[name].shape[1:] for name in shared):
            raise CheckpointError(
                f"{self._path} holds a {type(view).__name__}, which does not run on a {type(model).__name__}. "
                f"An expert's own head needs an expert of the base's architecture."
            )
        prefix = f"{view.base_model_prefix}."
        if lacking := [name for name in fresh if name.removeprefix(prefix) not in shared]:
            raise CheckpointError(
                f"{self._path} has no classification head of its own ({lacking[0]} is missing). Save the expert from a "
                f"model for {kind.lower()} classification, or give the task a frozen head: "
                f"fitness.tasks.<task>.head=<file>."
            )
        for name in shared:
            owner, _, leaf = name.rpartition(".")
            setattr(view.base_model.get_submodule(owner), leaf, live[name])  # the same object: a merge is seen at once
        view.config.dtype = first.dtype
        for tensor in view.state_dict(keep_vars=True).values():
            if tensor.is_floating_point() and id(tensor) not in merged:
                tensor.data = tensor.data.to(first.dtype)
        return spread_like(view, view.base_model, model, _backbone(model))


def count_classes(path: Path) -> int | None:
    """Return how many classes the head of a classifier has: the rows of its weights. The names in config.json may be
    left over from an earlier head.

    Args:
        path: its directory.

    Returns:
        The number; None where the directory has no head, or cannot be read, which is said where it is opened.

    Raises:
        CheckpointError: config.json asks for another number of rows, so that transformers cannot load the head.
    """
    for kind in ("Sequence", "Image"):
        try:
            skeleton = load_skeleton(path, f"AutoModelFor{kind}Classification")
            tensors = read_tensors(weight_files(path))
        except EvomergeError:
            continue
        labels, backbone = skeleton.model.config.id2label, f"{skeleton.model.base_model_prefix}."
        for key, name in skeleton.rename(tensors).items():
            shape = skeleton.parameters.get(name or "", ())
            if str(name).startswith(backbone) or shape[:1] != (len(labels),) or tensors[key].shape[1:] != shape[1:]:
                continue
            if (rows := len(tensors[key])) != len(labels):
                raise CheckpointError(
                    f"{path} contradicts itself: its head has {rows} classes, the rows of {key}, and its config.json "
                    f"has {len(labels)} names for them (id2label: {listed(list(map(str, labels.values())))}). Write "
                    f"{rows} names into id2label and label2id there, in the order of the rows."
                )
            return rows
    return None


def _backbone(model: nn.Module) -> nn.Module:
    """Return the part of a transformers model that has no head; another module as it is."""
    return getattr(model, "base_model", model)
