"""The numbers of each generation, for trackers: lines of a trial log in, names and numbers out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from evomerge.runs.readable import readable
from evomerge.selection.summary import Summary
from evomerge.trials import Trial


class Generations:
    """Adds up a search, line by line of its log.

    Args:
        metric: the one that the search goes by.
        named: `objective.values`, where there are several.

    Attributes:
        trials: how many there were.
        last: the number of the last generation.
    """

    def __init__(self, metric: str, named: Mapping[str, Any] | None = None) -> None:
        self.trials = self.last = 0
        self._metric, self._named = metric, named
        self._failed = self._items = self._dropped = 0
        self._best: Trial | None = None
        self._each: tuple[float, ...] = ()
        self._open: dict[int, list[Trial]] = {}  # trials of generations that were not told yet

    def take(self, line: Mapping[str, Any]) -> dict[str, float] | None:
        """Take note of a line; return the numbers of the generation that it ends, if it does.

        One that the budget has cut short has none: more budget may fill it.
        """
        if line["kind"] == "trial":
            trial = Trial.from_record({name: value for name, value in line.items() if name != "crc"})
            self.trials += 1
            self._open.setdefault(trial.batch, []).append(trial)
        return self._numbers(line["batch"]) if line["kind"] == "tell" else None

    def _numbers(self, generation: int) -> dict[str, float]:
        self.last = generation
        trials = self._open.pop(generation, [])
        self._items += sum(trial.spent for trial in trials)
        self._failed += sum(trial.status == "failed" for trial in trials)
        values = [trial.full[0] for trial in trials if trial.full and len(trial.full) == 1 and trial.gradient is None]
        losses = [-trial.values[0] for trial in trials if trial.values and trial.gradient is not None]
        for trial in trials:
            if trial.full and trial.gradient is None and (not self._best or trial.full > (self._best.full or ())):
                self._best = trial
        found: dict[str, float] = {"items": self._items, "failed": self._failed}
        self._dropped += sum(trial.status == "censored" for trial in trials)
        found |= {"dropped": self._dropped} if self._dropped else {}
        found |= {"generation/best": max(values)} if values else {}
        if values and not any(trial.status == "censored" for trial in trials):  # else they are those that a race left
            found |= {"generation/mean": sum(values) / len(values)}
        found |= {"loss": sum(losses) / len(losses)} if losses else {}
        if self._best and len(self._best.values or ()) > 1:
            return found | self._of_each(trials)
        if self._best and self._best.values:
            scores = {task: row.get(self._metric) for task, row in self._best.scores.items()}
            found |= {"best": self._best.values[0]}
            found |= {f"best/{task}": score for task, score in scores.items() if score is not None}
        return found

    def _of_each(self, trials: list[Trial]) -> dict[str, float]:
        """Return the best of each of several values so far, by its name."""
        for trial in trials:
            if trial.full:
                self._each = tuple(map(max, zip(self._each or trial.full, trial.full, strict=True)))
        tasks = self._best.scores if self._best else ()
        return {f"best/{name}": value for name, value in readable(self._named, tasks, self._each).items()}


def at_the_end(summary: Summary) -> dict[str, float]:
    """Return what the models of a report are worth: the winner on each task, the others in the mean."""
    numbers = {f"report/{name}": score.mean for name, score in summary.report.items()}
    numbers |= {f"report/winner/{task}": score for task, score in summary.winner.tasks.items()}
    numbers |= {"report/gain": summary.gain.diff, "report/gain_se": summary.gain.se}
    if front := summary.front:
        numbers |= {f"report/front/{name}": score.mean for name, score in front.winner.report.items()}
        numbers |= {"report/hypervolume": front.hypervolume["report"]}
    return {name: value for name, value in numbers.items() if value is not None}
