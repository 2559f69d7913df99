"""The field of a race: what each of its models has scored, item by item.

In: names, and a way to score the model of a name on some items. Out: rows of results over all items, of which some were
taken over from another model; and the outcomes of those that were scored on every item.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from evomerge.common.errors import LiveModelError
from evomerge.fitness.base import Outcome
from evomerge.search.evaluators.blocks import joined, ordered
from evomerge.search.evaluators.dropping import Items
from evomerge.search.stopping import Stopped
from evomerge.selection.dropping import cut

logger = logging.getLogger(__name__)

SMOOTH = "log_probability"
"""The metric that says, beside right or wrong, how near an item is to the other."""
Places = np.ndarray
"""(n,) places of items among all: those of the first task, then those of the next."""


class Field:
    """Scores models on items, and knows what they have scored.

    Args:
        names: of the models.
        score: scores the one with that name on some items.
        metric: whose results are kept.
        ids: all items, by task.
        begin: is told of what is scored next, in that order.
        known: outcomes on all items of some of them, which need not be scored again.

    Attributes:
        racing: those that may still be chosen; one that fails, or whose results are not finite, leaves.
        failed: those that cannot be scored.
        ids: all items, by task.
        every: the places of all items, (N,).
        tasks: the number of the task of each, (N,).
        rows: float64 (N,) of each model; NaN where nothing is known.
        smooth: the same, of `SMOOTH`; NaN where the fitness has no such metric.
        scored: bool (N,) of each model: on which items it was scored.
    """

    def __init__(
        self,
        names: Iterable[str],
        score: Callable[[str, Items], Outcome],
        metric: str,
        ids: Items,
        begin: Callable[[Iterable[tuple[str, Items]]], object],
        known: Mapping[str, Outcome] | None = None,
    ) -> None:
        self.racing, self.failed = list(names), set[str]()
        self._score, self._metric, self._begin = score, metric, begin
        self.ids = ids
        self._items = [(task, item) for task, chosen in ids.items() for item in chosen]
        self.every = np.arange(len(self._items))
        self.tasks = np.repeat(np.arange(len(ids)), [len(chosen) for chosen in ids.values()])
        self.rows = {name: np.full(len(self.every), np.nan) for name in self.racing}
        self.smooth = {name: np.full(len(self.every), np.nan) for name in self.racing}
        self.scored = {name: np.zeros(len(self.every), dtype=bool) for name in self.racing}
        self._outcomes: dict[str, list[Outcome]] = {name: [] for name in self.racing}
        for name, outcome in (known or {}).items():
            self._keep(name, outcome, self.every)

    def blocks(self) -> list[Places]:
        """Return the places of the items of each block, in a random order that is the same for every search."""
        places = {task: list(map(str, self.every[self.tasks == number])) for number, task in enumerate(self.ids)}
        return [np.array([int(place) for of in part.values() for place in of], dtype=int) for part in cut(places)]

    def ask(self, wanted: Mapping[str, Places]) -> None:
        """Score models on items, each of them once."""
        missing = {name: places[~self.scored[name][places]] for name, places in wanted.items() if name in self.racing}
        parts = {name: self._part(places) for name, places in missing.items() if len(places)}
        self._begin(list(parts.items()))
        for name, part in parts.items():
            try:
                outcome = self._score(name, part)
                self._keep(name, outcome, missing[name])
            except (Stopped, LiveModelError):
                raise
            except Exception as error:  # whatever a model or a user's fitness may raise: it costs this candidate
                logger.warning("%s could not be scored and is not chosen: %s: %s", name, type(error).__name__, error)
                self.fail(name)
                continue
            if not np.isfinite(self.rows[name][missing[name]]).all():
                self.fail(name)

    def fail(self, name: str) -> None:
        """Let a model leave that cannot be scored."""
        self.racing.remove(name)
        self.failed.add(name)

    def take(self, name: str, places: Places, other: str) -> None:
        """Take the results on items over from another model, but for those on which it was scored."""
        free = places[~self.scored[name][places]]
        self.rows[name][free] = self.rows[other][free]

    def whole(self, name: str) -> bool:
        """Whether a model was scored on all items."""
        return bool(self.scored[name].all())

    def outcome(self, name: str) -> Outcome:
        """Return what a model has scored, in the order of all items."""
        return ordered(joined(self._outcomes[name], self.ids), self.ids)

    def results(self, name: str, places: Places) -> dict[str, np.ndarray]:
        """Return what is known of a model on some items of every task, taken over or scored, by task."""
        of = self.tasks[places]
        return {task: self.rows[name][places[of == number]] for number, task in enumerate(self.ids)}

    def known(self, name: str, places: Places) -> Outcome:
        """Return the same as an outcome with one metric."""
        of = self.tasks[places]
        items = {
            task: [self._items[place][1] for place in places[of == number]] for number, task in enumerate(self.ids)
        }
        return Outcome(items, {task: {self._metric: row} for task, row in self.results(name, places).items()})

    def _part(self, places: Places) -> dict[str, list[str]]:
        part = dict[str, list[str]]()
        for place in places:
            task, item = self._items[place]
            part.setdefault(task, []).append(item)
        return part

    def _keep(self, name: str, outcome: Outcome, asked: Places) -> None:
        free: dict[tuple[str, str], list[int]] = {}
        for place in reversed(asked.tolist()):  # an item that is there twice has two places, one after the other
            free.setdefault(self._items[place], []).append(place)
        for task, chosen in outcome.items.items():
            places, metrics = [free[task, item].pop() for item in chosen], outcome.results[task]
            self.rows[name][places] = metrics[self._metric]
            if SMOOTH in metrics:
                self.smooth[name][places] = metrics[SMOOTH]
            self.scored[name][places] = True
        self._outcomes[name].append(outcome)
