"""Tasks of a configuration of mergekit-evolve: names, metrics, weights, how many documents, and the chat template.

In: the configuration. Out: settings `fitness` and `objective` in the account.
"""

from __future__ import annotations

import re
from typing import Any

from evomerge.models.hub import find_directory
from evomerge.models.vocabulary import read_object
from evomerge.recipes.mergekit.document import Reference
from evomerge.recipes.mergekit.evaluate import flag, number
from evomerge.recipes.mergekit.nodes import Node
from evomerge.runs.evolve.account import Account
from evomerge.runs.evolve.options import Options
from evomerge.runs.guess import words_for

LESS = re.compile(r"perplexity|bits_per_byte|brier|loss|^(t|w|c)er$")
"""Metrics of lm-eval of which less is better."""


def read_tasks(root: Node, tasks: Node, options: Options, account: Account) -> None:
    """Take over tasks, metrics, weights and how many documents there are.

    Args:
        root: the configuration.
        tasks: its tasks.
        options: of the command.
        account: takes them.

    Raises:
        ConfigError: a task has no name, is named twice, or has a weight that would make it worse.
    """
    found: dict[str, dict[str, Any]] = {}
    weights: dict[str, float] = {}
    plain = [_task(one) for one in tasks.list]
    words = words_for([name for name, _, _ in plain])
    for one, (name, metric, weight) in zip(tasks.list, plain, strict=True):
        word = words[name]
        if word in found:
            raise one.error(f"{name} is named twice: write it once, with one metric")
        place = options.find_task(name)
        found[word] = {"task": str(place) if place else name, "metric": metric}
        found[word] |= {"include_path": str(options.search_path)} if options.search_path and not place else {}
        weights[word] = abs(weight)
        if weight < 0 and not LESS.search(metric):
            raise one.error(
                f"{name} has the weight {weight:g}, so less {metric} would be better, and evomerge climbs it: write a "
                f"positive weight, or a metric of which less is better"
            )
        if LESS.search(metric):
            account.tell(f"{name}: weight {weight:g}", f"less {metric} is better, so evomerge climbs what is minus it")
    account.take(
        ", ".join(f"{name} ({metric})" for name, metric, _ in plain),
        {"fitness": "lm_eval", "fitness.tasks": found},
        "the search climbs log_probability, which is smooth; these metrics choose the winner and are reported",
    )
    if len(set(weights.values())) > 1:
        account.take("weights of tasks", {"objective.weights": weights}, "divided by their sum")
    why = "drawn from the search split, the same for all candidates; select and report have other documents"
    limit = root.get("limit")
    if limit:
        account.take(f"limit: {limit.text()}", {"fitness.items": int(number(limit)) * len(found)}, why)
    else:
        account.take("no limit", {"fitness.items": None}, "all documents of the search split")
    if shots := root.get("num_fewshot"):
        account.take(f"num_fewshot: {shots.text()}", {"fitness.fewshot": int(number(shots))})
    account.tell(
        "the split of the task",
        "divided among search, select and report; a published test split is refused, and "
        "fitness.public_test=true allows it",
    )


def _task(node: Node) -> tuple[str, str, float]:
    """Return name, metric and weight of a task."""
    if not isinstance(node.value, dict):
        return node.text(), "acc", 1.0
    name, metric, weight = node.get("name"), node.get("metric"), node.get("weight")
    if name is None:
        raise node.error("a task without a name")
    text = metric.text() if metric else "acc,none"
    return name.text(), text.removesuffix(",none"), number(weight) if weight else 1.0


def read_template(root: Node, model: Reference, account: Account) -> None:
    """Take over whether prompts are in the chat template."""
    given, turns = root.get("apply_chat_template"), root.get("fewshot_as_multiturn")
    asked = flag(given) if given else True
    path = find_directory(model.place).path
    there = (path / "chat_template.jinja").is_file() or bool(
        read_object(path / "tokenizer_config.json").get("chat_template")
    )
    why = "the tokenizer has no template" if asked and not there else ""
    account.take(f"apply_chat_template: {str(asked).lower()}", {"fitness.chat_template": asked and there}, why)
    if turns and flag(turns) and asked and there:
        account.tell("fewshot_as_multiturn: true", "examples stand in one message, as lm-eval has them by default")
    if (shuffle := root.get("shuffle")) and flag(shuffle):
        account.tell("shuffle: true", "has no effect in mergekit-evolve either")
