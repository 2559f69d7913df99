"""Families of pico models of other kinds than a plain decoder: mixtures of experts, encoder and decoder in one."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    MixtralForCausalLM,
    MT5Config,
    MT5ForConditionalGeneration,
    OlmoeConfig,
    OlmoeForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    T5ForConditionalGeneration,
)

from tests.kit.language import save_tokenizer
from tests.kit.models import MIXTRAL, T5, TINY, pico

MIXTURE: dict[str, Any] = {**TINY, "num_key_value_heads": 2, "num_experts": 3, "num_experts_per_tok": 2}
MIXTURES = {
    "mixtral": (MixtralForCausalLM, MIXTRAL),
    "qwen3_moe": (Qwen3MoeForCausalLM, Qwen3MoeConfig(**MIXTURE, moe_intermediate_size=16, head_dim=16)),
    "olmoe": (OlmoeForCausalLM, OlmoeConfig(**MIXTURE, eos_token_id=2, pad_token_id=1)),
}
SMALL = {"encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2}
BART = BartConfig(
    **SMALL, d_model=32, encoder_ffn_dim=32, decoder_ffn_dim=32, vocab_size=50, max_position_embeddings=16
)
MT5 = MT5Config(num_layers=1, d_model=32, d_kv=16, d_ff=64, num_heads=2, vocab_size=50)
BOTH_WAYS = {
    "t5": (T5ForConditionalGeneration, T5),
    "bart": (BartForConditionalGeneration, BART),
    "mt5": (MT5ForConditionalGeneration, MT5),
}
INPUT = torch.tensor([[3, 5, 9, 30, 2, 7, 11, 4]])


def save_kind(path: Path, cls: Any, config: Any, forms: Mapping[str, bool]) -> dict[str, dict[str, torch.Tensor]]:
    """Save a base and its experts, each in the form of its files (True) or under the live model's names (False).

    Returns:
        Their parameters.
    """
    saved = {}
    for number, (name, own) in enumerate(forms.items()):
        model, generator = pico(cls, copy.deepcopy(config)), torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            parameter.data *= 0.3
            if number:
                parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(path / name, save_original_format=own)
        save_tokenizer(path / name)
        saved[name] = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return saved


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    """What a model with a head makes of one text, and of its beginning where it has a decoder of its own."""
    decoder = {"decoder_input_ids": INPUT[:, :4]} if model.config.is_encoder_decoder else {}
    return model.eval()(input_ids=INPUT, **decoder).logits.float()
