"""`fitness.worth=true`: the winner of a search beside base, every expert and their ensemble, once the search has ended.

In: a run that has ended, and what scores. Out: `worth.json` in its directory (`beside.py`). Scores of winner and base
are remembered from the report, so the experts are what it costs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from evomerge.common.limits import TimeLimit
from evomerge.common.progress import Progress
from evomerge.fitness.capabilities import Probable
from evomerge.fitness.items import HELD_OUT
from evomerge.problem import Problem
from evomerge.runs.beside import is_whole, keep_worth
from evomerge.runs.directory import open_run
from evomerge.selection.evaluation import evaluate
from evomerge.selection.named import Model
from evomerge.selection.workers import Workers
from evomerge.selection.worth import BASE, ENSEMBLE, WINNER, check_names


def wants_worth(settings: Mapping[str, Any]) -> bool:
    """Whether the settings of a search ask for it; those of earlier versions do not."""
    return bool(settings["fitness"].get("worth"))


def lacks_worth(settings: Mapping[str, Any], directory: Path) -> bool:
    """Whether a run that has ended lacks what its settings ask for."""
    return wants_worth(settings) and not is_whole(open_run(directory))


def check_weighable(settings: Mapping[str, Any], problem: Problem) -> None:
    """Refuse, before anything is scored, experts that could not be told from the winner or the base.

    Raises:
        ConfigError: the settings ask for it, and there is such an expert.
    """
    if wants_worth(settings):
        check_names(problem.sources.experts, "fitness.worth=true")


def parents_of(problem: Problem) -> dict[str, Model]:
    """Return base, every expert, and their ensemble where the fitness gives probabilities, by name."""
    ensemble = {ENSEMBLE: Model("ensemble")} if isinstance(problem.fitness, Probable) else {}
    return {BASE: Model("base"), **{name: Model("expert", name) for name in problem.sources.experts}, **ensemble}


def items_of_worth(problem: Problem, sizes: Mapping[str, int]) -> int:
    """Return on how many items models are scored for it, beyond those of the report itself.

    Args:
        problem: what is searched.
        sizes: the items of each split.
    """
    count = len(problem.sources.experts)
    items = sizes["report"] + sizes.get(HELD_OUT, 0)
    return items * (2 * count if isinstance(problem.fitness, Probable) else count)


def add_worth(
    directory: Path,
    problem: Problem,
    reporter: Progress,
    limit: TimeLimit,
    workers: Workers | None,
    stopping: Callable[[], bool],
) -> None:
    """Score the winner of a run beside its parents, and keep that.

    Args:
        directory: of the run, which has ended.
        problem: what was searched.
        reporter: tells the user what goes on.
        limit: of the time of a candidate.
        workers: score in place of this process; None where it scores.
        stopping: whether somebody has asked to stop.

    Raises:
        Stopped: it was asked to stop; what was scored is remembered.
    """
    problem.become(None)
    models = {WINNER: Model("recipe", directory / "recipe.yaml"), **parents_of(problem)}
    splits = [split for split in ("report", HELD_OUT) if split in problem.items]
    found = [evaluate(problem, models, split, reporter, limit, workers, stopping) for split in splits]
    errors = [each for result in found for each in result.errors.items()]
    for name, error in errors:
        reporter.say(f"warning: what the winner is worth beside its parents is not known: {name} has no score: {error}")
    if errors:
        reporter.say("nothing of it is kept: the same command tries again")
    else:
        keep_worth(open_run(directory), *found)
