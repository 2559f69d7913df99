"""What a gradient searcher learns from: a loss, and the inputs on which it is taken.

In: the settings `loss`, the tasks and their search items. Out: a `Learning`. A loss with labels learns from the search
items, one without from the tasks' unlabeled items; a task that has none lends its search items, whose labels are not
looked at. Never the select or the report items: AdaMerging as published learns from the inputs that it is tested on.

What the experts say of these inputs, for a loss that learns from them, is computed once and kept in the cache.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from evomerge import __version__
from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError
from evomerge.common.exits import contained
from evomerge.common.machine import fingerprint
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Batched, Differentiable
from evomerge.fitness.items import UNLABELED, Item, check_disjoint, read_items
from evomerge.fitness.losses import Loss
from evomerge.merging.merger import check_gradient
from evomerge.problem import Problem
from evomerge.runs.config import LEARNING, build, classes
from evomerge.runs.identity import contents
from evomerge.search.evaluators.serial import prepare
from evomerge.search.memory import with_smaller_batches
from evomerge.searchers.base import Needs

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


def check_learning(settings: Mapping[str, Any], fitness: Fitness) -> None:
    """Refuse settings that have no gradient where the searcher asks for one, before models are loaded.

    Args:
        settings: of the search.
        fitness: made of them.

    Raises:
        ConfigError: the method or the fitness has none.
    """
    if not any(getattr(searcher, "needs", Needs()).gradient for searcher in classes(settings["searcher"])):
        return
    check_gradient(next(classes(settings["method"])))
    _differentiable(fitness, next(classes(settings["loss"])))


def _differentiable(fitness: Fitness, loss: Loss | type[Loss]) -> Differentiable:
    """Return a fitness as one that coefficients can be learned from by this loss.

    Raises:
        ConfigError: it gives no logits, or none that the loss can compare.
    """
    name = type(fitness).__name__
    if not isinstance(fitness, Differentiable):
        raise ConfigError(
            f"A gradient needs logits, and the fitness {name} gives none: write fitness=classification, or a searcher "
            f"by values such as searcher=cmaes."
        )
    if loss.taught and not fitness.same_classes:
        raise ConfigError(
            f"This loss compares classes, and under the fitness {name} items have none that are the same for all of "
            f"them: write loss=cross_entropy or loss=entropy."
        )
    return fitness


def find_learning(problem: Problem, settings: Mapping[str, Any], reporter: Progress) -> Learning:
    """Build the loss, read its inputs and ask the experts about them, if the loss needs that.

    Args:
        problem: what is searched.
        settings: of the search.
        reporter: tells the user what goes on.

    Raises:
        ConfigError: the loss needs experts that a task does not have, or more items in a batch than there are.
        SuiteError: unlabeled items also occur on the select or the report split.
    """
    inputs = settings["loss"]["inputs"]
    loss: Loss = build({name: value for name, value in settings["loss"].items() if name not in LEARNING}, "loss")
    fitness = _differentiable(problem.fitness, loss)
    if loss.joint and not 1 < inputs <= (fitness.batch_size if isinstance(fitness, Batched) else inputs):
        raise ConfigError(
            f"loss.inputs={inputs}, but loss.marginal compares the inputs of a step with each other, and so needs 2 or "
            f"more of them in one batch: write loss.inputs=16, or raise fitness.batch_size."
        )
    items = dict(problem.items["search"]) if loss.labelled else _unlabeled(problem)
    prepared = prepare(fitness, problem.live.processor, items, labelled=loss.labelled)
    learning = Learning(loss, fitness, items, prepared, inputs, {})
    if not loss.taught:
        return learning
    with reporter.working("asking the experts about the inputs"):
        return replace(learning, teachers=_ask_experts(problem, settings, learning))


def _unlabeled(problem: Problem) -> dict[str, list[Item]]:
    """Return the unlabeled items of each task, or else its search items; labels that they have are taken away, so that
    nothing can look at them.
    """
    items = dict(problem.items["search"])
    for name, task in problem.sources.tasks.items():
        if (task.items / "unlabeled.jsonl").is_file():
            items[name] = read_items(task.items, "unlabeled", task.classes or None, known=task.known)
    check_disjoint({"unlabeled": items, **{split: problem.items[split] for split in ("select", "report")}})
    return {task: [replace(item, label=UNLABELED) for item in chosen] for task, chosen in items.items()}


def _ask_experts(problem: Problem, settings: Mapping[str, Any], learning: Learning) -> dict[str, dict[str, Tensor]]:
    """Return what each task's own expert says of its inputs, from the cache if it is there."""
    if missing := [task for task in learning.items if task not in problem.experts]:
        raise ConfigError(
            f"This loss learns from what the expert of each task says, and {missing[0]} has none: write "
            f"fitness.tasks.{missing[0]}.expert=..., or another loss (loss=entropy)."
        )
    ids = {task: [item.id for item in chosen] for task, chosen in learning.items.items()}
    device = str(next(problem.live.model.parameters()).device)
    surroundings = {**contents(problem, settings), "evomerge": __version__, "device": device, **fingerprint()}
    key = hashlib.sha256(json.dumps([surroundings, ids], sort_keys=True).encode()).hexdigest()
    file = Path(settings["model"]["cache"]) / "teachers" / f"{key}.safetensors"
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
            found = contained(lambda: with_smaller_batches(learning.fitness, ask))
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
