"""One search from its settings to its run directory.

In: a typed configuration and a directory. Out, in that directory: `trials.jsonl` (the checkpoint), `timings.jsonl`,
`config.yaml`, `recipe.yaml`, `mergekit.yaml`, `heads/` and `summary.json`. Run again it replays the log and goes on;
a finished run is only shown.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from safetensors.torch import save_file

import evomerge
from evomerge.assembly import Assembly, assemble, describe, make_searcher
from evomerge.config import SearchConfig, check
from evomerge.errors import ConfigError, EvomergeError
from evomerge.evaluator import Scorer, SerialEvaluator, Timing
from evomerge.fingerprint import fingerprint
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.items import Item
from evomerge.journal import read_log
from evomerge.mergekit import to_mergekit
from evomerge.preflight import preflight
from evomerge.progress import Reporter
from evomerge.recipe import Recipe, Source
from evomerge.search import search
from evomerge.searchers.base import Elite
from evomerge.selection import score_experts, select
from evomerge.stopping import Budget, Interrupt, StopReason
from evomerge.trials import TrialLog

logger = logging.getLogger(__name__)


def run_search(config: SearchConfig, directory: Path, reporter: Reporter) -> dict[str, Any] | None:
    """Run one search, or go on with it.

    Args:
        config: its settings.
        directory: its run directory.
        reporter: tells the user what goes on.

    Returns:
        The summary, or None when it was asked to stop before the end.

    Raises:
        EvomergeError: something is wrong with settings, sources or log; nothing of the run is lost.
    """
    settings: dict[str, Any] = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)  # pyright: ignore[reportAssignmentType, reportArgumentType]
    check(settings)
    log_path = directory / "trials.jsonl"
    if (done := finished(directory, settings)) is not None:
        reporter.say(f"This search is complete: {os.path.relpath(directory)}. Raise `budget` to go on with it.")
        show(done, reporter)
        return done
    with reporter.bars():
        assembly = assemble(config, reporter)
    searcher = make_searcher(settings, assembly.space, assembly.vectors.parameters)
    subset = Subset(assembly.items["search"], settings["fitness"]["items"], config.seed, settings["fitness"]["rotate"])
    scorers = {split: scorer(assembly, items) for split, items in assembly.items.items()}  # bad items are refused now
    score = scorers["search"]
    objective = make_objective(assembly, settings, score, subset)
    preflight(assembly, config, subset, score, objective, reporter)

    with Interrupt() as interrupt, TrialLog(log_path, describe(assembly, settings), fingerprint()) as log:
        _write(directory / "config.yaml", OmegaConf.to_yaml(config, resolve=True))
        evaluate = SerialEvaluator(
            assembly.space, assembly.merger, score, subset, objective, _recorder(directory / "timings.jsonl")
        )
        past = [line for line in read_log(log_path) if line["kind"] == "trial"]
        budget = Budget(config.budget, config.budget_items, subset.size, interrupt)
        with reporter.searching(interrupt.wrap(evaluate), past, config.budget) as watched:
            reason = search(searcher, watched, log, budget)
        reporter.say(reason.value)
        if reason is StopReason.INTERRUPTED:
            return None
        incumbents = searcher.incumbents() | unfinished(log)
        if not incumbents:
            raise EvomergeError(
                f"All {log.trials} candidates failed, so there is no winner. The errors stand in {log_path}."
            )
        result = select(assembly, settings, incumbents, scorers, Path(config.model.cache), reporter)
        result |= {
            "stop": reason.name.lower(),
            "trials": log.trials,
            "items": {"search": subset.size, **result["items"]},
        }
    return finish(directory, assembly, settings, result, reporter)


def scorer(assembly: Assembly, items: Mapping[str, Sequence[Item]]) -> Scorer:
    """Prepare the items of a split, once."""
    prepared = assembly.fitness.prepare(assembly.live.tokenizer, items)
    return Scorer(assembly.live.model, assembly.fitness, prepared)


def unfinished(log: TrialLog) -> dict[str, np.ndarray]:
    """Return the best point of a last generation that the budget cut short: the searcher was never told of it, but it
    was paid for.
    """
    elite = Elite(1)
    if log.batch is not None and not log.batch.complete:
        elite.update(log.batch)
    return {"unfinished": elite.points()["best"]} if elite.points() else {}


def make_objective(assembly: Assembly, settings: Mapping[str, Any], score: Scorer, subset: Subset) -> Objective:
    """Build the objective; with `normalised`, base and experts are scored on the items of the first generation."""
    given, metric = settings["objective"], settings["fitness"]["metric"]
    ends = None
    if given["normalised"]:
        if missing := [task for task in assembly.sources.tasks if task not in assembly.experts]:
            raise ConfigError(
                f"objective.normalised needs the expert of every task; {missing[0]} has none: write "
                f"fitness.tasks.{missing[0]}.expert=..."
            )
        ids = subset(0)
        base = score(ids).scores()
        best = score_experts(assembly, score, ids).scores()
        ends = {task: (base[task][metric], best[task][metric]) for task in ids}
    return Objective(metric, given["aggregate"], given["weights"], ends)


def finish(
    directory: Path, assembly: Assembly, settings: Mapping[str, Any], result: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    """Write the recipe, its mergekit form, the heads and the summary, and show the table."""
    coefficients = result.pop("coefficients")
    heads = keep_heads(assembly, directory)
    sources, vectors, space = assembly.sources, assembly.vectors, assembly.space
    recipe = Recipe(
        base=Source(str(sources.base), vectors.base.sha256),
        experts={name: Source(str(path), vectors.experts[name].sha256) for name, path in sources.experts.items()},
        method={
            "name": assembly.method.name,
            **{name: value for name, value in settings["method"].items() if name != "_target_"},
        },
        granularity=settings["space"]["granularity"],
        coefficients={
            variable: {
                group.name: dict(zip(space.experts, row, strict=True))
                for group, row in zip(space.groups, rows, strict=True)
            }
            for variable, rows in coefficients.items()
        },
        scores=result["report"],
        heads=heads,
        version=evomerge.__version__,
    )
    _write(directory / "recipe.yaml", recipe.to_yaml())
    try:
        dtype = str(next(assembly.live.model.parameters()).dtype).removeprefix("torch.")
        _write(
            directory / "mergekit.yaml",
            to_mergekit(recipe, vectors.base.keys, vectors.parameters, dtype, vectors.base.extra, assembly.live.tied),
        )
    except EvomergeError as error:
        (directory / "mergekit.yaml").unlink(missing_ok=True)
        reporter.say(f"No mergekit.yaml: {error}")
    result |= {
        "seconds": _seconds(directory / "timings.jsonl"),
        "versions": {
            "evomerge": evomerge.__version__,
            **{name: fingerprint()[name] for name in ("python", "torch", "numpy", "cma", "optuna")},
        },
        "run": _run_digest(directory, settings),
        "directory": str(directory),
    }
    _write(directory / "summary.json", json.dumps(result, indent=1) + "\n")
    show(result, reporter)
    return result


def keep_heads(assembly: Assembly, directory: Path) -> dict[str, str]:
    """Write the head of every task beside the recipe, and return their paths relative to it.

    A frozen head is copied. Of an expert's own head, all float tensors are written that the merge does not have.
    """
    base, heads = assembly.vectors.base, {}
    for name, task in assembly.sources.tasks.items():
        target = directory / "heads" / f"{name}.safetensors"
        if task.head is not None:
            target.parent.mkdir(exist_ok=True)
            shutil.copyfile(task.head, target)
        elif task.expert is not None:
            expert = assembly.vectors.experts[task.expert]
            keys = [*expert.extra, *(expert.keys[parameter] for parameter in base.missing if parameter in expert.keys)]
            tensors = {key: expert.tensors[key].contiguous() for key in keys if expert.tensors[key].is_floating_point()}
            if not tensors:
                continue
            target.parent.mkdir(exist_ok=True)
            save_file(tensors, target, metadata={"expert": task.expert})
        else:
            continue
        heads[name] = str(target.relative_to(directory))
    return heads


def finished(directory: Path, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a run that is complete under these very settings, or None."""
    try:
        result = json.loads((directory / "summary.json").read_text())
        return result if result["run"] == _run_digest(directory, settings) else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def show(result: Mapping[str, Any], reporter: Reporter) -> None:
    """Print the table of the report split, the paired difference, and where things are."""
    report = result["report"]
    tasks = list(report["base"]["tasks"])
    rows = [
        [
            name.replace("_", " "),
            f"{row['mean']:.4f} ± {row['se']:.4f}",
            *(f"{row['tasks'][task]:.3f}" if task in row["tasks"] else "" for task in tasks),
        ]
        for name, row in report.items()
    ]
    title = f"{result['metric']} on {result['items']['report']} report items that the search never saw"
    reporter.table(title, ["", "mean ± se", *tasks], rows)
    difference = result["paired"]["winner_vs_best_constant"]
    reporter.say(
        f"winner - best constant ({result['select']['constant']}): {difference['diff']:+.4f} ± "
        f"{difference['se']:.4f} (paired)"
    )
    reporter.say(f"recipe, mergekit.yaml and all trials: {os.path.relpath(result['directory'])}")


def _recorder(path: Path) -> Any:
    def record(timing: Timing) -> None:
        with path.open("a") as file:
            file.write(
                json.dumps({name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(timing).items()})
                + "\n"
            )

    return record


def _seconds(path: Path) -> dict[str, float]:
    """Sum up where the time went; a line that a kill cut off does not count."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            rows.append(json.loads(line))
        except ValueError:
            continue
    merge, forward, total = (sum(row[name] for row in rows) for name in ("merge", "forward", "total"))
    return {"merge": round(merge, 3), "forward": round(forward, 3), "other": round(total - merge - forward, 3)}


def _run_digest(directory: Path, settings: Mapping[str, Any]) -> str:
    log = (directory / "trials.jsonl").read_bytes()
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode() + log).hexdigest()


def _write(path: Path, text: str) -> None:
    """Write a whole file at once: a reader sees the old one or the new one."""
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
        file.write(text)
    os.chmod(file.name, 0o644)
    os.replace(file.name, path)
