"""What a run leaves behind: recipe, mergekit's YAML, heads, summary, timings, and the table that people see.

In: the parts of a search and what the selection found. Out: the files of the run directory. All of it can be made
again from the trial log.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from evomerge import __version__
from evomerge.common.errors import EvomergeError
from evomerge.common.files import write_atomically
from evomerge.common.machine import fingerprint
from evomerge.common.names import mark_lines, marked
from evomerge.common.progress import Progress
from evomerge.fitness.base import heading, title
from evomerge.problem import Assembly
from evomerge.recipes.handover import keep_heads, make_recipe, mergekit_yaml
from evomerge.runs.directory import open_run, read_timings
from evomerge.runs.identity import digest
from evomerge.search.evaluators.serial import Timing
from evomerge.selection.doubts import of_search, of_selection
from evomerge.selection.marks import marks_of
from evomerge.trials import finite

LABELS = {
    "base": "base",
    "experts": "experts, each on its own task",
    "best_constant": "best constant",
    "winner": "winner",
}
VERSIONS = ("python", "torch", "numpy", "cma", "optuna")


def write_outputs(
    directory: Path, assembly: Assembly, settings: Mapping[str, Any], result: dict[str, Any], reporter: Progress
) -> dict[str, Any]:
    """Write the recipe, its mergekit form, the heads and the summary.

    Args:
        directory: the run directory.
        assembly: the parts of the search.
        settings: of the search.
        result: what `select` returned, and more for the summary.
        reporter: is told where mergekit cannot express the recipe.

    Returns:
        The summary.
    """
    if marks := _marks(assembly, settings):
        result["marks"] = marks
    heads = keep_heads(assembly, directory)
    recipe = make_recipe(assembly, settings, result.pop("coefficients"), _scores(result), heads)
    write_atomically(directory / "recipe.yaml", recipe.to_yaml())
    try:
        write_atomically(directory / "mergekit.yaml", mergekit_yaml(assembly, recipe))
    except EvomergeError as error:
        (directory / "mergekit.yaml").unlink(missing_ok=True)
        reporter.say(f"No mergekit.yaml: {error}")
    machine = fingerprint()
    doubts = [*of_search(open_run(directory).batches), *of_selection(result)]
    summary = {
        **result,
        "warnings": assembly.warnings,
        "doubts": doubts,
        "seconds": _seconds(directory / "timings.jsonl"),
        "versions": {"evomerge": __version__, **{name: machine[name] for name in VERSIONS}},
    }
    write_atomically(directory / "summary.json", json.dumps(finite(summary), indent=1, allow_nan=False) + "\n")
    return summary


def _scores(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the recipe says of its worth: which metric, on which items, and how the winner was found."""
    how = {
        "metric": title(result["metric"], told := result["measures"]),
        **({"measures": told} if len(set(told.values())) > 1 else {}),
        "split": "report",
        "items": result["items"]["report"],
        "trials": result["trials"],
    }
    marks = {"marks": result["marks"]} if "marks" in result else {}
    return finite({**how, "finalist": result["select"]["winner"], **result["report"], **result["paired"], **marks})


def _marks(assembly: Assembly, settings: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return what is otherwise in the rows of the report than their names say."""
    marks = marks_of(assembly.sources, settings["fitness"], assembly.vectors)
    merged = marks.of_merge()
    rows = {"base": merged, "experts": marks.of_experts(), "best_constant": merged, "winner": merged}
    return {name: texts for name, texts in rows.items() if texts}


def finished(directory: Path, run: str | None, settings: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the summary of a run that has nothing left to do under these settings, or None.

    Args:
        directory: the run directory.
        run: what `run_digest` says of it now.
        settings: of the search; a budget that is lower than what was spent takes nothing back.
    """
    try:
        result = json.loads((directory / "summary.json").read_text(encoding="utf-8"))
        spent = result["stop"] != "budget" or result["trials"] >= settings["budget"] or settings["budget_items"]
        return result if run is not None and result["run"] == run and spent else None
    except (FileNotFoundError, ValueError, KeyError):
        return None


def run_digest(directory: Path, identity: Mapping[str, Any], settings: Mapping[str, Any], ids: Any) -> str | None:
    """Return a hash of all that a run's summary depends on: what is searched, how much, on which items it is judged,
    and the log.
    """
    log = directory / "trials.jsonl"
    if not log.exists():
        return None
    chosen = [identity, settings["budget_items"], settings["fitness"]["report_metric"], ids]
    return digest([chosen, hashlib.sha256(log.read_bytes()).hexdigest()])


def show(result: Mapping[str, Any], directory: Path, reporter: Progress) -> None:
    """Print the table of the report split, the paired difference, and where things are."""
    report, marks = result["report"], result.get("marks", {})
    tasks = list(report["base"]["tasks"])
    rows = [
        [
            marked(name, marks, LABELS[name]),
            "" if row["mean"] is None else f"{row['mean']:.4f} ± {_number(row['se'])}",
            *("" if (score := row["tasks"].get(task)) is None else f"{score:.3f}" for task in tasks),
        ]
        for name, row in report.items()
    ]
    told = result.get("measures", {})  # runs of earlier versions did not keep them
    name = title(result["metric"], told)
    where = f"{result['items']['report']} report items that the search never saw"
    columns = ["", "mean ± se", *(heading(task, told) for task in tasks)]
    reporter.table(f"{name} on {where}; higher is better", columns, rows, mark_lines(marks, LABELS))
    difference = result["paired"]["winner_vs_best_constant"]
    diff = "unknown" if difference["diff"] is None else f"{difference['diff']:+.4f} ± {_number(difference['se'])}"
    reporter.say(f"winner - best constant ({result['select']['constant']}): {diff} (paired)")
    if result["failed"]:
        reporter.say(f"{result['failed']} of {result['trials']} candidates failed; their errors stand in trials.jsonl")
    for doubt in result.get("doubts", ()):  # summaries of earlier versions have none
        reporter.say(f"note: {doubt}")
    reporter.say(f"recipe, scores and all trials: {os.path.relpath(directory)}")


def _number(value: float | None) -> str:
    return "unknown" if value is None or math.isnan(value) else f"{value:.4f}"


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
