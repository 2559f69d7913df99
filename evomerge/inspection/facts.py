"""What a model directory says of itself, without a model being loaded.

In: a Hugging Face directory. Out: `ModelFacts`: class, size and dtypes of its tensors, vocabulary, chat template, image
processor, licence. What a directory does not say is None; only weights must be there.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import transformers

from evomerge.models.adapter_files import adapter_file, is_adapter
from evomerge.models.cards import read_licence
from evomerge.models.pretrained import read_config
from evomerge.models.processing import Processing
from evomerge.models.vocabulary import read_vocabulary
from evomerge.models.weight_files import ADAPTER, read_json, weight_files
from evomerge.models.weights import dtype_name, load_file, read_tensors


@dataclass(frozen=True)
class ModelFacts:
    """What a model directory says of itself.

    Attributes:
        architecture: the class that its config.json names; what kind of adapter it is.
        elements: of all floating tensors in its files.
        dtypes: of these tensors -> how many elements are in it, the most first.
        bytes: size of the weight files on disk.
        files: how many there are, without the index.
        tied: whether input and output embeddings are one tensor; None where its class ties nothing.
        vocabulary: token -> id.
        templates: the chat templates by name.
        pixels: how its image processor makes pixels of an image.
        licence: as its card states it.
    """

    architecture: str | None
    elements: int
    dtypes: dict[str, int]
    bytes: int
    files: int
    tied: bool | None
    vocabulary: dict[str, int] | None = field(repr=False)
    templates: dict[str, str] | None = field(repr=False)
    pixels: dict[str, Any] | None
    licence: str | None


def read_facts(path: Path) -> ModelFacts:
    """Read what the directory of a model or of an adapter says of itself.

    Raises:
        CheckpointError: there is no such directory, it holds no weights or no config.json, or a file is damaged.
    """
    adapter = path.is_dir() and is_adapter(path)
    files = [adapter_file(path)] if adapter else weight_files(path)
    config = {"architectures": [_kind(path)]} if adapter else read_json(path / "config.json")
    dtypes: Counter[str] = Counter()
    for tensor in (load_file(files[0]) if adapter else read_tensors(files)).values():
        if tensor.is_floating_point():
            dtypes[dtype_name(tensor.dtype)] += math.prod(tensor.shape)
    architectures = config.get("architectures")
    architecture = str(architectures[0]) if isinstance(architectures, list) and architectures else None
    processing = Processing(path)
    weights = [file for file in files if file.suffix != ".json"]
    return ModelFacts(
        architecture=architecture,
        elements=dtypes.total(),
        dtypes=dict(dtypes.most_common()),
        bytes=sum(file.stat().st_size for file in weights),
        files=len(weights),
        tied=_tied(path, architecture),
        vocabulary=read_vocabulary(path),
        templates=processing.templates or None,
        pixels=processing.stated_pixels or None,
        licence=read_licence(path),
    )


def _kind(path: Path) -> str:
    """Return what an adapter is."""
    return f"PEFT adapter ({read_json(path / ADAPTER).get('peft_type')})"


def _tied(path: Path, architecture: str | None) -> bool | None:
    """Whether the class of the config ties its embeddings, if it can."""
    if not getattr(getattr(transformers, architecture or "", None), "_tied_weights_keys", None):
        return None
    try:
        config = read_config(path)
    except Exception:  # of whatever kind; what is wrong with the config is said where the model is loaded
        return None
    return bool(getattr(config, "tie_word_embeddings", False))
