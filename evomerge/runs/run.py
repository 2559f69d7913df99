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
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
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
from evomerge.fitness.estimates import Estimate
from evomerge.fitness.goal import Goal
from evomerge.runs.akin import products_of
from evomerge.runs.budget import make_budget
from evomerge.runs.build import find_baselines, find_start, make_searcher
from evomerge.runs.checks import make_fitness
from evomerge.runs.closed_forms import check_untransformed
from evomerge.runs.computing import Begun, begun, said
from evomerge.runs.config import check, plain
from evomerge.runs.directory import record_command
from evomerge.runs.earlier import as_begun, check_begun, check_negated, identity_today
from evomerge.runs.engine import Engine, check_rebuildable, engine_of, planned
from evomerge.runs.estimates import check_estimated, estimated
from evomerge.runs.evaluator import Plan
from evomerge.runs.given import Given
from evomerge.runs.objectives import check_reported
from evomerge.runs.outputs import finished, recorder, run_digest, show, summarise, write_outputs
from evomerge.runs.preflight import preflight
from evomerge.runs.racing import racing_of
from evomerge.runs.ready import Ready, check_splits, make_ready
from evomerge.runs.responses import check_drawn, informed, responses_cost
from evomerge.runs.sampled import to_go_on
from evomerge.runs.schema import SearchConfig
from evomerge.runs.starts import digests_of
from evomerge.runs.trackers.base import make_tracker
from evomerge.runs.trackers.following import tracking
from evomerge.runs.transforms import in_order
from evomerge.runs.warned import warned
from evomerge.runs.weighing import add_worth, check_weighable, lacks_worth
from evomerge.search.deadline import Deadline
from evomerge.search.evaluators.kept import Early, Kept
from evomerge.search.evaluators.mixed import make_evaluators
from evomerge.search.log import TrialLog, check_search
from evomerge.search.loop import Evaluator, search, watching
from evomerge.search.stopping import Budget, Interrupt, Stopped, fixed
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


@dataclass(frozen=True)
class Call:
    """How a search was asked for.

    Attributes:
        config: its settings, as they were given.
        directory: of the run.
        reporter: tells the user what goes on.
        given: what need not be made of the settings.
        command: what a person types to run it.
        plan: who scores.
        before: how it began, if it goes on.
        deadline: the end of its hours.
    """

    config: SearchConfig
    directory: Path
    reporter: Progress
    given: Given | None
    command: str | None
    plan: Plan
    before: Begun | None
    deadline: Deadline


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
    settings, told = as_begun(settings, directory)
    for note in told:
        reporter.say(note)
    before, deadline = begun(directory), Deadline(settings["budget_hours"], clock)
    check_untransformed(settings, before is not None, reporter)
    fitness = (given and given.fitness) or make_fitness(settings["fitness"])
    check_reported(settings, fitness.metrics)
    plan = planned(settings, before, fitness)
    check_rebuildable(plan, given is not None and given.in_memory)
    call = Call(config, directory, reporter, given, command, plan, before, deadline)
    with plan.threaded(), tracking(make_tracker(settings), directory, settings):
        try:
            return _run(call, settings, fitness, interrupt)
        except Stopped:  # before a worker was ready
            reporter.say(StopReason.INTERRUPTED.value)
            return None


def _run(call: Call, settings: dict[str, Any], fitness: Fitness, interrupt: Interrupt | None) -> Summary | None:
    """Do what `run_search` says, with the settings as plain containers, and the fitness of them."""
    ready = make_ready(settings, fitness, call.plan, call.before, call.reporter, call.given)
    check_weighable(ready.settings, ready.problem)
    if (done := finished(call.directory, _made_of(call, ready), ready.settings)) is not None:
        call.reporter.say(
            f"This search is complete: {os.path.relpath(call.directory)}. {to_go_on(ready.problem.sampling.growth)}"
        )
        if lacks_worth(ready.settings, call.directory):
            with interrupt or Interrupt() as interrupt, _engine(call, ready, interrupt) as engine:
                if not _weighed(call, ready, engine, interrupt):
                    return None
        show(done, call.directory, call.reporter)
        return done
    check_negated(call.directory, ready.identity)
    check_splits(ready, call.reporter)
    baselines = {} if ready.late else find_baselines(ready.settings, ready.problem, call.reporter)
    with (
        warned() as logged,
        interrupt or Interrupt() as interrupt,
        _engine(call, ready, interrupt) as engine,
    ):
        ready = replace(ready, problem=engine.problem)
        if ready.late:  # only now there are workers, who score it whole, as this process would
            ready, baselines = _started(call, ready, Workers(engine.scorer, 1))
        path, files = call.directory / "trials.jsonl", digests_of(ready.settings["baselines"])
        if responses_cost(ready.problem):  # else nothing is scored before the log is opened, which checks it
            check_search(path, ready.identity, identity_today)
        judge = Judge(ready.problem, engine.scorer, ready.subsets, interrupt, call.plan.blocks, engine.workers > 0)
        drawn = informed(ready.problem, ready.subsets["search"], judge, call.reporter)
        ready = replace(ready, subsets={**ready.subsets, "search": drawn})
        estimate = estimated(ready.problem, judge, call.reporter)
        scoring = _scoring(call, ready, engine, interrupt, estimate)
        with TrialLog(path, ready.identity, engine.fingerprint, identity_today) as log:
            check_drawn(ready.problem, ready.subsets["search"], log.path)
            check_estimated(ready.problem, estimate, log.path)
            _record(call, ready)
            reason = _search(call, ready, scoring, log, interrupt)
            if reason is StopReason.INTERRUPTED:
                return None
            found = _choose(judge, ready.problem.goal, ready.searcher, log, baselines, call.reporter)
            if found is None:
                return None
            summary = summarise(
                *(call.directory, ready.problem, found, log, reason, ready.sizes, _made_of(call, ready)),
                *(logged.texts(), scoring.scorer.items, files),
            )
            write_outputs(call.directory, ready.problem, found.coefficients, summary, call.reporter)
            if lacks_worth(ready.settings, call.directory) and not _weighed(call, ready, engine, interrupt):
                return None
    show(summary, call.directory, call.reporter)
    return summary


