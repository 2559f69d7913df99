"""The best of several models, by a race over blocks of items.

In: names, and a way to score the model of a name on some items. Out: the best of them, the value of each, and on how
many items it was scored. `dropping.py` says who is dropped after each block.

Two things save more, where results are right or wrong. Of models along a line, such as constants, every third is
scored, and one in between only where its neighbours differ. Of many items with log-probabilities, the leader is scored
on all after the first blocks, and the others first on those of which it is unsure (`activity.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import EvomergeError
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.search.evaluators.dropping import Items, Race
from evomerge.selection.activity import Standing, active_first, activity_of
from evomerge.selection.dropping import ACTIVE_ALPHA, ALPHA, FEW, FIRST, LOOKS, STEP
from evomerge.selection.field import Field, Places


@dataclass(frozen=True)
class Chosen:
    """The best of some candidates.

    Attributes:
        name: of the best one.
        outcomes: of those that were scored on all items, on these.
        values: of each; of one that was not scored on all items on those that it was scored on, or as it is predicted
            for all; -inf for one that could not be scored.
        seen: on how many items each was scored.
        spared: on how many items models were not scored, in all, since they were dropped, failed, or were known there.
    """

    name: str
    outcomes: dict[str, Outcome]
    values: dict[str, float]
    seen: dict[str, int]
    spared: int


def choose(
    candidates: Iterable[str],
    score: Callable[[str, Items], Outcome],
    objective: Objective,
    ids: Items,
    begin: Callable[[Iterable[tuple[str, Items]]], object] = lambda asked: None,
    line: bool = False,
    known: Mapping[str, Outcome] | None = None,
) -> Chosen:
    """Choose the best candidate; of equals one that was scored on all items already, then the first.

    Those that are clearly behind are dropped on the way (see `dropping.py`), the best one is scored on all items. Where
    the value is no weighted mean of items, as with `aggregate=worst`, all candidates are scored on all items.

    Args:
        candidates: their names.
        score: scores the one with that name on some items. One that fails, or whose value is no finite number, is never
            chosen.
        objective: makes the value of an outcome.
        ids: all items, by task.
        begin: is told of what is scored next, in that order: a scorer with several devices may begin with all of it.
        line: whether they lie along a line in this order, so that who lies between two is like them where they agree.
        known: the outcomes on all items of some of them.

    Raises:
        EvomergeError: none of them could be scored.
    """
    field = Field(candidates, score, objective.metric, ids, begin, known)
    weights = objective.weights_of(ids)
    contest = _Contest(field, objective, weights, line)
    if weights is None:
        field.ask(dict.fromkeys(field.racing, field.every))
    else:
        contest.run(field.blocks())
    best = contest.completed()
    seen = {name: int(scored.sum()) for name, scored in field.scored.items()}
    values = {name: -math.inf if name in field.failed else contest.values[name] for name in field.rows}
    outcomes = {name: field.outcome(name) for name in field.racing if field.whole(name)}
    whole = {name: one for name, one in (known or {}).items() if name not in field.failed}
    values |= {name: objective(one)[0][0] for name, one in whole.items()}
    paid = sum(items for name, items in seen.items() if name not in whole)
    return Chosen(best, outcomes, values, seen, len(field.every) * len(seen) - paid)


class _Contest:
    """One choice: the models of a field, and what they are worth.

    Attributes:
        values: of those that can be scored.
    """

    def __init__(self, field: Field, objective: Objective, weights: Mapping[str, float] | None, line: bool) -> None:
        self._field, self._objective, self._weights, self._line = field, objective, weights, line
        self.values: dict[str, float] = {}

    def run(self, blocks: Sequence[Places]) -> None:
        """Race over blocks of items; over those of which the reference is unsure first, where that can be told."""
        field, weights = self._field, self._weights or {}
        race = Race({task: len(every) for task, every in field.ids.items()}, weights, len(blocks) - 1, ALPHA)
        seen = np.array([], dtype=int)
        for number, block in enumerate(blocks, 1):
            self._score(block, self._leader if number > FIRST else None)
            seen = np.concatenate([seen, block])
            self._note({name: self._objective(field.known(name, seen))[0][0] for name in field.racing})
            if number == len(blocks) or len(field.racing) < 2:
                continue
            if number <= FIRST and self._tells(seen):
                if number == FIRST:
                    return self._by_activity(seen)
                continue
            self._drop(race.drop({name: field.results(name, seen) for name in field.racing}, spared=self._whole()))

    def completed(self) -> str:
        """Score the best of those that are left on all items, until it is the best of what is known; return it.

        Raises:
            EvomergeError: none could be scored.
        """
        field = self._field
        while field.racing:
            self._note({name: self._objective(field.outcome(name))[0][0] for name in field.racing if field.whole(name)})
            if not field.racing:
                break
            best = max(field.racing, key=lambda name: (round(self.values[name], 12), field.whole(name)))
            if field.whole(best):
                return best
            field.ask({best: field.every})
        raise EvomergeError(
            f"None of {', '.join(field.rows)} could be scored on the select split; the warnings say why."
        )

    @property
    def _leader(self) -> str | None:
        known = [name for name in self._field.racing if name in self.values]
        return max(known, key=lambda name: self.values[name], default=None)

    def _note(self, values: Mapping[str, float]) -> None:
        """Keep values; who has none that is a number leaves the race."""
        for name, value in values.items():
            if math.isfinite(value):
                self.values[name] = value
            else:
                self._field.fail(name)

    def _drop(self, names: Iterable[str]) -> None:
        self._field.racing = [name for name in self._field.racing if name not in set(names)]

    def _whole(self) -> list[str]:
        """Those that were scored on all items: they are not dropped, since they cost no more, and may be the best."""
        return [name for name in self._field.racing if self._field.whole(name)]

    def _tells(self, seen: Places) -> bool:
        """Whether results are right or wrong, and log-probabilities say how sure a model is."""
        field = self._field
        rows = np.stack([field.rows[name][seen] for name in field.racing])
        asked = [field.smooth[name][seen][field.scored[name][seen]] for name in field.racing]
        return len(field.every) >= FEW and bool(
            np.isin(rows, (0, 1)).all() and np.isfinite(np.concatenate(asked)).all()
        )

    def _score(self, places: Places, middle: str | None) -> None:
        """Score who is racing on items; along a line, some of them, and the others where their neighbours differ."""
        field = self._field
        pilots = _pilots(field.racing, middle) if self._line else field.racing
        field.ask(dict.fromkeys(pilots, places))
        racing = list(field.racing)
        places_of = {name: i for i, name in enumerate(racing) if name in set(pilots)}
        wanted = dict[str, Places]()
        for i, name in enumerate(racing):
            if name in places_of:
                continue
            below = [each for each, at in places_of.items() if at < i]
            above = [each for each, at in places_of.items() if at > i]
            wanted[name] = places
            if below and above:
                one, other = field.rows[below[-1]][places], field.rows[above[0]][places]
                field.take(name, places[one == other], below[-1])
                wanted[name] = places[one != other]
        field.ask(wanted)

    def _by_activity(self, seen: Places) -> None:
        """Score the leader on all items, then race over the others, those first of which it is unsure."""
        field, weights = self._field, [(self._weights or {})[task] for task in self._field.ids]
        while reference := self._leader:
            field.ask({reference: field.every})
            if reference in field.racing:
                break
        else:
            return
        activity = activity_of(field.rows[reference], field.smooth[reference], field.tasks)
        value = self._objective(field.outcome(reference))[0][0]
        race = Race({}, {}, LOOKS, ACTIVE_ALPHA)
        for part in [*active_first(activity, np.setdiff1d(field.every, seen), LOOKS), None]:
            rows = {name: field.rows[name] for name in [reference, *field.racing]}
            standing = Standing(rows, seen, activity, field.tasks, weights)
            self._note({name: value + standing.values[name] for name in field.racing})
            if part is None or len(field.racing) < 2:
                break
            self._drop(race.spend(standing.chances(field.racing), self._whole()))
            self._score(part, reference)
            seen = np.concatenate([seen, part])


def _pilots(names: Sequence[str], middle: str | None) -> list[str]:
    """Return every third of some models along a line, counted from one of them, and both ends."""
    start = names.index(middle) % STEP if middle in names else 0
    last = len(names) - 1
    return [name for i, name in enumerate(names) if i % STEP == start or i in (0, last)]
