"""What the experts of the lm suite can do, and what is left to search.

In: a built suite. Out: scores of base, experts, and all task vectors with one constant, on select documents of each
task; with standard errors over the documents. A choice counts as right by `acc_norm` of lm-eval (most log-probability a
character); a text gives its bits a byte, of which less is better. What is scored is kept in `room.json`, model by
model, so an interrupted call goes on. No minimum is asked: 200 documents leave standard errors of three points.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file

from evomerge.common.files import write_atomically
from evomerge.fitness.likelihood import Request, make_batches, score
from suite_builder.lm import Task, load
from suite_builder.lm_documents import Asked, encode, read_documents
from suite_builder.show import progress

FORMAT = 1
CONSTANTS = (0.25, 0.5, 0.75, 1.0)
BATCH = 16  # answers a forward pass


def find(out: Path, tasks: Sequence[Task], items: int, console: Console) -> dict[str, Any]:
    """Return the scores of a suite; what was scored before of the same experts is not scored again.

    Args:
        out: directory of the suite.
        tasks: its tasks.
        items: select documents of each task.
        console: is told what goes on.

    Returns:
        {"models": {model: {task: {"mean", "se"}}}, "bits": tasks of which less is better}, and what it was measured of.
    """
    file = out / "room.json"
    about = {"format": FORMAT, "items": items, "suite": hashlib.sha256((out / "suite.json").read_bytes()).hexdigest()}
    room: dict[str, Any] = about | {"bits": [task.name for task in tasks if not task.form.prompt], "models": {}}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        room = known if about.items() <= known.items() else room
    except (OSError, ValueError, AttributeError):
        pass  # not there, or damaged
    names = ["base", *(f"expert {task.name}" for task in tasks), *(f"constant {c:g}" for c in CONSTANTS)]
    missing = [name for name in names if name not in room["models"]]
    if missing:
        with progress(console, "scoring base, experts and constants", len(missing) * len(tasks)) as advance:
            model, tokenizer = load(out / "base")
            asked = {}
            for task in tasks:
                documents = read_documents(out / "tasks" / task.name / "select.jsonl")[:items]
                asked[task.name] = [encode(tokenizer, task.form, document) for document in documents]
            for name in _become(model, out, [task.name for task in tasks], missing):
                room["models"][name] = {task: _summary(model, asked[task], advance) for task in asked}
                write_atomically(file, json.dumps(room, indent=1) + "\n")
    return room


def scores(model: Any, asked: Sequence[Asked]) -> np.ndarray:
    """Score documents (N,): 1 where the right choice has the most log-probability a character, else 0; a text by its
    bits a byte.
    """
    requests = [Request(tuple(one.prompt), tuple(answer)) for one in asked for answer in one.answers]
    found = iter(score(model, make_batches(requests, BATCH, "cpu"), len(requests)).log_probability)
    results = []
    for one in asked:
        a_length = np.array([next(found) / length for length in one.lengths])
        results.append(a_length.argmax() == one.label if len(a_length) > 1 else -a_length[0] / np.log(2))
    return np.array(results, dtype=float)


def best_constant(room: dict[str, Any]) -> str:
    """Return the constant with the best mean over the tasks, of accuracies less bits."""
    return max((name for name in room["models"] if name.startswith("constant")), key=lambda name: _mean(room, name))


def table(room: dict[str, Any]) -> Table:
    """Lay out what `find` gave."""
    tasks = list(room["models"]["base"])
    out = Table(title=f"{room['items']} select documents of each task: accuracy (acc_norm), ± one standard error")
    out.add_column("model")
    for task in tasks:
        out.add_column(f"{task} (bits)" if task in room["bits"] else task, justify="right")
    for name, found in room["models"].items():
        cells = {task: f"{one['mean']:.3f} ± {one['se']:.3f}" for task, one in found.items()}
        out.add_row(name, *(f"[bold]{cells[t]}[/]" if name == f"expert {t}" else cells[t] for t in tasks))
    return out


def sentence(room: dict[str, Any]) -> str:
    """Say how far the best constant stays behind the experts."""
    tasks, best = list(room["models"]["base"]), best_constant(room)
    behind = {
        task: (room["models"][f"expert {task}"][task]["mean"] - room["models"][best][task]["mean"])
        * (-1 if task in room["bits"] else 1)
        for task in tasks
    }
    each = ", ".join(f"{task} {value:+.3f}" for task, value in behind.items())
    return f"the best is {best} (by the mean of accuracies less bits); the experts are better than it by: {each}"


def _mean(room: dict[str, Any], name: str) -> float:
    found = room["models"][name]
    return float(np.mean([-one["mean"] if task in room["bits"] else one["mean"] for task, one in found.items()]))


def _summary(model: Any, asked: Sequence[Asked], on_task: Callable[[], object]) -> dict[str, float]:
    found = scores(model, asked)
    on_task()
    return {"mean": float(found.mean()), "se": float(found.std(ddof=1) / len(found) ** 0.5)}


@torch.no_grad()
def _become(model: Any, out: Path, experts: Sequence[str], names: Sequence[str]) -> Iterator[str]:
    """Put the weights of each of the models into the live one, the base; yield their names."""
    parameters = dict(model.named_parameters())
    base = {name: parameter.clone() for name, parameter in parameters.items()}
    total: dict[str, torch.Tensor] = {}  # of the task vectors
    for name in names:
        kind, _, which = name.partition(" ")
        if kind == "expert":
            weights = load_file(out / "experts" / which / "model.safetensors")
        elif kind == "constant":
            total = total or _total(out, experts, base)
            weights = {key: tensor + float(which) * total[key] for key, tensor in base.items()}
        else:
            weights = base
        for key, parameter in parameters.items():
            parameter.copy_(weights[key])
        yield name


def _total(out: Path, experts: Sequence[str], base: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    total = {key: torch.zeros_like(tensor) for key, tensor in base.items()}
    for name in experts:
        for key, tensor in load_file(out / "experts" / name / "model.safetensors").items():
            total[key] += tensor - base[key]
    return total
