"""Families of pico language models whose experts have more, fewer, and as many tokens as their base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from evomerge.cli.progress import Reporter
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import load_skeleton
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.config import check, plain
from tests.kit.helpers import compose
from tests.kit.language import documents, save_tokenizer, write_jsonl
from tests.kit.models import TINY, opened, pico

V = TINY["vocab_size"]
SIZES = {"longer": V + 3, "shorter": V - 5, "equal": V}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
CAUSAL = "AutoModelForCausalLM"


def llama(size: int, tied: bool) -> Any:
    return pico(
        LlamaForCausalLM, LlamaConfig(**TINY | {"vocab_size": size}, num_key_value_heads=2, tie_word_embeddings=tied)
    )


def save_family(path: Path, tied: bool, dtype: torch.dtype = torch.float32) -> Path:
    """A base, and experts tuned from it that have more, fewer, and as many tokens."""
    base = llama(V, tied)
    base.save_pretrained(path / "base")
    start = dict(base.named_parameters())
    for seed, (name, size) in enumerate(SIZES.items()):
        model, generator = llama(size, tied), torch.Generator().manual_seed(seed)
        for key, parameter in model.named_parameters():
            both = min(len(parameter), len(start[key]))
            parameter.data[:both] = start[key].data[:both]
            parameter.data += 0.1 * torch.randn(parameter.shape, generator=generator)
        model.to(dtype).save_pretrained(path / name)
    for name in ("base", *SIZES):
        save_tokenizer(path / name)
    return path


def save_families(path: Path) -> Path:
    """A family whose heads are tied to the embeddings and one whose are not, and texts."""
    save_family(path / "tied", tied=True)
    save_family(path / "untied", tied=False)
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


def opened_all(path: Path, choice: str, *names: str) -> tuple[Any, Checkpoint, dict[str, Checkpoint]]:
    """The live model's skeleton, the base, and experts by name."""
    live = load_skeleton(path / "base", CAUSAL)
    base = opened(path / "base", live.model)
    experts = {name: opened(path / name, live.model, vocabulary=choice, base=base) for name in names or SIZES}
    return live, base, experts


def settings(path: Path, choice: str, *more: str, experts: str = "longer,shorter,equal") -> list[str]:
    return [
        "fitness=perplexity",
        f"model.base={path}/base",
        f"model.experts=[{','.join(f'{path}/{name}' for name in experts.split(','))}]",
        f"model.cache={path}/cache",
        f"model.auto_class={CAUSAL}",
        "model.device=cpu",
        f"model.vocabulary={choice}",
        f"fitness.tasks={{mine: {{task: {path.parent}/texts.jsonl}}}}",
        "space=layer",
        *more,
    ]


def assembled(path: Path, choice: str, *more: str, **experts: str) -> tuple[Problem, dict[str, Any]]:
    given = plain(compose(*settings(path, choice, *more, **experts)))
    check(given)
    return build_problem(given, Reporter()), given
