"""Copies of merged parameters among the tensors that are no parameter: the head of a model that ties it to its words.

In: the base's `Checkpoint`. Out: the file keys of such copies. They are left out of a merged model: a copy of θ₀ beside
the merged words would untie the head, and whoever loads the model with its head would get the base's. Which tensors a
class ties is asked of the class that the base was saved from and of every class with which people load such a model,
since a config may not say the first, or say one without a head.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch

from evomerge.common.errors import EvomergeError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import load_skeleton

CLASSES = (
    *("AutoModelForCausalLM", "AutoModelForMaskedLM", "AutoModelForSeq2SeqLM", "AutoModelForPreTraining"),
    *("AutoModelForImageTextToText", "AutoModelForSpeechSeq2Seq"),
)
"""Those that have a head which may be tied."""


def tied_copies(base: Checkpoint, dtype: torch.dtype) -> list[str]:
    """Return the keys of copies of merged parameters.

    Args:
        base: its weights.
        dtype: in which transformers loads it, and compares what it may tie.
    """
    keys = set(base.keys.values())
    shapes = {base.tensors[key].shape for key in keys}
    spare = {key for key in base.spare if base.tensors[key].shape in shapes}
    if not spare:
        return []
    return sorted(
        alias
        for alias, source in set(_ties(base))
        if alias in spare
        and source in keys
        and torch.equal(base.tensors[alias].to(dtype), base.tensors[source].to(dtype))
    )


def _ties(base: Checkpoint) -> Iterator[tuple[str, str]]:
    """Yield all pairs of an alias and its source that some class for such a model ties."""
    for name in CLASSES:
        try:
            yield from load_skeleton(base.path, name).tied.items()
        except EvomergeError:  # no such model has a head of this kind
            continue
