"""What a search maximises, and what is told of its models in the end: plain data that makes objectives.

In: metrics, weights of tasks, values and limits, as a user names them. Out: an `Objective` on given tasks, its values
and its conditions.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition, read_limit
from evomerge.fitness.objectives import KNEE, PARETO, Objective, counted
from evomerge.fitness.values import Value


@dataclass(frozen=True)
class Valued:
    """What a user says of one of several values.

    Attributes:
        tasks: of which it is made; None for all.
        metric: of the fitness; None for that of the search, and for that of the report where models are judged.
        minimise: whether less is better.
        aggregate: `mean` or `worst` of its tasks.
    """

    tasks: tuple[str, ...] | None = None
    metric: str | None = None
    minimise: bool = False
    aggregate: str = "mean"


@dataclass(frozen=True)
class Goal:
    """What is maximised, and what is told in the end.

    Attributes:
        metric: of the fitness, that of the search.
        report_metric: that by which the winner is chosen and reported.
        aggregate: how scores of tasks become one number; see `objectives.Objective`.
        weights: the weight of each task in the mean; a missing task counts 1.
        normalised: whether scores count from the base (0) to the task's expert (1).
        forget: tasks whose scores are to be low.
        keep: the share of the base's score that the mean over the others must keep then, on `report_metric`.
        valued: by name, the values of a search that has several; every task by itself where the aggregate is `pareto`
            and nothing is named.
        constraints: by the name of a value, a task or a metric, what it must keep, such as `>= 0.98 * base`.
        choose: how the winner is chosen of a front: `knee`, or {at_least: {name: limit}, best: name}.
        sure: by how many standard errors finalists must hold the constraints on the select split.
    """

    metric: str
    report_metric: str
    aggregate: str = "mean"
    weights: Mapping[str, float] | None = None
    normalised: bool = False
    forget: tuple[str, ...] = ()
    keep: float = 0.95
    valued: Mapping[str, Valued] = field(default_factory=dict)
    constraints: Mapping[str, str] = field(default_factory=dict)
    choose: Any = KNEE
    sure: float = 0.0

    @property
    def several(self) -> bool:
        """Whether there are several values."""
        return self.aggregate == PARETO or bool(self.valued)

    def counts(self, tasks: Iterable[str]) -> Mapping[str, float] | None:
        """Return the weight of each task in the value; see `objectives.counted`."""
        return counted(self.weights, self.forget, tasks)

    def values(self, tasks: Iterable[str], metric: str) -> tuple[Value, ...]:
        """Return the values of a search that has several; nothing where it has one.

        Args:
            tasks: those that the search sees.
            metric: of values that name none.
        """
        return tuple(self._value(name, one, tasks, metric) for name, one in self._valued(tasks).items())

    def conditions(self, tasks: Collection[str]) -> tuple[Condition, ...]:
        """Return what a model must keep: the score of controls where something is to be forgotten, and constraints."""
        controls = {task: (self.weights or {}).get(task, 1.0) for task in tasks if task not in self.forget}
        forgetting = (Condition(self.report_metric, controls, self.keep),) if self.forget else ()
        valued, found = self._valued(tasks), list[Condition]()
        for name, text in self.constraints.items():
            free = Valued((name,)) if name in tasks else Valued(metric=name)
            value = self._value(name, valued.get(name, free), tasks, self.report_metric)
            most, share, fixed = read_limit(name, text)
            found.append(Condition(value.metric, value.weights, share, name, most, fixed, value.aggregate))
        return (*forgetting, *found)

    def objective(
        self,
        metric: str,
        tasks: Iterable[str],
        ends: Mapping[str, tuple[float, float]] | None = None,
        base: Outcome | None = None,
        sure: float = 0.0,
    ) -> Objective:
        """Return what makes values of outcomes.

        Args:
            metric: of the fitness.
            tasks: that are scored.
            ends: the scores of base and expert by task, to normalise by.
            base: the outcome of the base on the items that are scored, where there are conditions.
            sure: by how many standard errors constraints must hold.
        """
        chosen, tasks = (metric, self.aggregate), list(tasks)
        values = self.values(tasks, metric)
        conditions = tuple(replace(one, sure=sure) if one.name else one for one in self.conditions(tasks))
        return Objective(*chosen, self.counts(tasks), ends, conditions, base, values)

    def _valued(self, tasks: Iterable[str]) -> Mapping[str, Valued]:
        if self.valued or not self.several:
            return self.valued
        return {task: Valued((task,)) for task in tasks}

    def _value(self, name: str, one: Valued, tasks: Iterable[str], metric: str) -> Value:
        own = list(one.tasks or tasks)
        weights = {task: (self.weights or {}).get(task, 1.0) if own[1:] else 1.0 for task in own}
        return Value(name, one.metric or metric, weights, one.minimise, one.aggregate)
