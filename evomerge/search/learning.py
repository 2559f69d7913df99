"""What a gradient is taken of: a loss, the inputs on which it is taken, and what the experts say of them.

In: a problem, a loss and its inputs (`runs/learning.py` makes them of settings). Out: a `Learning`. What the experts
say, for a loss that learns from them, is computed once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError
from evomerge.common.exits import contained
from evomerge.fitness.capabilities import Differentiable
from evomerge.fitness.items import Item
from evomerge.fitness.losses import Loss
from evomerge.problem import Problem
from evomerge.search.memory import Halving

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Learning:
    """What a gradient searcher learns from.

    Attributes:
        loss: one number for each item.
        fitness: gives the logits.
        items: the inputs by task.
        prepared: the same as the fitness prepared them.
        inputs: how many of each task a step takes.
        teachers: task -> item id -> probabilities (C,) by the task's expert, for a loss that is taught.
    """

    loss: Loss
    fitness: Differentiable
    items: dict[str, list[Item]]
    prepared: Any
    inputs: int
    teachers: dict[str, dict[str, Tensor]]


def ask_experts(problem: Problem, learning: Learning) -> dict[str, dict[str, Tensor]]:
    """Return what each task's own expert says of its inputs, from the cache if it is there: task -> item id ->
    probabilities (C,).

    Raises:
        ConfigError: a task has no expert, or one cannot be asked.
        CheckpointError: an expert says what is no number.
    """
    if missing := [task for task in learning.items if task not in problem.experts]:
        raise ConfigError(
            f"This loss learns from what the expert of each task says, and {missing[0]} has none: write "
            f"fitness.tasks.{missing[0]}.expert=..., or another loss (loss=entropy)."
        )
    ids = {task: [item.id for item in chosen] for task, chosen in learning.items.items()}
    surroundings = {**problem.contents, **problem.circumstances}
    key = hashlib.sha256(json.dumps([surroundings, ids], sort_keys=True).encode()).hexdigest()
    file = problem.opening.cache / "teachers" / f"{key}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # a second run waits, and reads what the first has written
        held = _read(file)
        if held is None:
            try:
                said = {task: _probabilities(problem, learning, task, chosen) for task, chosen in ids.items()}
            finally:
                problem.become(None)
            save_file(said, file)  # atomic: it renames
            held = said
    return {task: dict(zip(chosen, held[task], strict=True)) for task, chosen in ids.items()}


def _read(file: Path) -> dict[str, Tensor] | None:
    """Return what the experts said, or None where there is no file or a damaged one."""
    try:
        return {task: said.clone() for task, said in load_file(file).items()}  # not mapped: the cache may change
    except FileNotFoundError:
        return None
    except (SafetensorError, OSError):
        logger.warning("%s is damaged: the experts are asked again", file)
        return None


@torch.no_grad()
def _probabilities(problem: Problem, learning: Learning, task: str, ids: list[str]) -> Tensor:
    """Return what a task's expert says of its items, (n, C).

    Raises:
        CheckpointError: it says what is no number.
        ConfigError: it cannot be asked.
    """
    problem.become(problem.experts[task])

    def ask() -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for answers in learning.fitness.logits(problem.live.model, learning.prepared, {task: ids}):
            found |= dict(zip(answers[task].positions, torch.softmax(answers[task].logits, dim=-1).cpu(), strict=True))
        return found

    try:
        with problem.merger.guard:
            found = contained(lambda: Halving(learning.fitness)({task: ids}, ask))
    except EvomergeError:
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        raise ConfigError(
            f"The expert {problem.experts[task]} cannot be asked about its task {task}: {type(error).__name__}: "
            f"{error}. Another loss asks no expert (loss=entropy)."
        ) from error
    said = torch.stack([found[i] for i in range(len(ids))])
    if not said.isfinite().all():
        raise CheckpointError(
            f"The expert {problem.experts[task]} gives no number on {int((~said.isfinite()).any(-1).sum())} of "
            f"{len(ids)} inputs of its task {task}, so nothing can be learned from it: take another checkpoint of it, "
            f"or another loss (loss=entropy)."
        )
    return said
