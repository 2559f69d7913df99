"""One generation of a race: what is known of each of its points, block by block, and who is dropped after a block.

In: blocks of items, and what comes of them. Out: the points that go on, and the outcome of each on what it saw. Points
whose trials stand in the log take part with what their trials say, and end where they ended.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.sampling import Sample
from evomerge.search.evaluators.blocks import Items, joined, ordered, whole
from evomerge.search.evaluators.dropping import Halving, Race, Results, value_of
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.evaluators.units import Scored
from evomerge.trials import Batch, Trial

RECENT = 50
"""So many earlier points say what is gained or lost from the first items to all."""


@dataclass(frozen=True)
class Rules:
    """Who stays in a race.

    Attributes:
        weights: of the mean of each task in the value.
        metric: that the value is made of.
        race: who is dropped: by the statistics, or by ranks alone.
        count: how many of the best points are parents.
        past: the trials on all items of earlier points in their order, at least as many, where a point must be among
            the best of these; None where it must be among the best of its generation.
    """

    weights: Mapping[str, float]
    metric: str
    race: Race | Halving
    count: int
    past: Sequence[Trial] | None = None

    @property
    def rival(self) -> Trial | None:
        """The last of the earlier points that are parents as yet."""
        return sorted(self.past, key=_value, reverse=True)[self.count - 1] if self.past else None


@dataclass
class Heat:
    """What is known of the points of a generation.

    Attributes:
        batch: the points, with the trials that the log holds.
        sample: all items.
        parts: the blocks.
        rules: who stays.
        found: what came of each point on the first blocks, by its index.
        said: what came of each that is scored now on all of these, or its error, and where its time went.
        running: the points that are still in the race.
    """

    batch: Batch
    sample: Sample
    parts: Sequence[Items]
    rules: Rules
    found: dict[int, list[Scored]] = field(init=False)
    said: dict[int, Scored] = field(default_factory=dict)
    running: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.found = {
            index: [Scored(outcome) for outcome in self.of_trial(trial)] if trial is not None else []
            for index, trial in enumerate(self.batch.trials)
        }
        self.running = list(self.found)

    def begin(self, number: int) -> list[int]:
        """Return the points that must be scored on a block; those of logged trials that saw no more leave the race."""
        self.running = [i for i in self.running if self.batch.trials[i] is None or len(self.found[i]) > number]
        return [i for i in self.running if len(self.found[i]) <= number]

    def take(self, index: int, scored: Scored) -> None:
        """Take note of what came of a point on its next block."""
        so_far = whole([*self.found[index], _checked(scored)], self.sample.ids)
        if so_far is not None:
            self.said[index] = so_far
        if isinstance(self.said[index].outcome, Exception):
            self.running.remove(index)
        else:
            self.found[index].append(scored)

    def end(self, number: int) -> None:
        """Drop points after a block; those that are among the best, or were scored in full before, stay."""
        rules, count = self.rules, self.rules.count
        rows = {i: self._results(self.outcome(i, number + 1)) for i in self.running}
        spared = {i for i in self.running if (trial := self.batch.trials[i]) is not None and trial.status == "ok"}
        if not rows:
            return
        if isinstance(rules.race, Halving):
            dropped = rules.race.drop({i: value_of(row, rules.weights) for i, row in rows.items()}, spared)
        elif rival := rules.rival:
            against = self._results(self.joined(self.of_trial(rival)[: number + 1]))
            dropped = rules.race.drop(rows, against, spared)
        elif len(rows) > count:
            best = sorted(rows, key=lambda i: -value_of(rows[i], rules.weights))
            dropped = rules.race.drop(rows, rows[best[count - 1]], spared | set(best[:count]))
        else:
            return
        self.running = [i for i in self.running if i not in dropped]

    def seen(self, count: int) -> Sample:
        """Return the items of the first blocks, in their order among all."""
        ids, weights = self.sample.ids, self.sample.weights
        among = {task: {item for part in self.parts[:count] for item in part[task]} for task in ids}
        places = {task: [i for i, item in enumerate(ids[task]) if item in among[task]] for task in ids}
        return Sample(
            {task: [ids[task][i] for i in kept] for task, kept in places.items()},
            {task: [of_all[i] for i in places[task]] for task, of_all in weights.items()},
        )

    def outcome(self, index: int, count: int) -> Outcome:
        """Return the outcome of a point on the first blocks."""
        return self.joined([each.outcome for each in self.found[index][:count] if isinstance(each.outcome, Outcome)])

    def joined(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the outcome on several blocks, in the order of all items."""
        found = ordered(joined(outcomes, self.sample.ids), self.sample.ids)
        return self.seen(len(outcomes)).weighed(found)

    def of_trial(self, trial: Trial) -> list[Outcome]:
        """Return what a trial says of each of the first blocks; a failed one may say nothing."""
        rows = {task: next(iter(metrics.values()), ()) for task, metrics in trial.results.items()}
        known, found = sum(map(len, rows.values())), list[Outcome]()
        sizes = np.cumsum([sum(map(len, part.values())) for part in self.parts])
        count = int(np.searchsorted(sizes, known, "right"))
        place = {task: {item: i for i, item in enumerate(chosen)} for task, chosen in self.seen(count).ids.items()}
        for part in self.parts[:count]:
            results = {
                task: {
                    name: np.array([row[place[task][item]] for item in part[task]], dtype=np.float64)
                    for name, row in trial.results[task].items()
                }
                for task in part
            }
            found.append(Outcome(dict(part), results))
        return found

    def estimates(
        self, dropped: Sequence[int], full: Mapping[int, float], value: Callable[[Outcome], float]
    ) -> dict[int, float]:
        """Return what dropped points are known to be worth, in the order of their worth.

        It is their value on the items that they saw, and beside it what others gained or lost on average from there to
        all items. Each is below all that were scored in full, and below the parents.

        Args:
            dropped: their indices.
            full: the values of the points of this generation that were scored in full, by index.
            value: of an outcome.
        """
        rules = self.rules
        others = [(_value(trial), self.of_trial(trial)) for trial in (rules.past or ())[-RECENT:]] or [
            (worth, [each.outcome for each in self.found[index] if isinstance(each.outcome, Outcome)])
            for index, worth in full.items()
        ]
        bounds = [*full.values(), *(_value(rival) for rival in [rules.rival] if rival)]
        bound = min(bounds, default=math.inf)
        counts, drift = {index: len(self.found[index]) for index in dropped}, dict[int, float]()
        for count in {*counts.values()}:
            moved = [worth - value(self.joined(outcomes[:count])) for worth, outcomes in others]
            drift[count] = float(np.mean(moved)) if moved else 0.0
        known = {index: value(self.outcome(index, count)) + drift[count] for index, count in counts.items()}
        estimates = dict[int, float]()
        for index in sorted(known, key=lambda index: -known[index]):
            bound = estimates[index] = min(known[index], math.nextafter(bound, -math.inf))
        return estimates

    def _results(self, outcome: Outcome) -> Results:
        """Return results whose plain means are those of the outcome, in expectation: times what items count."""
        found = {task: metrics[self.rules.metric] for task, metrics in outcome.results.items()}
        of_all = {task: np.mean(weights) for task, weights in self.sample.weights.items()}
        return {
            task: row * (np.array(outcome.weights[task]) / of_all[task]) if task in of_all else row
            for task, row in found.items()
        }


def _value(trial: Trial) -> float:
    return trial.values[0] if trial.values else -math.inf


def _checked(scored: Scored) -> Scored:
    """Return what came of a block; numbers that are not finite are an error."""
    try:
        if isinstance(scored.outcome, Outcome):
            check_finite(scored.outcome)
    except ArithmeticError as error:
        return replace(scored, outcome=error)
    return scored
