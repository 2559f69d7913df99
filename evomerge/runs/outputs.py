"""What a run leaves behind: recipe, mergekit's YAML, heads, summary, timings, and the table that people see.

In: the parts of a search and what the selection found. Out: the files of the run directory. All of it can be made
again from the trial log.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import __version__
from evomerge.common.digests import digest
from evomerge.common.errors import EvomergeError, LogError
from evomerge.common.files import write_atomically
from evomerge.common.machine import fingerprint
from evomerge.common.progress import Progress
from evomerge.fitness.base import negated, title
from evomerge.fitness.capabilities import measures
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.objectives import KNEE
from evomerge.models.buffers import RECALIBRATE
from evomerge.problem import Problem
from evomerge.recipes.buffers import keep_buffers
from evomerge.recipes.handover import keep_heads, make_recipe, mergekit_yaml
from evomerge.runs.beside import WORTH, read_worth
from evomerge.runs.build import baseline_name
from evomerge.runs.directory import open_run, read_summary, read_timings
from evomerge.runs.earlier import after_it_ended, identity_today
from evomerge.runs.fronts import front_lines, point_scores
from evomerge.runs.objectives import choose_of, sure_of
from evomerge.runs.responses import responses_cost
from evomerge.runs.starts import digests_of
from evomerge.runs.table import gain_of, starts_of, tables_of
from evomerge.search.evaluators.serial import Timing
from evomerge.search.evaluators.splits import make_subsets
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.selection.choosing import Selection
from evomerge.selection.doubts import of_search, of_selection
from evomerge.selection.forgetting import doubts_of
from evomerge.selection.limits import Limits
from evomerge.selection.marks import marks_of
from evomerge.selection.noise import Noise, noise_of
from evomerge.selection.raced import raced
from evomerge.selection.summary import Summary
from evomerge.selection.trades import Trades, trades_of
from evomerge.trials import Batch, StopReason, finite

VERSIONS = ("python", "torch", "numpy", "cma", "optuna")


def summarise(
    directory: Path,
    problem: Problem,
    found: Selection,
    log: TrialLog,
    reason: StopReason,
    sizes: Mapping[str, int],
    run: str | None,
    logged: Mapping[str, int],
    remembered: int = 0,
    files: Mapping[str, str] | None = None,
) -> Summary:
    """Return what is known of a search at its end.

    Args:
        directory: the run directory.
        problem: what is searched.
        found: what the selection found.
        log: the trial log.
        reason: why the search ended.
        sizes: how many items of each split were used.
        run: what `run_digest` says of the run.
        logged: the warnings in the log file, and how often each came.
        remembered: how many item evaluations were taken from other searches.
        files: hashes of the files among its baselines, by path.
    """
    machine, batches, subsets = fingerprint(), open_run(directory).batches, make_subsets(problem)
    return Summary(
        report=found.report,
        paired=found.paired,
        alike=found.alike,
        metric=found.metric,
        select=found.select,
        items=sizes,
        measures=_measures(problem, found.metric, "report"),
        stop=reason.name.lower(),
        trials=log.trials,
        failed=len(log.errors),
        run=run,
        marks=_marks(problem, found.limits, found.select.constant),
        warnings=problem.warnings,
        doubts=[
            *of_search(batches),
            *of_selection(found.select, found.alike),
            *doubts_of(found.forgetting),
            *(found.limits.doubts if found.limits else ()),
            *(found.front.doubts if found.front else ()),
        ],
        seconds=_seconds(directory / "timings.jsonl"),
        versions={"evomerge": __version__, **{name: str(machine[name]) for name in VERSIONS}},
        bounds={variable.name: [variable.low, variable.high] for variable in problem.space.variables},
        logged=logged,
        rescored=found.rescored,
        held_out=found.held_out and replace(found.held_out, measures=_measures(problem, found.metric, HELD_OUT)),
        forgetting=found.forgetting,
        noise=_noise(problem, batches),
        raced=raced(batches),
        responses=responses_cost(problem),
        remembered=remembered,
        limits=found.limits,
        front=found.front and replace(found.front, trades=_trades(problem, batches)),
        chosen={split: digest(subset(0)) for split, subset in subsets.items() if split != "search"},
        files={baseline_name(path): said for path, said in (files or {}).items()},
    )


def _trades(problem: Problem, batches: Sequence[Batch]) -> Trades | None:
    """Return how the values of a search went together, in its own metrics."""
    return trades_of(batches, problem.goal.values(problem.items["search"], problem.goal.metric))


def _noise(problem: Problem, batches: Sequence[Batch]) -> Noise | None:
    """Return the noise of a search whose values are means over items."""
    goal, sizes = problem.goal, {task: len(items) for task, items in problem.items["search"].items()}
    others = goal.normalised or goal.forget or goal.several or goal.constraints or problem.sampling.estimate
    if goal.aggregate != "mean" or others:
        return None
    return noise_of(batches, goal.metric, goal.weights, sizes)


def _measures(problem: Problem, metric: str, split: str) -> Mapping[str, str]:
    return measures(problem.fitness, metric, problem.items[split])


def write_outputs(
    directory: Path,
    problem: Problem,
    coefficients: Mapping[str, np.ndarray],
    summary: Summary,
    reporter: Progress,
) -> None:
    """Write the recipe, its mergekit form, the heads and the summary.

    Args:
        directory: the run directory.
        problem: what is searched.
        coefficients: of the winner, variable -> float64 (G, K).
        summary: what is known of the search.
        reporter: is told where mergekit cannot express the recipe.
    """
    heads = keep_heads(problem, directory)
    if problem.buffers == RECALIBRATE:
        problem.merger.apply(coefficients)
    buffers = keep_buffers(problem, directory)
    recipe = make_recipe(problem, coefficients, _scores(summary, problem.merger.forms), heads, buffers)
    write_atomically(directory / "recipe.yaml", recipe.to_yaml())
    try:
        write_atomically(directory / "mergekit.yaml", mergekit_yaml(problem, recipe))
    except EvomergeError as error:
        (directory / "mergekit.yaml").unlink(missing_ok=True)
        reporter.say(f"No mergekit.yaml: {error}")
    write_atomically(directory / "summary.json", summary.to_json())


def _scores(summary: Summary, forms: Collection[str]) -> dict[str, Any]:
    """Return what the recipe says of its worth: which metric, on which items, and how the winner was found and built.

    Args:
        summary: what is known of the search.
        forms: see `Merger.forms`.
    """
    told = dict(summary.measures)
    how = {
        "metric": negated(title(summary.metric, told), summary.forgetting.tasks if summary.forgetting else ()),
        **({"measures": told} if len(set(told.values())) > 1 else {}),
        "split": "report",
        "items": summary.items["report"],
        "trials": summary.trials,
        "finalist": summary.select.winner,
        "kernels": ", ".join(sorted(forms)),
    }
    rows = {name: asdict(row) for name, row in {**summary.report, **summary.paired}.items()}
    if (again := summary.rescored) and again.score and again.paired:
        name = f"winner_in_{again.dtype}"
        rows |= {name: asdict(again.score), f"{name}_vs_winner": asdict(again.paired)}
    apart = {"held_out": summary.held_out, "forgetting": summary.forgetting}
    more = {name: asdict(each) for name, each in apart.items() if each}
    more |= {"limits": summary.limits.to_plain()} if summary.limits else {}
    more |= {"front": point_scores(summary, summary.front.winner)} if summary.front else {}
    return finite({**how, **rows, **more, **({"marks": summary.marks} if summary.marks else {})})


def _marks(problem: Problem, limits: Limits | None, constant: str) -> dict[str, list[str]]:
    """Return what is otherwise in the rows of the report than their names say.

    Args:
        problem: what is searched.
        limits: what the winner makes of constraints.
        constant: the best one.
    """
    marks, rows, own = marks_of(problem), problem.negated, []
    if rows:
        own.append(f"it takes away {', '.join(rows)} alone, with the weight {constant}; all others have 0")
    if not problem.same(problem.within(float(constant)), problem.constant(float(constant))):
        weights = f"{constant} for {', '.join(rows)} and 0 for all others, also" if rows else "the same weight"
        kept = f"has {weights} where the space holds other weights (space.frozen, space.only, ...)"
        own.append(f"it is a merge that this space does not have: it {kept}; the nearest one is a finalist")
    merged = marks.of_merge()
    winner = [*merged, *(limits.marks if limits else ())]
    rows = {"base": merged, "experts": marks.of_experts(), "best_constant": [*own, *merged], "winner": winner}
    return {name: texts for name, texts in rows.items() if texts}


def finished(directory: Path, run: str | None, settings: Mapping[str, Any]) -> Summary | None:
    """Return the summary of a run that has nothing left to do under these settings, or None.

    Args:
        directory: the run directory.
        run: what `run_digest` says of it now.
        settings: of the search; a budget that is lower than what was spent takes nothing back. A run that ended by its
            hours has something left, since another call has hours of its own.
    """
    try:
        summary = read_summary(directory)
    except LogError:  # it is written again
        return None
    if summary is None or run is None or summary.run != run:
        return None
    more = summary.stop == "time" or (summary.stop == "budget" and not settings["budget_items"])
    return None if more and summary.trials < settings["budget"] else summary


def run_digest(directory: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], ids: Any) -> str | None:
    """Return a hash of all that a run's summary depends on: what is searched, how much, on which items it is judged,
    and the log.
    """
    log = directory / "trials.jsonl"
    if not log.exists():
        return None
    logged = next(read_log(log), {}).get("identity")  # an earlier version may have said the same in other words
    now = after_it_ended(json.loads(json.dumps(identity)))
    same = logged is not None and after_it_ended(identity_today(logged)) == now
    chosen = [logged if same else identity, settings["budget_items"], settings["fitness"]["report_metric"], ids]
    chosen += [_with_content(given)] if (given := settings.get("baselines")) else []
    chosen += [{"choose": given}] if (given := choose_of(settings)) != KNEE else []
    chosen += [{"sure": given}] if (given := sure_of(settings)) else []
    return digest([chosen, hashlib.sha256(log.read_bytes()).hexdigest()])


def _with_content(baselines: Any) -> Any:
    """Return baselines with what the files among them say."""
    if not isinstance(baselines, list):
        return baselines
    said = digests_of(baselines)
    return [[start, said[start]] if isinstance(start, str) and start in said else start for start in baselines]


def show(summary: Summary, directory: Path, reporter: Progress) -> None:
    """Print the table of the report split, that of tasks held out, what the winner is worth beside its parents if that
    was scored, the paired difference, and where things are.
    """
    beside = read_worth(open_run(directory)) if (directory / WORTH).is_file() else None
    for table in tables_of(summary, beside):
        reporter.table(table.title, table.columns, table.rows, table.notes)
    reporter.say(gain_of(summary))
    for line in [*front_lines(summary), *starts_of(summary)]:
        reporter.say(line)
    if summary.noise:
        reporter.say(f"on the search items {summary.noise.said}")
    if summary.remembered:
        reporter.say(f"{summary.remembered:,} item evaluations were remembered from other searches, and cost nothing")
    if summary.failed:
        reporter.say(f"{summary.failed} of {summary.trials} candidates failed; their errors stand in trials.jsonl")
    if summary.raced:
        reporter.say(summary.raced.sentence)
    for doubt in summary.doubts:
        reporter.say(f"note: {doubt}")
    reporter.say(f"recipe, scores and all trials: {os.path.relpath(directory)}")


def recorder(path: Path) -> Callable[[Timing], None]:
    """Return what writes the time of each candidate to a file, a line each."""

    def record(timing: Timing) -> None:
        with path.open("a", encoding="utf-8") as file:
            file.write(
                json.dumps({name: round(v, 6) if isinstance(v, float) else v for name, v in asdict(timing).items()})
                + "\n"
            )

    return record


def _seconds(path: Path) -> dict[str, float]:
    """Sum up where the time went."""
    rows = read_timings(path)
    merge, forward, total = (sum(row[name] for row in rows) for name in ("merge", "forward", "total"))
    return {"merge": round(merge, 3), "forward": round(forward, 3), "other": round(total - merge - forward, 3)}
