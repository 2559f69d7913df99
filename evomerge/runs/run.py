"""One search from its settings to its run directory.

In: a typed configuration and a directory. Out, in that directory: `trials.jsonl` (the checkpoint), `timings.jsonl`,
`config.yaml`, `recipe.yaml`, `mergekit.yaml`, `heads/` and `summary.json`. Run again it replays the log and goes on; a
finished run is only shown.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from evomerge.common.digests import digest
from evomerge.common.errors import EvomergeError
from evomerge.common.files import write_atomically
from evomerge.common.limits import TimeLimit
from evomerge.common.names import commonest, dtype_name
from evomerge.common.paths import record_start
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Checking, check_items
from evomerge.fitness.sampling import Subset
from evomerge.models.live import LiveModel
from evomerge.problem import Goal, Problem
from evomerge.runs.budget import grown, make_budget
from evomerge.runs.build import build_problem, find_baselines, find_start, make_searcher
from evomerge.runs.checks import make_fitness
from evomerge.runs.closed_forms import is_scored
from evomerge.runs.computing import Begun, begun, check_kept, kept, said
from evomerge.runs.config import check, plain
from evomerge.runs.directory import record_command
from evomerge.runs.earlier import check_begun, in_todays_words
from evomerge.runs.engine import check_rebuildable, engine_of, of_this_process, planned
from evomerge.runs.evaluator import Plan
from evomerge.runs.given import Given
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import Learning, check_learning, find_learning
from evomerge.runs.outputs import finished, recorder, run_digest, show, summarise, write_outputs
from evomerge.runs.preflight import preflight
from evomerge.runs.racing import racing_of
from evomerge.runs.responses import check_drawn, informed, responses_cost
from evomerge.runs.sampled import check_approximate, to_go_on
from evomerge.runs.schema import SearchConfig
from evomerge.runs.trackers.base import make_tracker
from evomerge.runs.trackers.following import tracking
from evomerge.runs.transforms import in_order
from evomerge.runs.warned import warned
from evomerge.search.deadline import Deadline
from evomerge.search.evaluators.kept import Early, Kept
from evomerge.search.evaluators.mixed import make_evaluators
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import APPROXIMATELY, approximately, live_fitness, make_subsets
from evomerge.search.log import TrialLog
from evomerge.search.loop import search, watching
from evomerge.search.stopping import Interrupt, Stopped, fixed
from evomerge.searchers.archive import unfinished
from evomerge.searchers.base import Incumbent, Searcher, parts_of
from evomerge.selection.choosing import Selection, select, work
from evomerge.selection.judge import Judge
from evomerge.selection.recalling import Recalling
from evomerge.selection.several import select_front
from evomerge.selection.summary import Summary
from evomerge.selection.workers import Workers
from evomerge.trials import StopReason

logger = logging.getLogger(__name__)


def run_search(
    config: SearchConfig,
    directory: Path,
    reporter: Progress,
    interrupt: Interrupt | None = None,
    given: Given | None = None,
    command: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Summary | None:
    """Run one search, or go on with it.

    Args:
        config: its settings.
        directory: its run directory.
        reporter: tells the user what goes on.
        interrupt: says afterwards which signal asked it to stop.
        given: what need not be made of the settings, since a program has it.
        command: what a person types to run it, if it is run by a command.
        clock: seconds, by which the hours of its budget are counted from now on.

    Returns:
        The summary, or None when it was asked to stop before the end.

    Raises:
        EvomergeError: something is wrong with settings, sources or log; nothing of the run is lost.
    """
    settings = plain(config)
    check(settings)
    check_begun(directory)
    before, deadline = begun(directory), Deadline(settings["budget_hours"], clock)
    fitness = (given and given.fitness) or make_fitness(settings["fitness"])
    plan = planned(settings, before, fitness)
    check_rebuildable(plan, given is not None and given.in_memory)
    with plan.threaded(), tracking(make_tracker(settings), directory, settings):
        try:
            return _run(
                config, settings, fitness, plan, before, directory, reporter, interrupt, given, command, deadline
            )
        except Stopped:  # before a worker was ready
            reporter.say(StopReason.INTERRUPTED.value)
            return None


def _run(
    config: SearchConfig,
    settings: dict[str, Any],
    fitness: Fitness,
    plan: Plan,
    before: Begun | None,
    directory: Path,
    reporter: Progress,
    interrupt: Interrupt | None,
    given: Given | None,
    command: str | None,
    deadline: Deadline,
) -> Summary | None:
    """Do what `run_search` says, with the settings as plain containers, the fitness of them, and who scores."""
    asked = settings["model"].get("compute")
    settings = kept(settings, before)
    settings["evaluator"] = {**settings["evaluator"], "blocks": plan.blocks}
    check_learning(settings, fitness)
    limit = TimeLimit(settings["time_limit"])
    with reporter.bars():
        problem = build_problem(of_this_process(settings, plan), reporter, fitness, given)
    check_kept(problem.live, before)
    check_approximate(settings, problem.live, fitness)
    scored = plan.workers and any(map(is_scored, [settings["start"], *(settings["baselines"] or [])]))
    first = None if settings["start"] == "constants" else {}  # in place of one that workers score
    start = first if scored else find_start(settings, problem, reporter)
    searcher = make_searcher(settings, problem.space, start, problem.objectives)
    fitnesses = {split: live_fitness(problem, items) for split, items in problem.items.items()}  # refuses bad items
    if problem.sampling.approximate and not plan.workers:
        fitnesses[APPROXIMATELY] = approximately(problem, fitnesses["search"])
    make_subsets(problem)  # refuses bad sizes
    learning = find_learning(problem, settings, reporter, not plan.workers) if searcher.needs.gradient else None
    step = learning and learning.inputs * len(learning.items)
    problem = grown(problem, settings, parts_of(searcher, settings["budget"]), step)
    subsets = make_subsets(problem)
    identity = search_identity(problem, settings, learning and learning.items)
    judged = [subset(0) for split, subset in subsets.items() if split != "search"]
    if (done := finished(directory, run_digest(directory, identity, settings, judged), settings)) is not None:
        reporter.say(f"This search is complete: {os.path.relpath(directory)}. {to_go_on(settings)}")
        show(done, directory, reporter)
        return done
    check_splits(problem, fitnesses, subsets, learning, reporter)
    baselines = {} if scored else find_baselines(settings, problem, reporter)
    record = recorder(directory / "timings.jsonl")
    size = subsets["search"].size
    with (
        warned() as logged,
        interrupt or Interrupt() as interrupt,
        engine_of(
            *(plan, problem, settings, fitnesses, learning, limit, size, directory, reporter),
            stopping=lambda: interrupt.requested,
        ) as engine,
    ):
        problem, scorer = engine.problem, engine.scorer
        if scored:  # only now there are workers, who score it whole, as this process would
            workers = Workers(engine.scorer, 1)
            start = find_start(settings, problem, reporter, workers)
            searcher = make_searcher(settings, problem.space, start, problem.objectives)
            baselines = find_baselines(settings, problem, reporter, workers)
        racing = racing_of(settings, searcher, lambda: interrupt.requested or deadline.left < 0)
        if isinstance(scorer, Early) and (engine.workers or racing):  # else trials are logged as they end
            scorer = Kept(scorer, directory / "units.jsonl", digest([identity, engine.fingerprint]))
        scorer = Recalling(scorer, problem, bool(settings["fitness"].get("remember")))
        judge = Judge(problem, engine.scorer, subsets, interrupt, plan.blocks, ahead=engine.workers > 0)
        subsets["search"] = informed(problem, subsets["search"], judge, reporter)
        objective, gradients, evaluate = make_evaluators(
            problem, scorer, subsets["search"], learning, record, plan.blocks, racing
        )
        parts = parts_of(searcher, settings["budget"])
        price, spent = fixed(size, gradients and gradients.size), responses_cost(problem)
        budget = make_budget(settings, parts, price, interrupt, deadline, spent)
        computing = said(problem.live, asked, before)
        preflight(
            *(problem, searcher, settings, subsets, engine, objective, gradients, limit, deadline, computing, racing),
            reporter,
        )
        with TrialLog(directory / "trials.jsonl", identity, engine.fingerprint, in_todays_words) as log:
            check_drawn(problem, subsets["search"], log.path)
            write_atomically(directory / "config.yaml", _as_yaml(config, problem.live))
            record_start(directory)
            record_command(directory, command)
            asked = sum(part.count for part in parts)  # a gradient may end long before the budget does
            with reporter.searching(log.logged, asked, lambda: deadline.left) as told, engine.searching():
                limited = interrupt.wrap(deadline.wrap(watching(evaluate, told)))
                reason = search(searcher, limited, log, budget)
            reporter.say(f"{reason.value} {to_go_on(settings)}" if reason is StopReason.BUDGET else reason.value)
            if reason is StopReason.INTERRUPTED:
                return None
            if (found := _choose(judge, problem.goal, searcher, log, baselines, reporter)) is None:
                return None
            sizes = {split: subset.size for split, subset in subsets.items()}
            made_of = run_digest(directory, identity, settings, judged)
            summary = summarise(directory, problem, found, log, reason, sizes, made_of, logged.texts(), scorer.items)
            write_outputs(directory, problem, found.coefficients, summary, reporter)
    show(summary, directory, reporter)
    return summary


def _as_yaml(config: SearchConfig, live: LiveModel) -> str:
    """Return the settings as they were given, but for transforms, whose names may stand for others one day, and for the
    dtype that was chosen to compute in.
    """
    composed: Any = config
    given: Any = OmegaConf.to_container(composed, resolve=True)
    given["model"]["compute"] = dtype_name(live.compute or live.dtype)
    return OmegaConf.to_yaml(OmegaConf.create(in_order(given)))


def _choose(
    judge: Judge,
    goal: Goal,
    searcher: Searcher,
    log: TrialLog,
    baselines: Mapping[str, np.ndarray],
    reporter: Progress,
) -> Selection | None:
    """Return what the selection says of the searcher's incumbents and the baselines, or None when it was asked to stop
    before the end.

    Raises:
        EvomergeError: there are none, or none of them could be scored.
    """
    incumbents = searcher.incumbents() | unfinished(log.batch)
    if not incumbents and not log.errors:
        raise EvomergeError(
            "The hours ended before any candidate was scored, so there is no winner yet. Run the same command again: "
            "it goes on with what is kept of the first generation; budget.hours may be more."
        )
    if not incumbents:
        (error, times), *_ = commonest(log.errors)
        raise EvomergeError(
            f"All {log.trials} candidates failed, so there is no winner. Most often ({times} times): "
            f"{error.rstrip('.')}. Mend the reason, then search in another run directory "
            f"(hydra.run.dir=runs/another): what failed stays in the log of this one, {log.path}."
        )
    incumbents |= {name: Incumbent(x) for name, x in baselines.items()}
    try:
        what = "choosing the winner on the select split, scoring it on the report split"
        items = work(judge.bounds, len(incumbents), judge.sizes, goal)
        with reporter.counting(what, items) as judge.scored:
            return (select_front if goal.several else select)(judge, goal, incumbents)
    except Stopped:
        reporter.say(StopReason.INTERRUPTED.value)
        return None
    except TimeoutError as error:
        raise EvomergeError(
            f"A model of the report {error}: raise time_limit and run the same command again; what was scored before "
            f"is remembered."
        ) from error


def check_splits(
    problem: Problem,
    fitnesses: Mapping[str, LiveFitness],
    subsets: Mapping[str, Subset],
    learning: Learning | None,
    reporter: Progress,
) -> None:
    """Refuse items of any split that cannot be scored: what judges at the end is looked at before the search.

    Raises:
        SuiteError: there are some.
    """
    if not isinstance(problem.fitness, Checking):
        return
    found = [(split, fitnesses[split].prepared, subset.every()) for split, subset in subsets.items()]
    if learning:
        learned = {task: [item.id for item in items] for task, items in learning.items.items()}
        found.append(("learned", learning.prepared, learned))
    with reporter.working("preparing the items of all splits"):
        for split, prepared, ids in found:
            check_items(problem.fitness, problem.live.model, prepared, ids, split)
