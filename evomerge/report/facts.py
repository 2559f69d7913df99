"""The numbers of a run that its report shows.

In: a `Run`, complete or not. Out: `RunFacts`: what was scored and when, what the finalists reached, how far the numbers
fell from split to split, and where the time went. Trials are numbered from 1 in the order in which their points were
asked.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import cached_property
from itertools import accumulate

import numpy as np

from evomerge.fitness.base import negated, title
from evomerge.fitness.draws import DISAGREEMENT
from evomerge.fitness.objectives import counted, task_weights
from evomerge.report.records import Dot, Finalist, SplitSizes
from evomerge.runs.directory import Run
from evomerge.runs.objectives import normalised
from evomerge.selection.front import Front
from evomerge.selection.noise import Noise, noise_of
from evomerge.selection.raced import Raced, raced
from evomerge.trials import Batch, Trial

MODELS = {"base": "base", "best_constant": "best constant", "winner": "winner", "experts": "experts"}
"""The rows of a summary's `report`, and what people see."""


class RunFacts:
    """What a report says of one run.

    Args:
        run: the run.
    """

    def __init__(self, run: Run) -> None:
        self.run = run
        self.name = run.path.resolve().name
        self.settings, self.summary = run.settings, run.summary
        self.forget: Sequence[str] = run.settings["objective"].get("forget") or ()
        self.metric: str = negated(run.settings["fitness"]["metric"], self.forget)
        self.report_metric: str = run.summary.metric if run.summary else run.settings["fitness"]["report_metric"]
        self.measures: Mapping[str, str] = run.summary.measures if run.summary else {}
        self.plain: str = title(self.report_metric, self.measures)
        self.measured: str = negated(self.plain, self.forget)
        self.aggregate: str = run.settings["objective"]["aggregate"]
        self.normalised: bool = normalised(run.settings)

    @property
    def front(self) -> Front | None:
        """The front of a search with several values; None before it is complete, and where there is one value."""
        return self.summary.front if self.summary else None

    @cached_property
    def value_names(self) -> list[str]:
        """What the values of a search with several are called; none where there is one, or nothing was scored yet."""
        trial = next((dot.trial for dot in self.scored if len(dot.trial.values or ()) > 1), None)
        if trial is None:
            return []
        return list(self.settings["objective"].get("values") or trial.scores)  # else every task is one

    def metric_of(self, name: str) -> str:
        """Return the metric of one of several values in the search."""
        given = (self.settings["objective"].get("values") or {}).get(name)
        return (given.get("metric") if isinstance(given, Mapping) else None) or self.metric

    @property
    def approximate(self) -> str | None:
        """The narrower dtype in which candidates are scored; None where it is the winner's, as in earlier versions."""
        return self.settings["fitness"].get("approximate")

    @property
    def drawn_by_experts(self) -> bool:
        """Whether search items are drawn by what base and experts say of them."""
        return self.settings["fitness"].get("sampling") == DISAGREEMENT

    @property
    def estimate(self) -> str | None:
        """How values of candidates are estimated; None where they are those of samples, as in earlier versions."""
        return self.settings["fitness"].get("estimate")

    @property
    def constraints(self) -> Mapping[str, str]:
        """What a winner must keep, by the name of a value or a task; runs of earlier versions have none."""
        return self.settings["objective"].get("constraints") or {}

    @property
    def minimised(self) -> list[str]:
        """The values of which less is better."""
        given = self.settings["objective"].get("values") or {}
        return [name for name, one in given.items() if isinstance(one, Mapping) and one.get("minimise")]

    @cached_property
    def numbered(self) -> list[tuple[int, Batch, Trial]]:
        """Every trial with its number and its batch."""
        return [
            (end - len(batch.points) + trial.index + 1, batch, trial)
            for end, batch in zip(self._ends, self.run.batches, strict=True)
            for trial in batch.trials
            if trial is not None
        ]

    @cached_property
    def scored(self) -> list[Dot]:
        """The trials that have a value of the fitness."""
        return [Dot(n, t.full[0], t) for n, batch, t in self.numbered if t.full and not batch.gradient]

    @cached_property
    def censored(self) -> list[Dot]:
        """The trials that races dropped, with what they are known to be worth."""
        return [Dot(n, t.values[0], t) for n, _, t in self.numbered if t.values and not t.full]

    @cached_property
    def raced(self) -> Raced | None:
        """What races have saved; None where nobody was dropped."""
        return raced(self.run.batches)

    @cached_property
    def losses(self) -> list[Dot]:
        """The steps of a gradient: the loss of each, which is minimised."""
        return [Dot(n, -t.values[0], t) for n, batch, t in self.numbered if t.values and batch.gradient]

    @cached_property
    def failed(self) -> list[tuple[int, Trial]]:
        """The trials without a value, with their numbers."""
        return [(n, trial) for n, _, trial in self.numbered if not trial.values]

    @property
    def marks(self) -> Mapping[str, Sequence[str]]:
        """What is otherwise in rows of the report than their names say."""
        return self.summary.marks if self.summary else {}

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The bounds of each variable, as far as they are known: summaries of version 0.2 have none."""
        found = dict(self.settings["space"]["bounds"] or {}) | dict(self.summary.bounds if self.summary else {})
        return {
            name: (-math.inf if low is None else low, math.inf if high is None else high)
            for name, (low, high) in found.items()
        }

    @property
    def done(self) -> int:
        """How many trials there are."""
        return len(self.numbered)

    @property
    def last(self) -> int:
        """The number of the last trial."""
        return self.numbered[-1][0] if self.numbered else 0

    @cached_property
    def loss(self) -> str:
        """What the loss of the gradient steps is called."""
        rows = next((dot.trial.scores for dot in self.losses), {})
        return next(iter(next(iter(rows.values()), {})), "loss").replace("_", " ")

    @cached_property
    def best_so_far(self) -> list[tuple[int, float]]:
        """The number of each trial that was better than all before it, with its value, and last where things stand."""
        found: list[tuple[int, float]] = []
        for dot in self.scored:
            if not found or dot.value > found[-1][1]:
                found.append((dot.number, dot.value))
        if found and found[-1][0] < self.scored[-1].number:
            found.append((self.scored[-1].number, found[-1][1]))
        return found

    @property
    def by_value(self) -> bool:
        """Whether the searcher went by values, beyond those of the warm start."""
        return any(dot.trial.batch > 0 or not self.warm for dot in self.scored)

    @cached_property
    def smooth_losses(self) -> list[tuple[int, float]]:
        """The mean loss of the last ten steps, at the number of each step."""
        values = [dot.value for dot in self.losses]
        return [(dot.number, float(np.mean(values[max(i - 9, 0) : i + 1]))) for i, dot in enumerate(self.losses)]

    @cached_property
    def means(self) -> list[tuple[int, int, float]]:
        """The first and last trial of each batch of values with two or more of them, and their mean; none of a batch of
        which a race has dropped some, since what is left is no sample of it.
        """
        raced = {dot.trial.batch for dot in self.censored}
        batches: dict[int, list[Dot]] = {}
        for dot in self.scored:
            if dot.trial.batch not in raced:
                batches.setdefault(dot.trial.batch, []).append(dot)
        return [
            (dots[0].number, dots[-1].number, float(np.mean([dot.value for dot in dots])))
            for dots in batches.values()
            if len(dots) > 1
        ]

    @cached_property
    def noise(self) -> Noise | None:
        """How much of the last values is the sample of items; None where values are no means over items."""
        if self.summary and self.summary.noise:
            return self.summary.noise
        others = self.normalised or self.forget or self.value_names or self.constraints or self.estimate
        if self.aggregate != "mean" or others:
            return None
        return noise_of(self.run.batches, self.metric, self.settings["objective"]["weights"])

    @property
    def complete(self) -> bool:
        """Whether the search has ended and its winner was scored, and nothing was added since."""
        return self.summary is not None and self.summary.trials >= self.done

    @property
    def warm(self) -> bool:
        """Whether the first batch is that of a warm start, which tries constants (see `searchers/warm.py`)."""
        return self.settings["start"] == "constants" and len(self.run.coordinates) > 1

    @property
    def best_constant_on_select(self) -> float | None:
        """What the best constant reached on the select split."""
        return self.summary.select.constants[self.summary.select.constant] if self.summary else None

    @cached_property
    def finalists(self) -> list[Finalist]:
        """Those of the final selection; none before it."""
        if self.summary is None:
            return []
        chosen = self.summary.select
        found = []
        numbers = {(trial.batch, trial.index): (number, trial) for number, _, trial in self.numbered}
        for name, value in chosen.finalists.items():
            number, trial = numbers.get(chosen.trials.get(name) or (-1, -1), (None, None))
            search = self.on_report_metric(trial) if trial else None
            found.append(Finalist(name, value, chosen.seen.get(name), number, search, name == chosen.winner))
        return found

    def on_report_metric(self, trial: Trial) -> float | None:
        """Return what a trial reached on its search items in the metric that decides; None if it has no such score."""
        return self.together({task: row.get(self.report_metric) for task, row in trial.scores.items()})

    def together(self, tasks: Mapping[str, float | None]) -> float | None:
        """Return one number for all tasks as the objective has it; None if one is missing, or if it is normalised.

        Normalised values of two splits lie between other ends, so they are not compared.
        """
        scores = {task: score for task, score in tasks.items() if score is not None}
        if self.normalised or not scores or len(scores) < len(tasks):
            return None
        if self.aggregate == "worst":
            return min(scores.values())
        weights = self.shares(scores)
        return sum(weights[task] * score for task, score in scores.items())

    def shares(self, tasks: Mapping[str, object]) -> dict[str, float]:
        """Return the share of each task in the mean."""
        return task_weights(counted(self.settings["objective"]["weights"], self.forget, tasks), tasks)

    @cached_property
    def optimism(self) -> dict[str, SplitSizes]:
        """The winner, the best constant and their difference on each split; empty before the search is complete, and
        where there are several values. What a model is worth on select that violates constraints, or keeps too little
        where something is to be forgotten, is no score: the winner has none there if it does, and the best constant
        none where anything is to be kept, since it may.
        """
        if self.summary is None or self.front:
            return {}
        chosen, limits, kept = self.summary.select, self.summary.limits, self.summary.forgetting
        scored = (limits is None or limits.held) and not (kept and kept.lacks(kept.select))
        won = next((f for f in self.finalists if f.winner), None)
        constant = next((d for d in self.scored if d.trial.batch == 0 and self._is_constant(d, chosen.constant)), None)
        winner = SplitSizes(
            won and won.search,
            chosen.value if scored else None,
            self.together(self.summary.winner.tasks),
        )
        best = SplitSizes(
            self.on_report_metric(constant.trial) if constant else None,
            None if self.constraints or self.forget else chosen.constants[chosen.constant],
            self.together(self.summary.best_constant.tasks),
        )
        return {"winner": winner, "best constant": best, "gain": winner.less(best)}

    @cached_property
    def items(self) -> dict[str, dict[str, int]]:
        """How many items a candidate is scored on, the last one where samples grow, {"search": {task: n}}; the other
        splits are known in sum only.
        """
        trial = next((dot.trial for dot in reversed(self.scored)), None)
        return {"search": {task: len(ids) for task, ids in trial.items.items()}} if trial else {}

    @cached_property
    def seconds(self) -> dict[str, float]:
        """Where the time of all candidates went: merge, forward (with backward, for steps of a gradient) and other."""
        merge, forward, total = (sum(row[n] for row in self.run.timings) for n in ("merge", "forward", "total"))
        return {"merge": merge, "forward": forward, "other": max(total - merge - forward, 0.0)}

    @property
    def pace(self) -> float | None:
        """Candidates a minute, of the time that candidates took."""
        total = sum(self.seconds.values())
        return 60 * len(self.run.timings) / total if total > 0 else None

    def standing(self) -> tuple[str, np.ndarray] | None:
        """Return the point where a search stands that has no winner yet, and what it is: the best trial so far, or the
        latest step of a gradient, whose losses are on other inputs each time.
        """
        last = next((b for b in reversed(self.run.batches) if any(t and t.full for t in b.trials)), None)
        if last is None or self.value_names:  # of several values none is where it stands
            return None
        if last.gradient:
            return f"step {self.losses[-1].number}", last.points[0]
        best = max(self.scored, key=lambda dot: dot.value)
        return f"candidate {best.number}, the best so far", self._point(best)

    @cached_property
    def _ends(self) -> list[int]:
        """The number of the last point of each batch."""
        return list(accumulate(len(batch.points) for batch in self.run.batches))

    def _point(self, dot: Dot) -> np.ndarray:
        return self.run.batches[dot.trial.batch].points[dot.trial.index]

    def _is_constant(self, dot: Dot, constant: str) -> bool:
        if self.summary and self.summary.forgetting and self.summary.forgetting.negated:
            return False  # of some rows alone, and coordinates may be of several
        weights = [
            x for name, x in zip(self.run.coordinates, self._point(dot), strict=True) if name.startswith("weight/")
        ]
        return self.warm and np.allclose(weights, float(constant))
