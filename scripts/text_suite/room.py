"""How much a suite leaves to search: experts' mean minus the best constant coefficient, on select items.

In: a finished suite. Out: a table, one row a task: accuracy of the base, of the task's own expert, and of
theta_0 + lambda * sum_k tau_k (Ilharco et al. 2023) with the one lambda that is best on average.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from rich.table import Table
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertModel

from evomerge.finetune import predict
from evomerge.items import read_items
from evomerge.suite import Suite, Task

CONSTANTS = (0.2, 0.3, 0.4, 0.5, 0.6, 0.8, 1.0)


def count(suite: Suite) -> int:
    """Count how many times `measure` scores a task."""
    return len(suite.tasks) * (2 + len(CONSTANTS))


def measure(suite: Suite, items: int, max_tokens: int, on_score: Callable[[], object]) -> dict[str, Any]:
    """Score base, experts and constants.

    Args:
        suite: the suite.
        items: so many select items of each task.
        max_tokens: longer texts are cut.
        on_score: called after each score of a task.

    Returns:
        {"base": {task: accuracy}, "own_expert": ..., "best_constant": ..., "constant": lambda, "items": n}.
    """
    tokenizer = AutoTokenizer.from_pretrained(suite.base)
    model = BertModel.from_pretrained(suite.base, add_pooling_layer=False).eval()
    base = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def score(weights: dict[str, torch.Tensor], task: Task) -> float:
        model.load_state_dict(weights)
        chosen = read_items(task.items, "select", task.classes)[:items]
        head = load_file(str(task.head))["weight"]
        predicted = predict(model, tokenizer, [item.text for item in chosen], head, max_tokens)
        on_score()
        return float(np.mean(predicted == [item.label for item in chosen]))

    total = {name: torch.zeros_like(tensor) for name, tensor in base.items()}
    experts = {}
    for name, task in suite.tasks.items():
        weights = load_file(suite.experts[name] / "model.safetensors")
        experts[name] = score(weights, task)
        for key, tensor in total.items():
            tensor += weights[key] - base[key]
    best: tuple[float, float, dict[str, float]] = (-1.0, 0.0, {})
    for constant in CONSTANTS:
        merged = {name: tensor + constant * total[name] for name, tensor in base.items()}
        scores = {name: score(merged, task) for name, task in suite.tasks.items()}
        best = max(best, (float(np.mean(list(scores.values()))), constant, scores), key=lambda entry: entry[0])
    return {
        "base": {name: score(base, task) for name, task in suite.tasks.items()},
        "own_expert": experts,
        "best_constant": best[2],
        "constant": best[1],
        "items": items,
    }


def table(room: dict[str, Any]) -> Table:
    """Lay out what `measure` gave, with means and the room in the last rows."""
    out = Table(title=f"accuracy on {room['items']} select items a task")
    for header in ("task", "base", "own expert", f"best constant ({room['constant']})"):
        out.add_column(header, justify="left" if header == "task" else "right")
    columns = [room["base"], room["own_expert"], room["best_constant"]]
    for name in room["base"]:
        out.add_row(name, *(f"{column[name]:.3f}" for column in columns))
    means = [float(np.mean(list(column.values()))) for column in columns]
    out.add_section()
    out.add_row("mean", *(f"{mean:.3f}" for mean in means))
    out.add_row("room", "", "", f"{means[1] - means[2]:.3f}")
    out.caption = "room: experts' mean minus best constant, what a search can win at best"
    return out
