"""Whether tensors of a file can stand for a parameter: by their dtypes, their values where several do, their shapes.

In: tensors by file key, and a parameter of the live model. Out: nothing, or a refusal that says what to give instead;
of a tensor whose rows stand for another number of tokens, which of them are merged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.models.matching import Match
from evomerge.models.vocabulary import BASE, SHARED, UNION, Rows

FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
UNTIE = (
    "Give the base a head of its own: load it with its AutoModel class, set model.config.tie_word_embeddings = False, "
    "head = model.get_output_embeddings() and head.weight = torch.nn.Parameter(head.weight.detach().clone()), call "
    "model.save_pretrained(DIR), save the tokenizer there too, and name DIR as the base."
)
"""How a base that ties becomes one that does not."""


def check_tensors(path: Path, tensors: Mapping[str, Tensor], keys: Sequence[str], name: str, found: Match) -> None:
    """Refuse tensors that cannot stand for a parameter.

    Args:
        path: of the model directory, for messages.
        tensors: by file key.
        keys: of the tensors that hold the parameter: several where it is tied.
        name: of the parameter.
        found: what the keys are.

    Raises:
        CheckpointError: one is no floating tensor, or two differ.
    """
    for key in keys:
        check_dtype(path, tensors, key)
    other = next((key for key in keys[1:] if not torch.equal(tensors[keys[0]], tensors[key])), None)
    if other and found.names[other] == found.names[keys[0]]:
        raise CheckpointError(
            f"{path}: {keys[0]} and {other} both stand for {name} and differ, so nobody can say which of them counts."
            " Save the model anew with save_pretrained."
        )
    if other:
        raise CheckpointError(
            f"{path}: {keys[0]} and {other} differ, but the base ties them into one parameter ({name}), so one of them"
            f" would be lost. {UNTIE}"
        )


def check_dtype(path: Path, tensors: Mapping[str, Tensor], key: str) -> None:
    """Refuse a tensor that is not floating.

    Raises:
        CheckpointError: it is not.
    """
    if tensors[key].dtype not in FLOATS:
        raise CheckpointError(
            f"{path}: {key} is {tensors[key].dtype}; the weights are quantised, and a difference of codes is no"
            " task vector. Give the checkpoint in float32, bfloat16 or float16 (load it, call dequantize(), and"
            " save it anew)."
        )


def other_rows(
    path: Path, tokens: int | None, key: str, tensor: Tensor, name: str, shape: tuple[int, ...], vocabulary: str
) -> Rows:
    """Return what becomes of a tensor of another shape than the live model's, whose rows stand for tokens.

    Raises:
        CheckpointError: they do not, or nobody has said what to do with it.
    """
    held = tuple(tensor.shape)
    where = f"{path}: {key} has shape {held}, but the live model's {name} has {shape}"
    if not held or held[1:] != shape[1:] or tokens != held[0]:
        raise CheckpointError(
            f"{where}. Base and experts must be of one architecture and size; where only a head differs, load the base"
            " headless with AutoModel."
        )
    if vocabulary == UNION:
        raise CheckpointError(
            f"{where}: under model.vocabulary=union an adapter has the tokens of the base, and this one has others. "
            "Fold it into the model that it was trained on, with PEFT's merge_and_unload(), save that with its "
            "tokenizer, and name the directory as the expert: each of its tokens then has a row of its own."
        )
    if vocabulary not in (BASE, SHARED):
        raise CheckpointError(
            f"{where}: the vocabularies differ ({held[0]} tokens and {shape[0]}), so rows do not stand for the same"
            " tokens. If tokens or padding were only added at the end, write model.vocabulary=shared, which merges the"
            f" first {min(held[0], shape[0])} rows; model.vocabulary=base keeps all rows of the base; otherwise take a"
            " model with the base's tokenizer."
        )
    return Rows(held[0], shape[0], min(held[0], shape[0]) if vocabulary == SHARED else 0)
