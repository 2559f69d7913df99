"""How much a suite leaves to search: what its best constant coefficient lacks, on select items.

In: a finished suite. Out: what the base, each task's own expert, the best constant and a supervised tensor-wise search
reach, and two differences with paired standard errors. Experts' mean minus best constant is what a search can win at
best. What cross-entropy by gradient wins with a coefficient for each tensor (AdaMerging under supervision: Yang et al.
2024) is what there is to find: it is the search of

    evomerge search model=<suite> space=tensor searcher=gradient loss=cross_entropy

whose last point is taken; so nothing but the constant is chosen on the select items. Everything is kept: the trial log
beside the suite, outcomes in the cache of the search, the result in `room.json`.
"""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir
from rich.console import Console
from rich.table import Table

from evomerge.cli.progress import Reporter
from evomerge.common.errors import LogError, SuiteError
from evomerge.common.files import write_atomically
from evomerge.common.machine import fingerprint
from evomerge.fitness.objectives import Objective
from evomerge.problem import Problem
from evomerge.runs.build import build_problem, find_start, make_searcher
from evomerge.runs.config import CONF, plain, register
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import find_learning
from evomerge.runs.suite import Suite
from evomerge.search.evaluators.mixed import make_evaluators
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.evaluators.steps import Steps
from evomerge.search.log import TrialLog
from evomerge.search.loop import search, watching
from evomerge.search.stopping import Budget, Interrupt
from evomerge.searchers.warm import TRIED_FIRST as FIRST
from evomerge.selection.choosing import CONSTANTS
from evomerge.selection.judge import Judge
from evomerge.selection.racing import choose
from evomerge.selection.statistics import paired, score_of
from suite_builder.show import progress

FORMAT = 2
METRIC = "accuracy"
ENOUGH = 4.0
"""Standard errors that there must be to find: with less, a search that finds half of it proves nothing."""


def find(suite: Suite, steps: int, console: Console) -> dict[str, Any]:
    """Return the room of a suite; measured only if it was not, or was for other experts, or in another way.

    Args:
        suite: the suite.
        steps: of the gradient.
        console: is told what goes on.

    Returns:
        {"scores": {model: {task: accuracy}}, "experts", "tensor": {"diff", "se"} over the best constant, "constant",
        "items"}, and what it was measured of.
    """
    file = suite.path / "room.json"
    about = {"format": FORMAT, "steps": steps, "suite": _sha256(suite.path / "suite.json")}
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        if about.items() <= known.items():
            return known
    except (OSError, ValueError, AttributeError):
        pass  # not there, or damaged
    measured = about | _measure(suite, steps, console)
    write_atomically(file, json.dumps(measured, indent=1) + "\n")
    return measured


def table(room: dict[str, Any]) -> Table:
    """Lay out the accuracies of what `find` gave, with their means in the last row."""
    names = {"base": "base", "experts": "own expert", "constant": f"best constant ({room['constant']:g})"}
    names |= {"tensor": "tensor-wise, supervised"}
    out = Table(title=f"accuracy on {room['items']} select items")
    out.add_column("task")
    for name in names.values():
        out.add_column(name, justify="right")
    scores = [room["scores"][model] for model in names]
    for task in scores[0]:
        out.add_row(task, *(f"{score[task]:.3f}" for score in scores))
    out.add_section()
    out.add_row("mean", *(f"{sum(score.values()) / len(score):.3f}" for score in scores))
    return out


def sentence(room: dict[str, Any]) -> str:
    """Say how much more than the best constant there is."""
    experts, tensor = room["experts"], room["tensor"]
    return (
        f"room above the best constant: experts {experts['diff']:+.4f} ± {experts['se']:.4f}, supervised tensor-wise "
        f"{tensor['diff']:+.4f} ± {tensor['se']:.4f} ({_errors(room):.1f} standard errors)"
    )


