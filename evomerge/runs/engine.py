"""The engine of a run: what scores its units, one live model in this process or a pool of workers.

In: a `Plan` (`evaluator.py`) and a problem. Out: a scorer, and what a search must know of it. A pool scores everything,
base and finalists as well; this process then holds a model on the CPU alone, to know what a merge consists of.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from evomerge.common.errors import ConfigError
from evomerge.common.limits import AUTO, TimeLimit
from evomerge.common.machine import fingerprint
from evomerge.common.names import dtype_name
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness, Outcome
from evomerge.fitness.capabilities import Exporting
from evomerge.problem import Problem
from evomerge.runs.computing import Begun
from evomerge.runs.evaluator import Plan, cores_here, plan_of
from evomerge.runs.worker import build_message
from evomerge.runs.worker_log import WORKERS, WorkerLog
from evomerge.search.evaluators.blocks import Items, begin, outcome_or_raise, score_now
from evomerge.search.evaluators.cluster import Actors, nodes_of
from evomerge.search.evaluators.crew import Crew
from evomerge.search.evaluators.pool import Pool
from evomerge.search.evaluators.processes import Processes
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.steps import Steps
from evomerge.search.evaluators.units import Model, Scored, Scorer
from evomerge.search.learning import Learning


@dataclass(frozen=True)
class Engine:
    """What scores the units of a run.

    Attributes:
        problem: what is searched, with the circumstances under which it is scored.
        scorer: scores units of every split.
        blocks: into how many the items of a candidate are cut.
        workers: how many score side by side; 0 where it is this process.
        searching: a context that lasts from the first ask to the last tell.
        placed: where the task vectors of a worker lie, as a sentence; empty where this process scores.
        caution: what is slow about the workers, and what to write instead; empty where nothing is.
    """

    problem: Problem
    scorer: Scorer
    blocks: int = 1
    workers: int = 0
    searching: Callable[[], AbstractContextManager[None]] = nullcontext
    placed: str = ""
    caution: str = ""

    @property
    def said(self) -> str:
        """What is told of workers before a search; nothing where there are none."""
        if not self.workers:
            return ""
        found = self.problem.circumstances["fingerprint"]
        device, threads = str(found["device"]).partition(":")[0], found["threads"]
        return (
            f"{self.workers}, each with a model on {device} and {threads} thread{'s' * (threads != 1)}; the items of a "
            f"candidate in {self.blocks} block{'s' * (self.blocks != 1)}"
        )

    @property
    def fingerprint(self) -> dict[str, Any]:
        """The kind of machine that scores, as the header of a log says it."""
        found = self.problem.circumstances["fingerprint"]
        scored = {name: value for name, value in found.items() if name != "device"}
        asked = {name: value for name, value in fingerprint().items() if name not in ("threads", "accelerator")}
        others = {name: value for name, value in asked.items() if value != scored.get(name)}
        return {
            **scored,
            **({"search": others} if self.workers and others else {}),
        }  # points depend on where they are asked

    def score(self, model: Model, ids: Items, **how: Any) -> Outcome:
        """Return the outcome of a model on items; see `blocks.score_now`."""
        return score_now(self.scorer, model, ids, self.blocks, **how)

    def timed(self, model: Model, ids: Items) -> tuple[Outcome, Scored]:
        """Return the outcome of a model on items, and where the time of all its blocks went.

        Raises:
            Exception: whatever its model or fitness raised.
        """
        (scored,) = begin(self.scorer, model, ids, self.blocks)
        return outcome_or_raise(scored), scored


def planned(settings: Mapping[str, Any], before: Begun | None, fitness: Fitness) -> Plan:
    """Return who scores the units of a run.

    Args:
        settings: of the search.
        before: how it began, if it goes on.
        fitness: of these settings; one that is handed a directory has all items of a candidate at once, where the user
            does not say otherwise.

    Raises:
        ConfigError: workers need more than there is, or Ray is not installed or does not answer.
    """
    given = settings.get("evaluator") or {}
    if isinstance(fitness, Exporting) and given.get("blocks", AUTO) == AUTO and before is None:
        given = {**given, "blocks": 1}  # each block would be another export of the model
    here = [(len(_devices()), cores_here())]
    return plan_of(given, nodes_of(given.get("address"), here) if given.get("kind") == "ray" else here, before)


def of_this_process(settings: Mapping[str, Any], plan: Plan) -> dict[str, Any]:
    """Return the settings of a search as the process has them that leads workers: it holds its model on the CPU, and
    maps its task vectors.
    """
    if not plan.workers:
        return dict(settings)
    own: dict[str, Any] = {"device": "cpu", "device_map": None, "place": "disk"}
    if plan.gpus and settings["model"].get("compute") == "auto":  # which on GPUs is the dtype of the checkpoint
        own["compute"] = None
    return {**settings, "model": {**settings["model"], **own}}


@contextmanager
def engine_of(
    plan: Plan,
    problem: Problem,
    settings: Mapping[str, Any],
    fitnesses: Mapping[str, LiveFitness],
    learning: Learning | None,
    limit: TimeLimit,
    candidate: int,
    directory: Path,
    reporter: Progress,
    stopping: Callable[[], bool] = lambda: False,
) -> Iterator[Engine]:
    """Start what scores the units of a run; it ends with the context.

    Args:
        plan: who scores.
        problem: what is searched, as this process has it.
        settings: of the search; workers build the problem of them.
        fitnesses: score the live model of this process.
        learning: what a gradient learns from; None where none does.
        limit: of the time of a candidate.
        candidate: how many items that is.
        directory: of the run; what workers do and print is written to files in it.
        reporter: tells what workers do.
        stopping: whether somebody has asked to stop; looked at while workers start.

    Raises:
        EvomergeError: workers cannot build the problem.
        Stopped: it was asked to stop before one was ready.
    """
    if not plan.workers:
        steps = learning and Steps(problem, learning)
        yield Engine(problem, SerialScorer(problem, fitnesses, limit, candidate, steps), plan.blocks)
        return
    compute = problem.live.compute and dtype_name(problem.live.compute)
    shared = {**settings["evaluator"], "workers": plan.beside}  # each has its share of the memory of its machine
    own = {**settings, "model": {**settings["model"], "compute": compute}, "evaluator": shared}
    build = build_message(own, problem, plan.threads, learning is not None)
    directory.mkdir(parents=True, exist_ok=True)
    log = WorkerLog(directory / WORKERS, plan.workers, reporter.pool(plan.workers))
    with Pool(_crew(plan, build, directory / "workers"), limit, candidate, log) as pool:
        with reporter.working(f"starting {plan.workers} workers"):
            first, *_ = pool.wait(stopping=stopping)
        problem = replace(problem, scored_under=first["circumstances"])

        @contextmanager
        def searching() -> Iterator[None]:
            with log.searching():
                yield
            pool.forget()

        yield Engine(
            problem, pool, plan.blocks, plan.workers, searching, first.get("placed", ""), plan.crowded(cores_here())
        )


def _crew(plan: Plan, build: dict[str, Any], directory: Path) -> Crew:
    if plan.kind == "ray":
        return Actors(build, plan.workers, plan.gpus, plan.threads or 1, directory, plan.address)
    devices = _devices()
    pinned: list[dict[str, str]] = [{} for _ in range(plan.workers)]
    for number, environment in enumerate(pinned if devices else ()):  # with 0 GPUs each, they see none
        mine = devices[number * plan.gpus : (number + 1) * plan.gpus]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(mine)
    return Processes(build, pinned, directory)


def _devices() -> list[str]:
    """Return the GPUs that this process may use, as the environment names them."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    count = torch.cuda.device_count()
    return [str(i) for i in range(count)] if named is None else named.split(",")[:count]


def check_rebuildable(plan: Plan, in_memory: bool) -> None:
    """Refuse workers where they cannot build what a program holds in its memory.

    Raises:
        ConfigError: they cannot.
    """
    if plan.workers and in_memory:
        raise ConfigError(
            "Workers build models, fitness and items anew from their names, and here some are objects of this program: "
            "give directories, files, and the fitness as 'file.py:function'; or leave out evaluator."
        )