def _engine(call: Call, ready: Ready, interrupt: Interrupt) -> AbstractContextManager[Engine]:
    """Return what scores the units of a run, as a context."""
    return engine_of(
        *(call.plan, ready.problem, ready.settings, ready.fitnesses, ready.learning, ready.limit),
        *(ready.subsets["search"].size, call.directory, call.reporter),
        stopping=lambda: interrupt.requested,
    )


def _weighed(call: Call, ready: Ready, engine: Engine, interrupt: Interrupt) -> bool:
    """Score the winner of a run that has ended beside its parents; return whether it was not asked to stop before."""
    workers = Workers(engine.scorer, engine.blocks) if engine.workers else None
    limit = TimeLimit(ready.settings["time_limit"])
    try:
        add_worth(call.directory, engine.problem, call.reporter, limit, workers, stopping=lambda: interrupt.requested)
    except Stopped:
        call.reporter.say(StopReason.INTERRUPTED.value)
        return False
    return True


def _made_of(call: Call, ready: Ready) -> str | None:
    """Return a hash of all that the summary depends on, as far as it is there."""
    return run_digest(call.directory, ready.identity, ready.settings, ready.judged)


def _started(call: Call, ready: Ready, workers: Workers) -> tuple[Ready, Mapping[str, np.ndarray]]:
    """Return what is ready with a searcher whose start workers have scored, and the baselines that they have."""
    settings, problem, reporter = ready.settings, ready.problem, call.reporter
    start = find_start(settings, problem, reporter, workers, began=call.before is not None)
    gram = products_of(settings, problem, reporter)
    searcher = make_searcher(settings, problem.space, start, problem.objectives, problem.negated, gram)
    return replace(ready, searcher=searcher), find_baselines(settings, problem, reporter, workers)


@dataclass(frozen=True)
class Scoring:
    """What scores a search.

    Attributes:
        scorer: of the units of candidates.
        evaluate: candidates -> trials.
        budget: ends the search.
        searching: a context that lasts from the first ask to the last tell.
    """

    scorer: Recalling
    evaluate: Evaluator
    budget: Budget
    searching: Callable[[], AbstractContextManager[None]]


def _scoring(call: Call, ready: Ready, engine: Engine, interrupt: Interrupt, estimate: Estimate | None) -> Scoring:
    """Return what scores a search, when the base has been scored by it and the user knows what it will take.

    Raises:
        EvomergeError: the base cannot be scored, or the hours are too few.
    """
    settings, problem, searcher, drawn = ready.settings, ready.problem, ready.searcher, ready.subsets["search"]
    racing = racing_of(settings, searcher, lambda: interrupt.requested or call.deadline.left < 0)
    scorer = engine.scorer
    if isinstance(scorer, Early) and (engine.workers or racing):  # else trials are logged as they end
        scorer = Kept(scorer, call.directory / "units.jsonl", digest([ready.identity, engine.fingerprint]))
    scorer = Recalling(scorer, problem, bool(settings["fitness"].get("remember")))
    record = recorder(call.directory / "timings.jsonl")
    objective, gradients, evaluate = make_evaluators(
        problem, scorer, drawn, ready.learning, record, call.plan.blocks, racing, estimate
    )
    price, spent = fixed(drawn.size, gradients and gradients.size), responses_cost(problem)
    budget = make_budget(settings, parts_of(searcher, settings["budget"]), price, interrupt, call.deadline, spent)
    computing = said(problem.live, ready.compute, call.before)
    preflight(ready, engine, objective, gradients, call.deadline, computing, racing, call.reporter)
    return Scoring(scorer, evaluate, budget, engine.searching)


def _search(call: Call, ready: Ready, scoring: Scoring, log: TrialLog, interrupt: Interrupt) -> StopReason:
    """Ask and tell until the budget is spent or the user stops it; say why it ended."""
    asked = sum(part.count for part in parts_of(ready.searcher, ready.settings["budget"]))
    with call.reporter.searching(log.logged, asked, lambda: call.deadline.left) as told, scoring.searching():
        limited = interrupt.wrap(call.deadline.wrap(watching(scoring.evaluate, told)))
        reason = search(ready.searcher, limited, log, scoring.budget)
    more = f" {to_go_on(ready.problem.sampling.growth)}" if reason is StopReason.BUDGET else ""
    call.reporter.say(f"{reason.value}{more}")
    return reason


def _record(call: Call, ready: Ready) -> None:
    """Write how the run began: its settings, and the command."""
    write_atomically(call.directory / "config.yaml", _as_yaml(call.config, ready))
    record_start(call.directory)
    record_command(call.directory, call.command)


def _as_yaml(config: SearchConfig, ready: Ready) -> str:
    """Return the settings as they were given, but for transforms, whose names may stand for others one day, for the
    dtypes that were chosen to compute in, and for what an earlier version began with in another form.
    """
    composed: Any = config
    given: Any = OmegaConf.to_container(composed, resolve=True)
    live = ready.problem.live
    given["model"]["compute"] = dtype_name(live.compute or live.dtype)
    for group, name in (("fitness", "approximate"), ("searcher", "first"), ("searcher", "akin")):
        if name in given[group]:
            given[group][name] = ready.settings[group][name]
    return OmegaConf.to_yaml(OmegaConf.create({**in_order(given), "transform": [*ready.settings["transform"]]}))


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