def check(room: dict[str, Any]) -> None:
    """Make sure that there is enough to find.

    Raises:
        SuiteError: there is not.
    """
    if _errors(room) < ENOUGH:
        raise SuiteError(
            f"the suite is built, but has too little room: a supervised tensor-wise search gains {_errors(room):.1f} "
            f"standard errors over the best constant, and less than {ENOUGH:g} cannot prove that searching pays. Train "
            f"its experts more unequally (steps and lr of its tasks), and build it anew"
        )


def _errors(room: dict[str, Any]) -> float:
    return room["tensor"]["diff"] / max(room["tensor"]["se"], 1e-9)


def _measure(suite: Suite, steps: int, console: Console) -> dict[str, Any]:
    reporter = Reporter(console)
    settings = _settings(suite, steps)
    with reporter.bars():
        problem = build_problem(settings, reporter)
    log = suite.path / "room" / "trials.jsonl"
    console.print("measuring what a supervised tensor-wise search finds")
    try:
        weights = _search(problem, settings, log, reporter)
    except LogError:  # of other experts, or of another version: it is worth nothing but the minutes that it took
        log.unlink()
        weights = _search(problem, settings, log, reporter)
    scorer = SerialScorer(problem, {"select": live_fitness(problem, problem.items["select"])})
    judge = Judge(problem, scorer, make_subsets(problem), Interrupt())
    low, high = judge.bounds
    constants = {f"{c:g}": judge.constant(c) for c in CONSTANTS if low <= c <= high}
    with progress(console, "scoring constants and experts on select items", None) as advance:
        judge.scored = lambda items: advance()
        best = choose(
            constants,
            lambda name, part: judge.merged(constants[name], "select", part),
            Objective(METRIC),
            judge.ids["select"],
            line=True,
        )
        outcomes = {"base": judge.base("select"), "experts": judge.experts("select")}
        outcomes |= {"constant": best.outcomes[best.name], "tensor": judge.merged(weights, "select")}
    return {
        "constant": float(best.name),
        "items": sum(len(ids) for ids in outcomes["base"].items.values()),
        "scores": {model: dict(score_of(outcome, METRIC).tasks) for model, outcome in outcomes.items()},
        **{model: asdict(paired(outcomes[model], outcomes["constant"], METRIC)) for model in ("experts", "tensor")},
    }


def _settings(suite: Suite, steps: int) -> dict[str, Any]:
    """Return the settings of the command in the module's docstring."""
    chosen = {"model": suite.name, "space": "tensor", "searcher": "gradient", "loss": "cross_entropy"}
    chosen |= {"searcher.steps": steps, "budget": len(FIRST) + steps}
    register()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        settings = plain(compose("search", overrides=[f"{name}={value}" for name, value in chosen.items()]))
    settings["model"]["suite"] = str(suite.path)
    return settings


def _search(problem: Problem, settings: dict[str, Any], log: Path, reporter: Reporter) -> dict[str, Any]:
    """Run the search, or go on with it, and return the coefficients of its last point."""
    searcher = make_searcher(settings, problem.space, find_start(settings, problem, reporter))
    learning = find_learning(problem, settings, reporter)
    fitnesses = {"search": live_fitness(problem, problem.items["search"])}
    scorer = SerialScorer(problem, fitnesses, steps=Steps(problem, learning))
    *_, evaluate = make_evaluators(problem, scorer, make_subsets(problem)["search"], learning)
    log.parent.mkdir(exist_ok=True)
    with (
        TrialLog(log, search_identity(problem, settings, learning.items), fingerprint()) as opened,
        reporter.searching(opened.logged, settings["budget"]) as told,
    ):
        search(searcher, watching(evaluate, told), opened, Budget(settings["budget"]))
    last = f"step_{settings['searcher']['steps']}"
    if last not in (incumbents := searcher.incumbents()):
        raise SuiteError(f"the room cannot be measured: steps of the gradient failed, as the warnings and {log} say")
    return problem.space.decode(incumbents[last].x)


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
