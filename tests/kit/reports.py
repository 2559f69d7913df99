"""Run directories made by hand, for tests of reports: any names, any state, without a model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from evomerge.recipes.recipe import Recipe, Source
from evomerge.runs.config import plain
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.trials import Batch, Trial
from tests.kit.helpers import compose

TASKS = ("reviews", "news")
EXPERTS = ("reviews", "news")
GROUPS = ("embeddings", "encoder.layer.0", "encoder.layer.1")
VERSIONS = {"evomerge": "0.1.0", "python": "3.11.7"}


def coordinates_of(groups: Sequence[str] = GROUPS, experts: Sequence[str] = EXPERTS) -> list[str]:
    """Those of a space of layers whose embeddings have no task vector."""
    return [f"weight/{group}/{expert}" for group in groups if group != "embeddings" for expert in experts]


def write_run(
    path: Path,
    *overrides: str,
    batches: int = 3,
    size: int = 4,
    tasks: Sequence[str] = TASKS,
    experts: Sequence[str] = EXPERTS,
    errors: Mapping[int, str] | None = None,
    steps: int = 0,
    coordinates: Sequence[str] | None = None,
    items: int = 20,
    score: Callable[[int], float] | None = None,
    several: bool = False,
) -> Path:
    """Write a run that was stopped before its winner was chosen: config, log and timings.

    Args:
        path: the run directory.
        overrides: settings.
        batches: of values; the first one is that of a warm start. Without any, the first one has no trial yet.
        size: of a batch.
        tasks: their names.
        experts: theirs.
        errors: number of a trial -> its error.
        steps: of a gradient, after the batches.
        coordinates: of the space.
        items: of each task that a trial is scored on.
        score: of a trial's number -> what every item of it gets, and minus the loss of a step.
        several: whether every task is a value of its own.
    """
    config = compose("model=pico", *overrides)
    names = list(coordinates if coordinates is not None else coordinates_of(experts=experts))
    identity = {
        "base": "b" * 64,
        "experts": [[expert, "e" * 64] for expert in experts],
        "heads": {task: "d" * 64 for task in tasks},
        "space": {**plain(config)["space"], "coordinates": names},
    }
    rng = np.random.default_rng(0)
    path.mkdir(parents=True)
    with TrialLog(path / "trials.jsonl", identity, {"cpu": "any"}) as log:
        number = 0
        for index in range(batches + steps):
            gradient = index >= batches
            points = rng.random((1 if gradient else size, len(names)))
            if index == 0:
                points = np.repeat(np.linspace(0.2, 0.8, size)[:, None], len(names), axis=1)
            batch = log.begin(log.ask(Batch(index, points, gradient=gradient)))
            for i in range(len(points)):
                number += 1
                trial = _trial(index, i, number, tasks, items, gradient, (errors or {}).get(number), len(names))
                trial = _scored(trial, score(number)) if score and trial.values else trial
                log.append(_each(trial) if several and trial.values else trial)
            log.tell(batch)
        if batches + steps == 0:
            log.begin(log.ask(Batch(0, rng.random((size, len(names))))))
    (path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    row = {"merge": 0.1, "forward": 0.8, "total": 1.0}
    (path / "timings.jsonl").write_text("".join(json.dumps({"batch": 0, "index": i, **row}) + "\n" for i in range(4)))
    return path


def _trial(
    batch: int, index: int, number: int, tasks: Sequence[str], items: int, gradient: bool, error: str | None, dim: int
) -> Trial:
    ids = {task: [f"{task}-{i}" for i in range(items)] for task in tasks}
    if error is not None:
        return Trial(batch, index, "failed", None, items=ids, error=error)
    if gradient:
        loss = 2.0 / number
        scores = {task: {"cross_entropy": loss} for task in tasks}
        return Trial(batch, index, "ok", (-loss,), scores=scores, items=ids, gradient=[0.1] * dim)
    right = {task: [float(i % 10 < 3 + (number * 7 + t) % 5) for i in range(items)] for t, task in enumerate(tasks)}
    results = {task: {"accuracy": row, "log_probability": [x - 1 for x in row]} for task, row in right.items()}
    scores = {task: {name: float(np.mean(v)) for name, v in rows.items()} for task, rows in results.items()}
    value = float(np.mean([row["log_probability"] for row in scores.values()]))
    return Trial(batch, index, "ok", (value,), scores=scores, items=ids, results=results)


def _scored(trial: Trial, score: float) -> Trial:
    """The same trial with one result everywhere."""
    results = {task: {name: [score] * len(row) for name, row in rows.items()} for task, rows in trial.results.items()}
    scores = {task: dict.fromkeys(row, score) for task, row in trial.scores.items()}
    return replace(trial, values=(score,), scores=scores, results=results)


def _each(trial: Trial) -> Trial:
    """The same trial with a value for each task."""
    return replace(trial, values=tuple(row["accuracy"] or 0.0 for row in trial.scores.values()))


def finish(path: Path, diff: float = 0.03, se: float | None = 0.01, **changes: Any) -> Path:
    """Choose a winner for a run by hand: summary and recipe.

    Args:
        path: the run directory.
        diff: winner minus best constant on the report split.
        se: its standard error.
        changes: of the summary's entries.
    """
    header = json.loads((path / "trials.jsonl").read_text().splitlines()[0])["identity"]
    tasks, experts = list(header["heads"]), [name for name, _ in header["experts"]]

    def row(mean: float) -> dict[str, Any]:
        scores = {task: mean + (0.05 if i % 2 else -0.05) for i, task in enumerate(tasks)}
        return {"mean": mean, "se": 0.008, "tasks": scores, "tasks_se": dict.fromkeys(tasks, 0.012)}

    scored = [line for line in read_log(path / "trials.jsonl") if line["kind"] == "trial" and line["values"]]
    later = [line for line in scored if line["batch"] > 0 and "gradient" not in line]
    top = max(later, key=lambda line: line["values"][0], default=None)
    best = top and [top["batch"], top["index"]]
    trials = sum('"kind":"trial"' in line for line in (path / "trials.jsonl").read_text().splitlines())
    difference = {"diff": diff, "se": se, "tasks": dict.fromkeys(tasks, diff), "tasks_se": dict.fromkeys(tasks, se)}
    summary = {
        "report": {"base": row(0.4), "experts": row(0.8), "best_constant": row(0.6), "winner": row(0.6 + diff)},
        "paired": {"winner_vs_best_constant": difference},
        "metric": "accuracy",
        "select": {
            "winner": "best",
            "finalists": {"mean": 0.63, "best": 0.64, "best_2": 0.62, "constant": 0.6, "constant 0.4": 0.61},
            "constant": "0.4",
            "constants": {"0.2": 0.55, "0.4": 0.61, "0.6": 0.58},
            "trials": {"mean": None, "best": best, "best_2": None, "constant": None, "constant 0.4": None},
        },
        "items": {"search": 40, "select": 400, "report": 600},
        "stop": "budget",
        "trials": trials,
        "failed": 0,
        "run": "0" * 16,
        "seconds": {"merge": 0.4, "forward": 3.2, "other": 0.4},
        "versions": VERSIONS,
        **changes,
    }
    (path / "summary.json").write_text(json.dumps(summary))
    source = Source("somewhere", "0" * 64)
    coefficients = {
        group: {e: 0.0 if group == "embeddings" else 0.2 + 0.1 * g + 0.3 * k for k, e in enumerate(experts)}
        for g, group in enumerate(GROUPS)
    }
    recipe = Recipe(source, dict.fromkeys(experts, source), {"name": "linear"}, "layer", {"weight": coefficients})
    (path / "recipe.yaml").write_text(recipe.to_yaml())
    return path


def write_workers(path: Path, workers: int = 3, units: int = 4, why: str = "it was killed") -> Path:
    """Write what workers of a run did: ten seconds, a quarter of each unit a merge; the second one dies at the end.

    Args:
        path: the run directory.
        workers: how many.
        units: of each worker, in the first eight seconds.
        why: the second worker is retired.
    """
    rows: list[dict[str, Any]] = [{"kind": "session", "at": 0.0, "workers": workers}, {"kind": "asks", "at": 0.0}]
    for worker in range(workers):
        rows.append({"kind": "started", "worker": worker, "at": 0.0})
        for i in range(units):
            start, length = 8 * i / units, 8 / units
            rows.append({"kind": "begun", "worker": worker, "at": start})
            about = {"merge": length / 4, "forward": 3 * length / 4, "items": 10}
            rows.append({"kind": "ended", "worker": worker, "at": start + length, **about})
    rows += [{"kind": kind, "worker": 1, "at": 8.0, "why": why} for kind in ("lost", "retired")]
    rows.append({"kind": "told", "at": 10.0})
    (path / "workers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
