"""A worker of a pool: it builds the problem once, then scores what it is asked, until nobody asks any more.

In: messages (`search/evaluators/wire.py`): first `build`, with the settings of a search, then units. Out: `ready` or
`refused`, then what came of each unit. Sources are opened by path or name, as the search itself opens them, and must
have the same contents. As a program it is given the number of an open pipe: `python -m evomerge.runs.worker 7`.
"""

from __future__ import annotations

import os
import queue
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch

from evomerge import __version__
from evomerge.common.digests import digest
from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError, LiveModelError
from evomerge.common.progress import Silent
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.learning import find_learning
from evomerge.runs.under import problem_under
from evomerge.runs.warned import warned
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import APPROXIMATELY, approximately, in_checkpoints_dtype, live_fitness
from evomerge.search.evaluators.steps import Steps
from evomerge.search.evaluators.units import Model, Named, Scored, Unit
from evomerge.search.evaluators.wire import Message, error_message, packed, scored_message, unit_of, unpacked
from evomerge.search.memory import bare, free, lacks_memory, recognised
from evomerge.search.stopping import Interrupt
from evomerge.selection.evaluation import contender_of
from evomerge.selection.named import model_of


def build_message(settings: Mapping[str, Any], problem: Problem, threads: int | None, learns: bool = False) -> Message:
    """Return the message from which a worker builds the problem.

    Args:
        settings: of the search, as plain containers.
        problem: of these settings; the worker's must have the same contents and space.
        threads: that torch may use; None for as many as it takes.
        learns: whether steps of a gradient will be asked for.
    """
    known = {"settings": dict(settings), "same": _same(problem), "threads": threads, "learns": learns}
    return {"kind": "build", "version": __version__, **known}


def _same(problem: Problem) -> str:
    """Return a hash of what all workers must have alike, beside items, which are asked for by their own hashes."""
    space = problem.space
    return digest([problem.contents, list(space.names), space.low.tolist(), space.high.tolist()])


class Worker:
    """Scores units of one problem, one after the other.

    Args:
        build: the message from which the problem is built.

    Raises:
        EvomergeError: it cannot be built, or has other contents.
    """

    def __init__(self, build: Message) -> None:
        if build["version"] != __version__:
            raise ConfigError(
                f"A worker has evomerge {__version__}, and the search {build['version']}: install the same everywhere."
            )
        if build["threads"]:
            torch.set_num_threads(build["threads"])
        self._build, self._problem = build, build_problem(build["settings"], Silent())
        if _same(self._problem) != build["same"]:
            raise CheckpointError(
                "A worker finds other models, heads or fitness files under the names of this search: all workers must "
                "see the same files. Put them on a disk that all share, or name them on the hub with a revision."
            )
        self._fitnesses = _Fitnesses(self._problem)
        self._scorers: dict[str, SerialScorer] = {}
        self._before: tuple[Any, Model] = ("", "base")  # the model of the unit before, as it was sent and as it is here
        self._fitnesses.__missing__("search")  # these before the clock of any candidate runs
        if self._problem.sampling.approximate:
            self._fitnesses.__missing__(APPROXIMATELY)
        self._scorer(None)

    def ready(self) -> Message:
        """Return what a pool must know of this worker."""
        placed = self._problem.merger.placed
        known = {"circumstances": self._problem.circumstances, "placed": placed.said if placed else ""}
        return {"kind": "ready", "process": os.getpid(), **known}

    def answer(self, message: Message) -> Message:
        """Score a unit; what goes wrong is part of the answer."""
        unit, asked = unit_of(message), [message["model"], message.get("under")]
        if asked == self._before[0]:
            unit = replace(unit, model=self._before[1])  # the same object, so that it is not merged again
        self._before = asked, unit.model
        with warned() as logged:
            try:
                scored = self._scored(unit)
            except LiveModelError as error:
                if isinstance(error.__cause__, Exception) and lacks_memory(recognised(error.__cause__)):
                    raise  # this process ends, and another one does the unit: the fitness has done nothing wrong
                scored = Scored(error)
            except Exception as error:  # such as settings or a name that do not fit the models
                scored = Scored(recognised(error))
            if isinstance(scored.outcome, Exception):
                traceback.print_exception(scored.outcome)  # into the file of what this worker prints
                if lacks_memory(scored.outcome):
                    scored = Scored(bare(scored.outcome))
                    free()
        return {**scored_message(message["number"], scored), "warnings": list(logged.texts())}

    def _scored(self, unit: Unit) -> Scored:
        if not isinstance(unit.model, Named):
            return self._scorer(unit.under).one(unit)
        started, score = time.perf_counter(), self._fitnesses[unit.split]
        contender = contender_of(model_of(unit.model.what), self._problem, Silent())
        scoring = in_checkpoints_dtype(self._problem.live, score) if unit.written else score
        try:
            outcome = contender.score(scoring, unit.ids)
        finally:
            self._problem.become(None)
        seconds = time.perf_counter() - started
        return Scored(outcome, 0.0, outcome.forward_seconds or seconds, seconds)

    def _scorer(self, under: Mapping[str, Any] | None) -> SerialScorer:
        """Return what scores under some settings; those of the search stay, of others the last."""
        key = digest(under)
        if key not in self._scorers:
            problem, settings, steps = self._problem, self._build["settings"], None
            if under is not None:
                self._scorers = {name: one for name, one in self._scorers.items() if name == digest(None)}
                problem = problem_under(problem, settings, under, Silent())
            elif self._build["learns"]:
                steps = Steps(problem, find_learning(problem, settings, Silent()))
            self._scorers[key] = SerialScorer(problem, self._fitnesses, steps=steps)
        return self._scorers[key]


class _Fitnesses(dict[str, LiveFitness]):
    """The fitness on the items of each split, prepared once a split is asked for."""

    def __init__(self, problem: Any) -> None:
        super().__init__()
        self._problem = problem

    def __missing__(self, split: str) -> LiveFitness:
        if split == APPROXIMATELY:
            self[split] = approximately(self._problem, self["search"])
        else:
            self[split] = live_fitness(self._problem, self._problem.items[split])
        return self[split]


def serve(pipe: Connection) -> None:
    """Build the problem that the first message tells of, then answer all others; end when the pipe is closed."""
    inbox: queue.SimpleQueue[Message] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(pipe, inbox), daemon=True).start()
    try:
        worker = Worker(inbox.get())
    except EvomergeError as error:
        pipe.send_bytes(packed({"kind": "refused", "error": error_message(error)}))
        return
    pipe.send_bytes(packed(worker.ready()))
    while True:
        pipe.send_bytes(packed(worker.answer(inbox.get())))


def _listen(pipe: Connection, inbox: queue.SimpleQueue[Message]) -> None:
    """Put messages into the inbox; end this process once nobody is at the other end, whatever it does then.

    It ends as well where a message cannot be taken in, for lack of memory, say: nobody would hear of another one.
    """
    status = 1
    try:
        while True:
            inbox.put(unpacked(pipe.recv_bytes()))
    except (EOFError, OSError):
        status = 0
    finally:
        os._exit(status)


if __name__ == "__main__":
    for number in Interrupt.SIGNALS:  # meant for the search, which ends its workers itself
        signal.signal(number, lambda *_: None)  # not ignored: what a fitness starts would inherit that
    os.set_inheritable(int(sys.argv[1]), False)  # what a fitness starts must not hold the pipe open
    serve(Connection(int(sys.argv[1])))
