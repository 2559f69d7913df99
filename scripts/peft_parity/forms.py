"""Every kind of adapter that PEFT folds, on bases that hold the numbers of a given one.

In: a base of Llama's modules. Out: directories of bases and adapters. A kind that the base has no modules for is on a
base that has them: `untied` has a head of its own, and biases that are drawn; `GPT-2` has its matrices with inputs
first.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

TARGETS = ["q_proj", "down_proj"]
RANK, ALPHA, SIZE = 8, 12, 0.05


@dataclass(frozen=True)
class Form:
    """A kind of adapter.

    Attributes:
        base: which base it is of: `given`, `untied` or `GPT-2`.
        settings: of PEFT's LoraConfig, beside those that all have.
    """

    base: str
    settings: dict[str, Any]


FORMS = {
    "plain": Form("given", {}),
    "rsLoRA": Form("given", {"use_rslora": True}),
    "patterns": Form(
        "given", {"rank_pattern": {"q_proj": 2, "layers.1.mlp.down_proj": 5}, "alpha_pattern": {"down_proj": 9}}
    ),
    "one layer": Form("given", {"layers_to_transform": [1]}),
    "tied embedding": Form("given", {"target_modules": ["embed_tokens", "q_proj"]}),
    "a parameter": Form("given", {"target_parameters": ["mlp.gate_proj.weight"]}),
    "all biases": Form("untied", {"bias": "all"}),
    "biases of its modules": Form("untied", {"bias": "lora_only"}),
    "biases of factors": Form("untied", {"target_modules": ["q_proj"], "lora_bias": True}),
    "whole modules": Form("untied", {"modules_to_save": ["embed_tokens", "lm_head", "input_layernorm"]}),
    "embedding": Form("untied", {"target_modules": ["embed_tokens", "q_proj"]}),
    "rows of the embedding": Form("untied", {"trainable_token_indices": [1, 5]}),
    "DoRA": Form("untied", {"target_modules": ["embed_tokens", "q_proj"], "use_dora": True}),
    "inputs first": Form("GPT-2", {"target_modules": ["c_attn", "c_fc"]}),
    "DoRA, inputs first": Form("GPT-2", {"target_modules": ["c_attn"], "use_dora": True}),
}


def write_base(kind: str, given: Path, out: Path, dtype: torch.dtype) -> None:
    """Write a base of a kind.

    Args:
        kind: `given`, `untied` or `GPT-2`.
        given: the directory whose numbers it has.
        out: the directory to make.
        dtype: of its weights.
    """
    more = {"attention_bias": True, "tie_word_embeddings": False} if kind == "untied" else {}
    config = AutoConfig.from_pretrained(given, **more)
    with torch.random.fork_rng(devices=[]):
        model: Any = AutoModelForCausalLM.from_pretrained(given, config=config, dtype=torch.float32)
        if kind == "untied":
            _untie(model)
        model = _gpt2(model) if kind == "GPT-2" else model
    model.to(dtype).save_pretrained(out)


@torch.no_grad()
def _untie(model: Any) -> None:
    """Give a model that has no head and no biases of its own, some."""
    generator = torch.Generator().manual_seed(0)
    model.lm_head.weight.copy_(model.model.embed_tokens.weight)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.copy_(SIZE * torch.randn(parameter.shape, generator=generator))


@torch.no_grad()
def _gpt2(model: Any) -> Any:
    """Return a GPT-2 whose embedding, attention and first matrix of each MLP hold the numbers of a Llama."""
    config = model.config
    sizes = {"n_layer": config.num_hidden_layers, "n_head": config.num_attention_heads, "n_positions": 64}
    ends = {"vocab_size": config.vocab_size, "bos_token_id": config.bos_token_id, "eos_token_id": config.eos_token_id}
    other: Any = GPT2LMHeadModel(
        GPT2Config(**sizes, **ends, n_embd=config.hidden_size, n_inner=config.intermediate_size)
    )
    other.transformer.wte.weight.copy_(model.model.embed_tokens.weight)
    times = config.num_attention_heads // config.num_key_value_heads
    for block, layer in zip(other.transformer.h, model.model.layers, strict=True):
        own, heads = layer.self_attn, (config.num_key_value_heads, -1)
        keys, values = (
            one.weight.unflatten(0, heads).repeat_interleave(times, 0).flatten(0, 1) for one in (own.k_proj, own.v_proj)
        )
        block.attn.c_attn.weight.copy_(torch.cat([own.q_proj.weight, keys, values]).T)
        block.mlp.c_fc.weight.copy_(layer.mlp.up_proj.weight.T)
    return other


def write_adapter(form: Form, base: Path, out: Path, seed: int = 1) -> None:
    """Write an adapter whose tensors are all drawn, in the dtype of its base.

    Args:
        form: its kind.
        base: the directory of its base.
        out: the directory to make.
        seed: of the draws.
    """
    from peft import LoraConfig, get_peft_model

    generator = torch.Generator().manual_seed(seed)
    settings = {"r": RANK, "lora_alpha": ALPHA, "target_modules": TARGETS, "task_type": "CAUSAL_LM", **form.settings}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype="auto")
        model = get_peft_model(loaded, LoraConfig(**settings), autocast_adapter_dtype=False)
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                drawn = SIZE * torch.randn(parameter.shape, generator=generator)
                factor = "lora_" in name and "magnitude" not in name
                parameter.data = (drawn if factor else parameter + drawn).to(parameter.dtype)
        model.save_pretrained(str(out))
