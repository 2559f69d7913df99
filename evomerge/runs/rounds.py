"""The rounds of a comparison: everybody chooses a weight on the select split, the best are scored on the report split.

In: a problem, a contestant, and the log. Out: what it reached, from the log where that is known; else it is scored, and
the log has it before anything acts on it. What goes wrong with one contestant costs that one alone.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import numpy as np

from evomerge.common.errors import CheckpointError, ConfigError, EvomergeError, LiveModelError, LogError
from evomerge.common.limits import TimeLimit
from evomerge.common.names import unknown
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.runs.choices import load_choice
from evomerge.runs.closed_forms import CLOSED, UNIFORM, closed_form
from evomerge.runs.compared import ComparisonLog
from evomerge.runs.contestants import Contestant
from evomerge.runs.engine import Engine
from evomerge.runs.theirs import on_groups
from evomerge.runs.under import problem_under
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.units import Scorer
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.choosing import objective_of
from evomerge.selection.judge import Judge
from evomerge.selection.ranking import Entered, enter, on_split
from evomerge.selection.standings import Cost
from evomerge.selection.workers import Workers

BASE = "base"


@dataclass(frozen=True)
class Rounds:
    """Scores contestants, each of them once.

    Attributes:
        problem: base, experts and items, with task arithmetic as method.
        settings: of a search.
        fitnesses: score the live model on the items of a split.
        subsets: choose these items.
        interrupt: a request to stop.
        limit: of the time of a candidate.
        engine: scores, where there are workers.
        log: knows what was scored.
        reporter: tells the user what goes on.
        starts: the weights of closed forms so far.
    """

    problem: Problem
    settings: Mapping[str, Any]
    fitnesses: Mapping[str, LiveFitness]
    subsets: Mapping[str, Subset]
    interrupt: Interrupt
    limit: TimeLimit
    engine: Engine
    log: ComparisonLog
    reporter: Progress
    starts: dict[str, np.ndarray] = field(default_factory=dict)

    @cached_property
    def objective(self) -> Objective:
        """What decides, for all alike: that of a search on the select split."""
        return objective_of(self._judge(self.problem), self.problem.goal)

    def choice(self, one: Contestant, place: str) -> Entered | str:
        """Return what a contestant reaches on the select split with the best of its weights, or why it reaches nothing.

        Args:
            one: the contestant.
            place: which of how many it is, in words.

        Raises:
            Stopped: the comparison was asked to stop; what was scored is remembered.
        """
        if (known := self.log.choice(one.name)) is not None:
            return known
        try:
            with _of_this_one_alone():
                problem, prepare = self._prepared(one)
                judge, weights = (
                    self._judge(problem, one),
                    {each: self._merge(one, problem, each) for each in one.constants},
                )
                what, items = f"{one.name} chooses its weight ({place})", len(weights) * judge.sizes["select"]
                with self.reporter.counting(what, items) as judge.scored:
                    found = enter(judge, self.objective, weights)
                merge = _seconds(partial(problem.merger.apply, weights[found.constant]))
                self.log.add_cost(one.name, Cost(prepare, merge, problem.rows.nbytes))
        except _Alone as error:
            found = str(error)
        self.log.add_choice(one.name, found)
        return found

    def reported(self, one: Contestant, constant: float) -> Outcome | str:
        """Return the outcome of a contestant with a weight on the report split, or why there is none."""
        if (known := self.log.score(one.name, "report")) is not None:
            return known
        try:
            with _of_this_one_alone():
                problem, _ = self._prepared(one)
                weight = self._merge(one, problem, constant)
        except _Alone as error:
            self.log.add_score(one.name, "report", str(error))
            return str(error)
        return self._scored(one.name, "report", self._judge(problem, one), weight)

    def base(self, split: str) -> Outcome | str:
        """Return the outcome of the base on a split, or why there is none."""
        return self._scored(BASE, split, self._judge(self.problem), None)

    def _judge(self, problem: Problem, one: Contestant | None = None) -> Judge:
        scorer, engine = self._scorer(problem, one), self.engine
        return Judge(problem, scorer, self.subsets, self.interrupt, engine.blocks, ahead=engine.workers > 0)

    def _scorer(self, problem: Problem, one: Contestant | None) -> Scorer:
        """Return what scores merges of a contestant: workers, which are told its settings, or the live model here."""
        if not self.engine.workers:
            return SerialScorer(problem, self.fitnesses, self.limit, self.subsets["search"].size)
        own = one and _own(one)
        return lambda units: self.engine.scorer([replace(unit, under=own) for unit in units])

    def _scored(
        self, name: str, split: str, judge: Judge, coefficients: Mapping[str, np.ndarray] | None
    ) -> Outcome | str:
        if (known := self.log.score(name, split)) is not None:
            return known
        with self.reporter.counting(f"{name} is scored on the {split} split", judge.sizes[split]) as judge.scored:
            found = on_split(judge, coefficients, split, self.problem.goal.report_metric)
        self.log.add_score(name, split, found)
        return found

    def _merge(self, one: Contestant, problem: Problem, constant: float) -> dict[str, np.ndarray]:
        """Return the coefficients of a contestant: those that it brings, or else one weight everywhere."""
        space = problem.space
        if one.told:
            return space.complete({name: on_groups(values, space) for name, values in one.told.items()})
        each = np.array([1.0 if row in one.unscaled else constant for row in space.rows])
        weight = self._start(one.start, problem) if one.start else space.constant(each)["weight"]
        return space.complete({"weight": weight, **{name: np.array(value) for name, value in one.others.items()}})

    def _start(self, start: str, problem: Problem) -> np.ndarray:
        """Return the weights of a closed form; where experts must be scored for it, they are scored once."""
        if start == UNIFORM:
            return np.array(1 / len(problem.space.rows))
        if start not in self.starts:
            workers = Workers(self.engine.scorer, self.engine.blocks) if self.engine.workers else None
            found = closed_form(start, self.settings, problem, self.reporter, workers)
            if found is None:
                raise ConfigError(unknown("start", start, CLOSED))
            self.starts[start] = found
        return self.starts[start]

    def _prepared(self, one: Contestant) -> tuple[Problem, float | None]:
        """Return the problem with the method of a contestant, and the seconds to prepare it, if it was not there."""
        cache, started, before = self.problem.opening.cache, time.perf_counter(), self.problem
        there = len(list(cache.glob("*")))
        problem = problem_under(before, self.settings, _own(one), self.reporter)
        seconds = time.perf_counter() - started
        return problem, seconds if len(list(cache.glob("*"))) > there else None


def _own(one: Contestant) -> dict[str, Any]:
    """Return the settings of a contestant that are others than those of the comparison."""
    own: dict[str, Any] = {"method": dict(one.method), "transform": list(one.transform)}
    if one.told:
        own["space"] = load_choice("space", "tensor")  # each tensor may have numbers of its own
    return own


class _Alone(Exception):
    """What went wrong with one contestant, in a line."""


@contextmanager
def _of_this_one_alone() -> Iterator[None]:
    """Let what goes wrong cost one contestant, where the others may fare better.

    Raises:
        _Alone: something did.
    """
    try:
        yield
    except (Stopped, LiveModelError, CheckpointError, LogError, OSError):
        raise
    except Exception as error:  # whatever a method, a transform or a fitness may raise
        kind = "" if isinstance(error, EvomergeError) else f"{type(error).__name__}: "
        raise _Alone(f"{kind}{error}".splitlines()[0]) from error


def _seconds(merge: Callable[[], object]) -> float:
    """Return how long a merge takes once all is set up."""
    merge()
    taken = []
    for _ in range(2):
        started = time.perf_counter()
        merge()
        taken.append(time.perf_counter() - started)
    return min(taken)  # other work on the machine only adds to it
