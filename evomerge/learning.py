"""What a gradient searcher learns from: a loss, and the inputs on which it is taken.

In: the settings `loss`, the tasks and their search items. Out: a `Learning`. A loss with labels learns from the search
items, one without from the tasks' unlabeled items; a task that has none lends its search items, whose labels are not
looked at. Never the select or the report items: AdaMerging as published learns from the inputs that it is tested on.

What the experts say of these inputs, for a loss that learns from them, is computed once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge.assembly import Assembly
from evomerge.config import build
from evomerge.errors import ConfigError
from evomerge.fingerprint import fingerprint
from evomerge.fitness.base import Fitness
from evomerge.fitness.classification import Answers
from evomerge.fitness.losses import Loss
from evomerge.identity import contents
from evomerge.items import Item, check_disjoint, read_items
from evomerge.progress import Reporter


class Differentiable(Fitness, Protocol):
    """A fitness that can also give class logits with a graph, and prepare items without labels."""

    def prepare(self, processor: Any, items: Mapping[str, Sequence[Item]], labelled: bool = True) -> Any:
        """Return all that these items need beside the weights."""
        ...

    def logits(self, model: Any, prepared: Any, ids: Mapping[str, Sequence[str]]) -> Iterator[Mapping[str, Answers]]:
        """Yield the logits of each batch by task."""
        ...


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


def find_learning(assembly: Assembly, settings: Mapping[str, Any], reporter: Reporter) -> Learning:
    """Build the loss, read its inputs and ask the experts about them, if the loss needs that.

    Args:
        assembly: the parts of the search.
        settings: of the search.
        reporter: tells the user what goes on.

    Raises:
        ConfigError: the fitness has no gradient, or the loss needs experts that a task does not have.
        SuiteError: unlabeled items also occur in another split.
    """
    given = {name: value for name, value in settings["loss"].items() if name != "inputs"}
    loss: Loss = build(given, "loss")
    fitness: Any = assembly.fitness
    if not hasattr(fitness, "logits"):
        raise ConfigError(
            f"A gradient needs logits, and the fitness {settings['fitness']['_target_']} gives none: write "
            f"fitness=classification, or a searcher by values such as searcher=cmaes."
        )
    items = dict(assembly.items["search"])
    if not loss.labelled:
        for name, task in assembly.sources.tasks.items():
            if (task.items / "unlabeled.jsonl").is_file():
                items[name] = read_items(task.items, "unlabeled")
        check_disjoint({"unlabeled": items, **{split: assembly.items[split] for split in ("select", "report")}})
    prepared = fitness.prepare(assembly.live.processor, items, labelled=loss.labelled)
    learning = Learning(loss, fitness, items, prepared, settings["loss"]["inputs"], {})
    if not loss.taught:
        return learning
    with reporter.working("asking the experts about the inputs"):
        return replace(learning, teachers=_ask_experts(assembly, settings, learning))


def _ask_experts(assembly: Assembly, settings: Mapping[str, Any], learning: Learning) -> dict[str, dict[str, Tensor]]:
    if missing := [task for task in learning.items if task not in assembly.experts]:
        raise ConfigError(
            f"This loss learns from what the expert of each task says, and {missing[0]} has none: write "
            f"fitness.tasks.{missing[0]}.expert=..., or another loss (loss=entropy)."
        )
    ids = {task: [item.id for item in chosen] for task, chosen in learning.items.items()}
    key = json.dumps([contents(assembly, settings), ids, fingerprint()], sort_keys=True)
    file = Path(settings["model"]["cache"]) / "teachers" / f"{hashlib.sha256(key.encode()).hexdigest()}.safetensors"
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        said = {task: _probabilities(assembly, learning, task, chosen) for task, chosen in ids.items()}
        assembly.become(None)
        save_file(said, file)  # atomic: it renames
    held = load_file(file)
    return {task: dict(zip(chosen, held[task], strict=True)) for task, chosen in ids.items()}


@torch.no_grad()
def _probabilities(assembly: Assembly, learning: Learning, task: str, ids: list[str]) -> Tensor:
    """Return what a task's expert says of its items, (n, C)."""
    assembly.become(assembly.experts[task])
    found: dict[int, Tensor] = {}
    for answers in learning.fitness.logits(assembly.live.model, learning.prepared, {task: ids}):
        found |= dict(zip(answers[task].positions, torch.softmax(answers[task].logits, dim=-1).cpu(), strict=True))
    return torch.stack([found[i] for i in range(len(ids))])
