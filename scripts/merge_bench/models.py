"""Models to merge: a base and experts of a Llama shape, random, in bfloat16, as directories with one file of weights.

The default shape is that of SmolLM2-135M: 134.5 M parameters, embeddings and head tied.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.models.live import LiveModel, live_module

BASE, ADAPTER = "base", "adapter"


@dataclass(frozen=True)
class Shape:
    """What the sizes of all parameters follow from.

    Attributes:
        layers: how many blocks.
        width: of the hidden states, a multiple of 18: with 9 heads, 3 of which keys and values share.
        vocabulary: how many tokens.
    """

    layers: int = 30
    width: int = 576
    vocabulary: int = 49152

    def config(self) -> LlamaConfig:
        """Return the configuration of a Llama."""
        return LlamaConfig(
            hidden_size=self.width,
            intermediate_size=self.width * 8 // 3,
            num_hidden_layers=self.layers,
            num_attention_heads=9,
            num_key_value_heads=3,
            vocab_size=self.vocabulary,
            tie_word_embeddings=True,
            architectures=[LlamaForCausalLM.__name__],
        )


def write_models(directory: Path, shape: Shape, experts: int) -> LiveModel:
    """Write `base` and `0`, `1` ... into a directory, and return the base as a live model.

    An expert differs from the base in nearly all elements, by a few hundredths of their size.
    """
    live = live_module(LlamaForCausalLM._from_config(shape.config(), dtype=torch.bfloat16))
    generator, own = torch.Generator().manual_seed(0), dict(live.model.named_parameters())
    for parameter in own.values():
        parameter.copy_(torch.randn(parameter.shape, generator=generator) / 50)
    for number in range(experts + 1):
        tensors = dict(own)
        if number:
            for name, base in own.items():
                tuned = torch.randn(base.shape, generator=generator) / 1000
                tensors[name] = (base.float() + tuned).to(torch.bfloat16)
        path = directory / (str(number - 1) if number else BASE)
        path.mkdir()
        live.model.config.save_pretrained(path)
        save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    return live


def write_adapters(directory: Path, live: LiveModel, adapters: int, rank: int) -> None:
    """Write `adapter0`, `adapter1` ... into the directory of the models, as PEFT does: LoRA on all matrices of blocks.

    Args:
        directory: of the base, which they are adapters of.
        live: the base.
        adapters: how many.
        rank: of each matrix's change.
    """
    generator = torch.Generator().manual_seed(1)
    layers = {name: one for name, one in live.model.named_modules() if isinstance(one, nn.Linear) and "layers" in name}
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank}
    about |= {"target_modules": sorted({name.rpartition(".")[2] for name in layers})}
    for number in range(adapters):
        tensors = {}
        for name, one in layers.items():
            key = f"base_model.model.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(rank, one.in_features, generator=generator) / 50
            tensors[f"{key}.lora_B.weight"] = torch.randn(one.out_features, rank, generator=generator) / 50
        path = directory / f"{ADAPTER}{number}"
        path.mkdir()
        (path / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
        save_file(tensors, path / "adapter_model.safetensors", metadata={"format": "pt"})
