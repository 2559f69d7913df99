"""Pico models in the layout of sentence-transformers: an encoder, pooling, a dense layer and a normalisation."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import BertModel

from evomerge.fitness.items import Item, item_id, write_items
from evomerge.runs.suite import Suite, write_head

WIDTH = 12
"""Of embeddings."""
CLASSES = {"mood": 2, "topic": 3}


def save_sentences(path: Path, suite: Suite, modes: list[str] | None = None) -> None:
    """Save a base and two experts, whose dense layers differ too, with a head of random class embeddings for each.

    Args:
        path: where to.
        suite: whose base and tokenizer they have.
        modes: how hidden states are pooled; None for their mean, said as in earlier years.
    """
    base = BertModel.from_pretrained(suite.base, add_pooling_layer=False)
    for number, name in enumerate(("base", *CLASSES)):
        generator = torch.Generator().manual_seed(number)
        for parameter in base.encoder.parameters():
            parameter.data += 0.02 * number * torch.randn(parameter.shape, generator=generator)
        base.save_pretrained(path / name)
        for file in suite.base.glob("*token*"):
            shutil.copy(file, path / name)
        width = base.config.hidden_size * len(modes or [""])
        dense = {"linear.weight": torch.randn(WIDTH, width, generator=torch.Generator().manual_seed(9)) / 6}
        dense["linear.bias"] = 0.1 * torch.randn(WIDTH, generator=generator)
        dense["linear.weight"] += 0.02 * number * torch.randn(WIDTH, width, generator=generator)
        _write(path / name, base.config.hidden_size, width, dense, modes)
    for name, classes in CLASSES.items():
        drawn = torch.randn(classes, WIDTH, generator=torch.Generator().manual_seed(classes))
        weight = torch.nn.functional.normalize(drawn, dim=-1)
        write_head(path / f"{name}.safetensors", weight, pooling="sentence")
        texts = [f"ba{i} keke {name} {i}" for i in range(60)]
        write_items(
            path / f"{name}.jsonl", [Item(item_id(t, i % classes), t, i % classes) for i, t in enumerate(texts)]
        )


def _write(path: Path, hidden: int, width: int, dense: dict[str, torch.Tensor], modes: list[str] | None) -> None:
    pooling: dict[str, Any] = {"word_embedding_dimension": hidden, "pooling_mode_mean_tokens": True}
    if modes:
        pooling = {"embedding_dimension": hidden, "pooling_mode": modes, "include_prompt": True}
    tanh = "torch.nn.modules.activation.Tanh"
    linear = {"in_features": width, "out_features": WIDTH, "bias": True, "activation_function": tanh}
    for folder, settings in {"1_Pooling": pooling, "2_Dense": linear}.items():
        (path / folder).mkdir()
        (path / folder / "config.json").write_text(json.dumps(settings))
    save_file(dense, path / "2_Dense" / "model.safetensors")
    kinds = {"": "Transformer", "1_Pooling": "Pooling", "2_Dense": "Dense", "3_Normalize": "Normalize"}
    rows = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(kinds.items())
    ]
    (path / "modules.json").write_text(json.dumps(rows))
    (path / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 20, "do_lower_case": False}))
