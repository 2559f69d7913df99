"""One comparison from its settings to its directory: every method with its own weight, the best of them tested.

In: the settings of a search, of which method, space and searcher play no part, and the settings `compare`. Out, in a
directory: `comparison.jsonl` (the checkpoint), `costs.jsonl` and `comparison.json`. Run again it goes on; what is in
the log is not scored again, and what any search with these models has remembered is not either.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from evomerge import __version__
from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.files import write_atomically
from evomerge.common.limits import TimeLimit
from evomerge.common.machine import fingerprint
from evomerge.common.progress import Progress
from evomerge.fitness.capabilities import check_items, measures
from evomerge.fitness.draws import STRATIFIED
from evomerge.fitness.items import HELD_OUT
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.checks import make_fitness
from evomerge.runs.closed_forms import FORMS, UNIFORM, is_scored
from evomerge.runs.compared import LOG, ComparisonLog
from evomerge.runs.computing import begun
from evomerge.runs.config import check
from evomerge.runs.contestants import (
    REFERENCE,
    START,
    Compared,
    Contestant,
    find_contestants,
    of_theirs,
)
from evomerge.runs.engine import check_rebuildable, engine_of, of_this_process, planned
from evomerge.runs.given import Given
from evomerge.runs.objectives import check_reported, several
from evomerge.runs.rounds import Rounds
from evomerge.runs.sources import find_sources
from evomerge.runs.theirs import Theirs, is_file, open_files
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.ranking import Entered, finalists, held_against, order
from evomerge.selection.standings import RESULT, Cost, OnReport, Row, Standings
from evomerge.selection.statistics import paired, score_of

SPLITS = ("select", "report")
UNUSED = (
    *(("fitness", name, None) for name in ("approximate", "estimate", "grow")),
    *(("fitness", "rotate", False), ("fitness", "sampling", STRATIFIED)),
    *(("racing", "alpha", 0), ("racing", "halving", False)),
)
"""Settings of a search that count for nothing in a comparison, and as they are where nobody asks for anything."""
VERSIONS = ("python", "torch", "numpy")
T = TypeVar("T")


def run_comparison(
    settings: Mapping[str, Any],
    compared: Compared,
    directory: Path,
    reporter: Progress,
    interrupt: Interrupt | None = None,
    command: str | None = None,
    given: Given | None = None,
) -> Standings | None:
    """Run a comparison, or go on with it.

    Args:
        settings: of a search, as plain containers.
        compared: who takes part, and among which weights they choose.
        directory: where it is kept.
        reporter: tells the user what goes on.
        interrupt: says afterwards which signal asked it to stop.
        command: what a person types to run it.
        given: base and experts, the fitness and items, where a program has them.

    Returns:
        The standings, or None when it was asked to stop before the end.

    Raises:
        EvomergeError: something is wrong with settings, sources or log; nothing of the comparison is lost.
    """
    _check_directory(directory)
    _check_asked(settings, reporter)
    given, limit = given or Given(), TimeLimit(settings["time_limit"])
    fitness = given.fitness or make_fitness(settings["fitness"])
    check_reported(settings, fitness.metrics)
    sources = find_sources(settings["model"], settings["fitness"]["tasks"], given.family and given.family.sources)
    trajectory = bool(settings["model"].get("trajectory"))
    contestants, left_out = find_contestants(compared, list(sources.experts), settings["seed"], trajectory)
    theirs = open_files(compared.files, sources)
    plan = planned(settings, begun(directory, LOG), fitness)
    check_rebuildable(plan, given.in_memory)
    with reporter.bars():
        problem = build_problem(of_this_process(settings, plan), reporter, fitness, given)
    for name, one in theirs.items():
        if isinstance(found := _read(name, one, problem, reporter), str):
            left_out[name] = found
        else:
            contestants[name] = found
    subsets = make_subsets(problem)
    ids = {split: subsets[split](0) for split in SPLITS}
    fitnesses = {split: live_fitness(problem, problem.items[split]) for split in SPLITS}
    for split in SPLITS:
        check_items(problem.fitness, problem.live.model, fitnesses[split].prepared, ids[split], split)
    sizes = {split: subsets[split].size for split in SPLITS}
    _announce(problem, contestants, left_out, sizes, reporter)
    searched = subsets["search"](0) if any(is_scored(one.start) for one in contestants.values()) else {}
    identity = _identity(problem, contestants, ids, settings["seed"], searched) | (
        {"blocks": plan.blocks} if plan.blocks > 1 else {}
    )
    metric, size = problem.goal.report_metric, subsets["search"].size
    with (
        interrupt or Interrupt() as interrupt,
        plan.threaded(),
        engine_of(plan, problem, settings, fitnesses, None, limit, size, directory, reporter) as engine,
        ComparisonLog(directory, identity, engine.fingerprint, ids, metric) as log,
        engine.searching(),
    ):
        problem = engine.problem
        if log.moved:
            reporter.say("note: another kind of machine wrote what is there; scores may differ in their last digits")
        rounds = Rounds(problem, settings, fitnesses, subsets, interrupt, limit, engine, log, reporter)
        try:
            rows, base, failed = _played(rounds, contestants)
        except Stopped:
            reporter.say("The comparison was asked to stop. Run the same command again to go on.")
            return None
        finally:
            problem.become(None)
    known = fingerprint()
    found = Standings(
        rows=rows,
        reference=REFERENCE,
        base=base,
        left_out={**left_out, **failed},
        metric=metric,
        measures=measures(problem.fitness, metric, problem.items["report"]),
        items=sizes,
        warnings=problem.warnings,
        versions={"evomerge": __version__, **{name: str(known[name]) for name in VERSIONS}},
        command=command,
    )
    write_atomically(directory / RESULT, found.to_json())
    return found


def _check_asked(settings: Mapping[str, Any], reporter: Progress) -> None:
    """Check settings, refuse what a comparison cannot do, and say what counts for nothing in one.

    Raises:
        ConfigError: a setting is wrong, or is for a search alone.
    """
    check(settings)
    if settings["objective"].get("forget"):
        raise ConfigError(
            "A comparison adds task vectors, and objective.forget takes them away: leave it out, or search "
            "(evomerge search) with each method by itself."
        )
    if several(settings) or settings["objective"].get("constraints"):
        raise ConfigError(
            "A comparison ranks methods by one value, which nothing else limits: leave out objective=pareto and "
            "objective.constraints, or search (evomerge search) with each method by itself."
        )
    if given := settings.get("baselines"):
        starts = [str(one) for one in (given if isinstance(given, list) else [given])]
        names = [one if is_file(one) else f"{START}{one}" for one in starts if is_file(one) or one in FORMS]
        raise ConfigError(
            f"baselines are judged at the end of a search, and here starts take part as all others do: write "
            f"'compare.methods=[{','.join(['linear', *(names or [f'{START}{UNIFORM}'])])}]', or leave baselines out, "
            f"since compare.methods=null has all closed forms. Numbers belong into compare.constants."
        )
    for group, name, usual in UNUSED:
        if (settings.get(group) or {}).get(name) not in (None, usual):
            reporter.say(f"note: {group}.{name} counts for nothing here: a comparison searches nothing")


def _read(name: str, theirs: Theirs, problem: Problem, reporter: Progress) -> Contestant | str:
    """Return a merge YAML as a contestant, or why it cannot run on these models; say what is done otherwise.

    Raises:
        ConfigError: it says what evomerge cannot do; the message names the file and the line.
    """
    try:
        found = of_theirs(name, theirs, problem.vectors.parameters, list(problem.sources.experts))
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    for note in theirs.document.notes.said:
        reporter.say(f"note: {name}: {note}")
    return found


def _check_directory(directory: Path) -> None:
    """Refuse a file, and the run of a search, whose page that of the comparison would replace.

    Raises:
        ConfigError: it is one.
    """
    is_run = (directory / "trials.jsonl").exists()
    if is_run or (directory.exists() and not directory.is_dir()):
        raise ConfigError(
            f"{directory} is {'the run of a search' if is_run else 'a file'}: name another directory with --out."
        )


def _played(rounds: Rounds, contestants: Mapping[str, Contestant]) -> tuple[list[Row], dict[str, Any], dict[str, str]]:
    """Let everybody choose, test the best, and return the rows, the base's scores, and why others have no row.

    Raises:
        Stopped: it was asked to stop; what was scored is in the log.
        EvomergeError: task arithmetic has no score.
    """
    goal = rounds.problem.goal
    metric, weights = goal.report_metric, goal.weights
    base = {"select": rounds.base("select")}
    entered, failed = dict[str, Entered](), dict[str, str]()
    for number, (name, one) in enumerate(contestants.items(), 1):
        found = rounds.choice(one, f"{number} of {len(contestants)}")
        if isinstance(found, str):
            failed[name] = found
        else:
            entered[name] = found
        if name == REFERENCE:
            _needed(found)
    values = {name: rounds.objective(one.outcome)[0][0] for name, one in entered.items()}
    ranked = order(values)
    base["report"] = rounds.base("report")
    reference = _needed(rounds.reported(contestants[REFERENCE], entered[REFERENCE].constant))
    best = finalists(ranked, REFERENCE)
    reported = {name: rounds.reported(contestants[name], entered[name].constant) for name in best}
    tested = held_against(reported, reference, metric, weights)
    tested[REFERENCE] = OnReport(score_of(reference, metric, weights))
    costs, arithmetic = rounds.log.costs(), entered[REFERENCE].outcome

    def row(name: str) -> Row:
        one, found = contestants[name], entered[name]
        return Row(
            name=name,
            title=one.title,
            paper=one.paper,
            needs=one.needs,
            constant=found.constant,
            values=found.values,
            seen=found.seen,
            value=values[name],
            select=score_of(found.outcome, metric, weights),
            ahead=None if name == REFERENCE else paired(found.outcome, arithmetic, metric, weights),
            tested=tested.get(name),
            cost=costs.get(name, Cost()),
        )

    scores = {split: None if isinstance(one, str) else score_of(one, metric, weights) for split, one in base.items()}
    return [row(name) for name in ranked], scores, failed


def _needed(found: T | str) -> T:
    """Return what task arithmetic reached.

    Raises:
        EvomergeError: it reached nothing.
    """
    if isinstance(found, str):
        raise EvomergeError(
            f"Task arithmetic has no score, and all others are held against it: {found.rstrip('.')}. Mend the reason, "
            f"then compare in another directory (--out)."
        )
    return found


def _identity(
    problem: Problem,
    contestants: Mapping[str, Contestant],
    ids: Mapping[str, Mapping[str, list[str]]],
    seed: int,
    searched: Mapping[str, list[str]],
) -> dict[str, Any]:
    """Return what makes this comparison this one: names and hashes; with the search items on which experts are scored,
    where a start asks for it.
    """
    goal = problem.goal
    scored = [goal.metric, {task: digest(chosen) for task, chosen in searched.items()}]
    return {
        **problem.contents,
        "items": {split: {task: digest(chosen) for task, chosen in each.items()} for split, each in ids.items()},
        "objective": [goal.report_metric, goal.aggregate, goal.weights, goal.normalised],
        "contestants": [one.about() for one in contestants.values()],
        "seed": seed,
        **({"scored": scored} if searched else {}),
    }


def _announce(
    problem: Problem,
    contestants: Mapping[str, Contestant],
    left_out: Mapping[str, str],
    sizes: Mapping[str, int],
    reporter: Progress,
) -> None:
    """Say what is known of the sources, and what is going to be scored."""
    for warning in problem.warnings:
        reporter.say(f"warning: {warning}")
    for name, reason in left_out.items():
        reporter.say(f"left out: {name}: {reason}")
    if HELD_OUT in problem.items:
        reporter.say(f"held out: {', '.join(problem.items[HELD_OUT])} take no part in a comparison")
    merges = sum(len(one.constants) for one in contestants.values())
    reporter.say(
        f"{len(contestants)} methods: {merges} merges on {sizes['select']} select items, fewer where they are clearly "
        f"behind; the best on {sizes['report']} report items"
    )
