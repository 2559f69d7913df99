"""What a search, and what an outcome, depends on: names and hashes, no paths and no clocks.

In: the problem and its settings. Out: `contents`, all that decides how a model scores on an item; `describe`,
the identity of a search, which stands in the header of its trial log; `digest`, one hash of it. A setting or a file
that changes results and is missing here would mix two searches.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge import __version__
from evomerge.common.machine import fingerprint
from evomerge.fitness.capabilities import identity
from evomerge.fitness.items import Item
from evomerge.models.files_beside import inputs_of
from evomerge.problem import Problem
from evomerge.runs.config import CHOOSING
from evomerge.runs.transforms import described


def contents(problem: Problem, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that decides how a merge with given coefficients scores on given items.

    Args:
        problem: what is searched.
        settings: its settings, as plain containers.
    """
    sources, vectors = problem.sources, problem.vectors
    fitness = {name: value for name, value in settings["fitness"].items() if name not in CHOOSING}
    return {
        "base": vectors.base.sha256,
        "experts": [
            [name, expert.sha256] for name, expert in vectors.experts.items()
        ],  # their order is that of the sum
        "files": _files(sources.base),
        "class": settings["model"]["auto_class"],
        **({"vocabulary": settings["model"]["vocabulary"]} if any(e.rows for e in vectors.experts.values()) else {}),
        "heads": {
            name: hashlib.sha256(task.head.read_bytes()).hexdigest()
            if task.head
            else task.expert and [task.expert, _files(sources.experts[task.expert])]
            for name, task in sources.tasks.items()
        },
        "method": settings["method"],
        **({"transform": described(chain)} if (chain := settings.get("transform")) else {}),
        "fitness": fitness | identity(problem.fitness),
    }


def describe(
    problem: Problem, settings: Mapping[str, Any], learned: Mapping[str, Sequence[Item]] | None = None
) -> dict[str, Any]:
    """Return what makes this search this search.

    Args:
        problem: what is searched.
        settings: its settings.
        learned: the inputs that a gradient learns from, by task; None where none does.
    """
    space, start = problem.space, settings["start"]
    recipe = Path(start) if isinstance(start, str) else None
    return {
        **contents(problem, settings),
        "items": {task: digest_items(items) for task, items in problem.items["search"].items()},
        "space": {
            **settings["space"],
            "coordinates": list(space.names),
            "box": digest([space.low.tolist(), space.high.tolist()]),
        },
        "searcher": settings["searcher"],
        "objective": {"metric": settings["fitness"]["metric"], **settings["objective"]},
        "sample": [settings["fitness"]["items"], settings["fitness"]["rotate"]],
        **(
            {"loss": [settings["loss"], {task: digest_items(items) for task, items in learned.items()}]}
            if learned
            else {}
        ),
        "start": f"recipe {digest(recipe.read_text(encoding='utf-8'))}"
        if recipe is not None and recipe.is_file()
        else start,
        "seed": settings["seed"],
    }


def circumstances(problem: Problem) -> dict[str, Any]:
    """Return what an outcome depends on beside contents: this version, the kind of machine, and the device."""
    device = next(problem.live.model.parameters()).device
    return {"evomerge": __version__, "fingerprint": {**fingerprint(), "device": str(device)}}


def digest(value: Any) -> str:
    """Return a short hash of plain containers."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def digest_items(items: Iterable[Item]) -> str:
    """Return a short hash of items in their order; their ids are hashes of their content."""
    return digest([item.id for item in items])


def _files(directory: Path) -> str:
    """Return a hash of all in a model directory that decides what a model is given to read, and how it reads it.

    At its top that is what settings and vocabularies usually end in, whatever it is; and everything else that
    transformers may open beside weights, such as `source.spm`, `vocab.bpe` or a folder of chat templates. A model in
    memory has no files.
    """
    if not directory.is_dir():
        return digest([])
    usual = {
        path.name
        for path in directory.iterdir()
        if path.suffix in (".json", ".txt", ".model", ".jinja") and "index" not in path.name and path.is_file()
    }
    names = sorted(usual | set(inputs_of(directory)))
    return digest([[name, hashlib.sha256((directory / name).read_bytes()).hexdigest()] for name in names])
