"""What a gradient searcher learns from: a loss, and the inputs on which it is taken.

In: the settings `loss`, the tasks and their search items. Out: a `Learning`. A loss with labels learns from the search
items, one without from the tasks' unlabeled items; a task that has none lends its search items, whose labels are not
looked at. Never the select or the report items: AdaMerging as published learns from the inputs that it is tested on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.common.errors import ConfigError
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Batched, Differentiable
from evomerge.fitness.items import HELD_OUT, UNLABELED, Item, check_disjoint, read_items
from evomerge.fitness.losses import Loss
from evomerge.merging.gradient import check_gradient
from evomerge.problem import Problem
from evomerge.runs.config import LEARNING, build, classes
from evomerge.search.evaluators.scoring import prepare
from evomerge.search.learning import Learning, ask_experts
from evomerge.searchers.base import Needs


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
    if settings["objective"].get("forget"):
        raise ConfigError(
            "objective.forget has no gradient: no loss says what is to be kept meanwhile. Write a searcher by values, "
            "such as searcher=cmaes."
        )
    if settings["objective"].get("constraints"):
        raise ConfigError(
            "objective.constraints has no gradient: a loss does not know them. Write a searcher by values, such as "
            "searcher=cmaes."
        )
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


def find_learning(problem: Problem, settings: Mapping[str, Any], reporter: Progress, teach: bool = True) -> Learning:
    """Build the loss, read its inputs and ask the experts about them, if the loss needs that.

    Args:
        problem: what is searched.
        settings: of the search.
        reporter: tells the user what goes on.
        teach: whether the experts are asked, if the loss needs that; not where workers take the steps.

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
    if not (loss.taught and teach):
        return learning
    with reporter.working("asking the experts about the inputs"):
        return replace(learning, teachers=ask_experts(problem, learning))


def _unlabeled(problem: Problem) -> dict[str, list[Item]]:
    """Return the unlabeled items of each task, or else its search items; labels that they have are taken away, so that
    nothing can look at them.
    """
    items = dict(problem.items["search"])
    for name in list(items):  # of tasks that are held out, nothing is learned
        task = problem.sources.tasks[name]
        if (task.items / "unlabeled.jsonl").is_file():
            items[name] = read_items(task.items, "unlabeled", task.classes or None, known=task.known)
    report = {**problem.items["report"], **problem.items.get(HELD_OUT, {})}
    check_disjoint({"unlabeled": items, "select": problem.items["select"], "report": report})
    return {task: [replace(item, label=UNLABELED) for item in chosen] for task, chosen in items.items()}
