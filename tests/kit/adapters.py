"""Adapters of every form that PEFT writes, on pico models, and what PEFT itself makes of them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel, load_skeleton
from tests.kit.models import GPT2, TINY, pico

LLAMA = LlamaConfig(**TINY, num_key_value_heads=2, attention_bias=True)
TARGETS = ["q_proj", "down_proj"]
CAUSAL = "AutoModelForCausalLM"


def llama(tie: bool = False) -> Any:
    """A pico Llama with biases."""
    return pico(LlamaForCausalLM, LlamaConfig(**{**LLAMA.to_dict(), "tie_word_embeddings": tie}))


def gpt2() -> Any:
    """A pico GPT-2, whose matrices have inputs first."""
    return pico(GPT2LMHeadModel, GPT2)


FORMS: dict[str, tuple[Any, dict[str, Any]]] = {
    "plain": (llama, {}),
    "rsLoRA": (llama, {"use_rslora": True}),
    "patterns": (
        llama,
        {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"down_proj": 9}},
    ),
    "one layer": (llama, {"layers_to_transform": [1]}),
    "all biases": (llama, {"bias": "all"}),
    "biases of its modules": (llama, {"bias": "lora_only"}),
    "biases of factors": (llama, {"target_modules": ["q_proj"], "lora_bias": True}),
    "whole modules": (llama, {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "tied embedding": (lambda: llama(tie=True), {"target_modules": ["embed_tokens", "q_proj"]}),
    "rows of the embedding": (llama, {"trainable_token_indices": [1, 5]}),
    "a parameter": (llama, {"target_parameters": ["mlp.gate_proj.weight"]}),
    "inputs first": (gpt2, {"target_modules": ["c_attn", "c_fc"]}),
    "DoRA": (llama, {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "DoRA, inputs first": (gpt2, {"target_modules": ["c_attn"], "use_dora": True}),
}


def save_adapter(path: Path, base: nn.Module, seed: int = 1, size: float = 0.1, **config: Any) -> Path:
    """Write an adapter of a model, all of whose tensors are drawn: PEFT puts it into the model, and it stays there."""
    peft = pytest.importorskip("peft")
    generator = torch.Generator().manual_seed(seed)
    settings = {"r": 3, "lora_alpha": 5, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **config}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = peft.get_peft_model(base, peft.LoraConfig(**settings), autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                drawn = size * torch.randn(parameter.shape, generator=generator)
                parameter.data = (drawn if "lora_" in name and "magnitude" not in name else parameter + drawn).to(
                    parameter.dtype
                )
        model.save_pretrained(path)
    return path


def loaded_by_peft(base: Path, adapter: Path, narrow: bool = False) -> Any:
    """A base with an adapter on top, as PEFT loads it; in the dtype of the files, if it is to be narrow."""
    peft = pytest.importorskip("peft")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        return peft.PeftModel.from_pretrained(model, adapter, autocast_adapter_dtype=not narrow)


def folded_by_peft(base: Path, adapter: Path, narrow: bool = False) -> dict[str, Tensor]:
    """The parameters of a base with an adapter folded in, as PEFT does it."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = loaded_by_peft(base, adapter, narrow).merge_and_unload()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def opened(
    base: Path, adapter: Path, auto_class: str = CAUSAL, **more: Any
) -> tuple[LiveModel, Checkpoint, Checkpoint]:
    """The skeleton of a base, the base, and an adapter of it."""
    live = load_skeleton(base, auto_class)
    ours = live.open(base)
    return live, ours, live.open(adapter, base=ours, **more)


def rewrite(path: Path, **changes: Any) -> None:
    """Change the settings of an adapter."""
    file = path / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))
