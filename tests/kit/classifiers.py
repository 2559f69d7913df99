"""A pico base with experts that are classifiers of their own, for the tests of heads and fitnesses."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, BertForSequenceClassification, BertModel

from evomerge.cli.progress import Reporter
from evomerge.demo.finetune import save_model
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.runs.suite import Suite
from tests.kit.helpers import compose


def save_classifiers(path: Path, suite: Suite, pooler: bool) -> None:
    """Write `base`, with or without pooler, and for each task of the suite an expert with its own head and classes."""
    tokenizer = AutoTokenizer.from_pretrained(suite.base)
    config = AutoConfig.from_pretrained(suite.base)
    weights = load_file(suite.base / "model.safetensors")
    generator = torch.Generator().manual_seed(0)

    def noise(parameter: torch.Tensor, scale: float) -> torch.Tensor:
        return scale * torch.randn(parameter.shape, generator=generator)

    base = BertModel(config)
    base.load_state_dict(weights, strict=False)
    base.pooler.dense.weight.data = noise(base.pooler.dense.weight, 0.2)
    start = base.state_dict()
    if not pooler:
        base.pooler = None
    save_model(base, tokenizer, path / "base")
    for name, task in suite.tasks.items():
        config = AutoConfig.from_pretrained(suite.base, num_labels=len(task.classes))
        expert = BertForSequenceClassification(config)
        expert.bert.load_state_dict(start)
        for parameter in expert.parameters():
            parameter.data += noise(parameter, 0.05)
        expert.classifier.weight.data = noise(expert.classifier.weight, 1.0)
        save_model(expert, tokenizer, path / name)


def build_classifiers(path: Path, suite: Suite, frozen: str | None = None) -> Problem:
    """Assemble what `save_classifiers` wrote; all tasks with their experts' own heads, but for the one named here."""
    tasks = [
        f"{name}: {{items: {task.items}{f', head: {task.head}' if name == frozen else ''}}}"
        for name, task in suite.tasks.items()
    ]
    config = compose(
        f"model.base={path / 'base'}",
        f"model.experts=[{','.join(str(path / name) for name in suite.tasks)}]",
        f"model.cache={path / 'cache'}",
        "model.device=cpu",
        f"fitness.tasks={{{', '.join(tasks)}}}",
    )
    return build_problem(plain(config), Reporter())
