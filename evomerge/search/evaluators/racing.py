"""The racing evaluator: a generation is scored block by block, and candidates that fall behind are dropped on the way.

In: a batch of points whose values a searcher asks for. Out: their trials. Items are cut into blocks, at random and with
the share of each task, the same blocks for all candidates. After each block those are dropped that paired differences
show to be hardly among the parents, the best points by which the searcher goes (`dropping.py` has the statistics). They
become censored trials: results on the items that they saw, and an estimate in place of the value. The others have been
scored on all items, and their trials are as if nobody had raced.

Where races halve, ranks decide and no evidence is asked for: after an eighth of the items, a quarter and a half, the
worse part of the points is dropped, in equal shares, until as many are left as the searcher moves to, or one where it
compares generations. With one of eight left this is sequential halving (Karnin, Koren and Somekh 2013).

Decisions depend on results alone. Those of trials that the log holds are taken from there, so a generation that was cut
off anywhere ends as it would have ended. One of which the budget leaves out a part is not raced.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.search.evaluators.blocks import Items, blocks_of, cut, ordered, scored_whole
from evomerge.search.evaluators.dropping import Halving, Race, merged, most_blocks, shuffled_blocks
from evomerge.search.evaluators.heat import Heat, Rules
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.searchers.base import Parents
from evomerge.trials import Batch, Trial

logger = logging.getLogger(__name__)

LEAST, TOGETHER = 3, 8
"""The fewest items of a task and of all in a block: fewer than where a winner is chosen, since parents are many, and no
larger share of them is lost (experiments/racing.md)."""
SINGLE = "of one point at a time there is no better half (searcher.batch=8)"


@dataclass(frozen=True)
class Racing:
    """How generations are raced.

    Attributes:
        alpha: the share of the parents that may be dropped by mistake, about; None to drop by ranks alone.
        looks: after how many blocks candidates may be dropped; fewer where there are few items.
        parents: says which points the searcher goes by, of the batch that was asked last; None where it does not say.
        stopping: whether somebody has asked to stop; looked at after each candidate and block.
    """

    alpha: float | None
    looks: int
    parents: Callable[[], Parents | None]
    stopping: Callable[[], bool] = lambda: False

    def sizes(self, ids: Mapping[str, Sequence[str]]) -> list[int]:
        """Return how large blocks are beside each other; one alone where items are too few for a race."""
        most = most_blocks([len(chosen) for chosen in ids.values()], LEAST, TOGETHER)
        if self.alpha is not None:
            return [1] * min(self.looks + 1, most)
        return [1, *(2**look for look in range(min(self.looks, most.bit_length() - 1)))]

    def parts(self, ids: Mapping[str, Sequence[str]], draw: int) -> list[Items]:
        """Return the blocks of a batch, in a random order that depends on a number."""
        sizes = self.sizes(ids)
        equal = iter(shuffled_blocks(ids, sum(sizes), draw))
        return [merged(list(islice(equal, size))) for size in sizes]


def hindrance(racing: Racing, objective: Objective, ids: Mapping[str, Sequence[str]]) -> str:
    """Return why generations on such items cannot be raced; nothing where they can."""
    if objective.weights_of(ids) is None:
        return "the value is no weighted mean over items (objective.aggregate=worst, objective.forget)"
    return "" if len(racing.sizes(ids)) > 1 else f"{sum(map(len, ids.values()))} items are too few (fitness.items)"


class RacingEvaluator:
    """Scores the points of a batch by a race.

    Args:
        plain: chooses items, scores what is not raced, and makes trials of outcomes.
        score: scores units of search items.
        objective: makes values of outcomes.
        racing: how.
        blocks: into how many units the items of a candidate are cut.
    """

    def __init__(
        self,
        plain: ValueEvaluator,
        score: Scorer,
        objective: Objective,
        racing: Racing,
        blocks: int = 1,
    ) -> None:
        self._plain, self._score, self._objective = plain, score, objective
        self._racing, self._blocks = racing, blocks
        self._past: list[Batch] = []  # whose points may count beside those of the next batch; the loop fills in trials
        self._said: set[str] = set()

    def __call__(self, batch: Batch, missing: Sequence[int]) -> Iterable[Trial]:
        """Return the trials of the missing points in order, once the race has ended, where there is one."""
        parents = self._racing.parents()
        past = self._past[-parents.earlier :] if parents and parents.earlier else []
        self._past = [*past, batch]
        heat = self._heat(batch, parents, past) if missing and len(missing) == len(batch.missing) else ""
        if isinstance(heat, Heat):
            return self._raced(heat, missing)
        if heat and heat not in self._said:
            self._said.add(heat)
            logger.warning("Generation %d is not raced, nor are others like it: %s.", batch.index, heat)
        return self._plain(batch, missing)

    def _heat(self, batch: Batch, parents: Parents | None, past: Sequence[Batch]) -> Heat | str:
        """Return the race of a batch; or why there is none, which may be nothing: all are among the best so far."""
        sample = self._plain.sample(batch)
        ids = sample.ids
        weights = self._objective.weights_of(ids)
        if parents is None:
            return "the searcher does not say which points it goes by"
        if weights is None or hindrance(self._racing, self._objective, ids):
            return hindrance(self._racing, self._objective, ids)
        scored = [trial for one in past for trial in one.trials if trial is not None and trial.values]
        full = [trial for trial in scored if trial.full]
        if any(dict(trial.items) != ids for trial in full):
            return "earlier candidates were scored on other items"
        rules = self._rules(parents, full, len(scored), len(batch.points), ids, weights)
        return Heat(batch, sample, self._racing.parts(ids, batch.index), rules) if isinstance(rules, Rules) else rules

    def _rules(
        self,
        parents: Parents,
        full: Sequence[Trial],
        scored: int,
        points: int,
        ids: Mapping[str, Sequence[str]],
        weights: Mapping[str, float],
    ) -> Rules | str:
        """Return who stays in a race of so many points; or why nobody is dropped, which may need no word."""
        metric, looks = self._objective.metric, len(self._racing.sizes(ids)) - 1
        within = parents.earlier is None  # the best of this batch alone count
        if self._racing.alpha is None:
            least = parents.count if within else 1
            if points <= least:
                return parents.all_count if within else SINGLE
            past = None if within else full
            count = parents.count if within else min(parents.count, max(len(full), 1))
            return Rules(weights, metric, Halving(points, least, looks), count, past)
        among = points if within else scored
        if parents.count >= among or (not within and len(full) < parents.count):
            return parents.all_count
        sizes = {task: len(chosen) for task, chosen in ids.items()}
        race = Race(sizes, weights, looks, self._racing.alpha * parents.count / among * points)
        return Rules(weights, metric, race, parents.count, None if within else full)

    def _raced(self, heat: Heat, missing: Sequence[int]) -> Iterator[Trial]:
        points = {index: heat.batch.points[index] for index in missing}  # units of a candidate share the object
        open_calls, size = list[Iterator[Scored]](), sum(map(len, heat.sample.ids.values()))
        for number, part in enumerate(heat.parts):
            todo, pieces = heat.begin(number), cut(part, blocks_of(part, self._blocks, size))
            units = [Unit(points[index], piece) for index in todo for piece in pieces]
            answers = scored_whole(self._score(units), [len(pieces)] * len(todo), part)
            open_calls.append(answers)
            for index, scored in zip(todo, answers, strict=False):
                heat.take(index, scored)
                if self._racing.stopping():
                    return
            if number + 1 < len(heat.parts):
                heat.end(number)
        yield from self._trials(heat, missing)
        for answers in open_calls:  # to their ends: the scorer learns that all was taken
            deque(answers, maxlen=0)

    def _trials(self, heat: Heat, missing: Sequence[int]) -> Iterator[Trial]:
        logged = {trial.index: trial for trial in heat.batch.trials if trial is not None}
        made = {index: self._trial(heat, index) for index in missing}
        scored = {index: trial for index, trial in sorted((logged | made).items()) if trial.status != "failed"}
        full = {index: trial.values[0] for index, trial in scored.items() if index in heat.running and trial.values}
        dropped = [index for index in scored if index not in heat.running]
        estimates = heat.estimates(dropped, full, lambda outcome: self._objective(outcome)[0][0])
        for index, trial in made.items():
            known = estimates.get(index)
            yield trial if known is None else replace(trial, status="censored", values=(known,))

    def _trial(self, heat: Heat, index: int) -> Trial:
        """Return the trial of a point as if the items that it saw were all there are."""
        known, said = heat.found[index], heat.said[index]
        seen = heat.seen(len(known) + isinstance(said.outcome, Exception))
        if isinstance(said.outcome, Outcome):
            said = replace(said, outcome=ordered(said.outcome, seen.ids))
        trial = self._plain.trial(heat.batch, index, seen, said)
        if trial.status != "failed" or not known:
            return trial
        before = heat.outcome(index, len(known)).results  # others were held against it, which a replay must know
        results = {task: {name: row.tolist() for name, row in metrics.items()} for task, metrics in before.items()}
        return replace(trial, results=results)
