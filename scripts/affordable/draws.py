"""Generations drawn from a bank, and what a rule may know of them: answers to search items, never to select items.

A draw takes a generation of a search at random, and candidates of it and of those before and after: as alike as those
that a rule has to tell apart in a search, and another set each time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from affordable.bank import BASE, CONSTANT, EXPERT, Bank
from evomerge.fitness.irt import ItemParameters, fit_items
from evomerge.fitness.items import Item

RIGHT, SMOOTH = "accuracy", "log_probability"
"""Metrics of the bank: right or wrong, and a smooth one."""
OTHERS = ("random", CONSTANT)
"""Kinds of merges whose answers item parameters may be fitted to beside those of base and experts."""


@dataclass(frozen=True)
class Known:
    """What is known of N search items before a generation is scored.

    Attributes:
        bank: where it is from.
        metric: what decides.
        columns: of the search items in the bank (N,).
    """

    bank: Bank
    metric: str
    columns: np.ndarray

    @cached_property
    def shares(self) -> np.ndarray:
        """How much each item counts in the value (N,)."""
        return self.bank.shares("search")

    @cached_property
    def task(self) -> np.ndarray:
        """Of each item, which task it is of (N,)."""
        return self.bank.task[self.columns]

    @cached_property
    def of_tasks(self) -> list[np.ndarray]:
        """The items of each task."""
        return [np.flatnonzero(self.task == t) for t in range(len(self.bank.tasks))]

    @cached_property
    def items(self) -> dict[str, list[Item]]:
        """The items of each task as `Subset` takes them."""
        labels = self.bank.labels[self.columns]
        return {
            str(task): [Item(str(i), "", int(labels[i])) for i in chosen]
            for task, chosen in zip(self.bank.tasks, self.of_tasks, strict=True)
        }

    def answers(self, *kinds: str) -> np.ndarray:
        """Return what decides, of models of some kinds on the search items."""
        return self.bank.responses[self.metric][np.ix_(self.bank.of(*kinds), self.columns)]

    @cached_property
    def disagreement(self) -> np.ndarray:
        """How far base and experts lie apart on each item (N,): the deviation of what decides, over its mean within
        the task.
        """
        return self._apart(self.answers(BASE, EXPERT))

    @cached_property
    def disagreement_of_constants(self) -> np.ndarray:
        """How far constants lie apart on each item (N,): they are merges, as the candidates are."""
        return self._apart(self.answers(CONSTANT))

    def _apart(self, answers: np.ndarray) -> np.ndarray:
        apart = answers.std(axis=0)
        mean = np.array([apart[chosen].mean() for chosen in self.of_tasks])[self.task]
        return np.where(mean > 0, apart / np.where(mean > 0, mean, 1.0), 1.0)

    @cached_property
    def loads(self) -> np.ndarray:
        """One ability for each task, which its items ask for (N, T)."""
        return np.eye(len(self.bank.tasks))[self.task]

    @cached_property
    def parameters_of_experts(self) -> ItemParameters:
        """Item parameters by base and experts alone: Rasch's."""
        return self._fitted(self.bank.of(BASE, EXPERT), sharpness=False)

    @cached_property
    def parameters_of_others(self) -> ItemParameters:
        """Item parameters by base, experts, constants and random merges."""
        return self._fitted(self.bank.of(BASE, EXPERT, *OTHERS), sharpness=True)

    def _fitted(self, rows: np.ndarray, sharpness: bool) -> ItemParameters:
        first = [row for row in self.bank.of(BASE, EXPERT) if row in rows]
        rows = np.concatenate([first, np.setdiff1d(rows, first)])  # base and experts first, so that they are found
        return fit_items(self.bank.responses[RIGHT][np.ix_(rows, self.columns)], self.loads, sharpness)

    @cached_property
    def experts(self) -> slice:
        """The rows of the experts among the abilities of item parameters."""
        return slice(1, 1 + len(self.bank.of(EXPERT)))


@dataclass(frozen=True)
class Draw:
    """A generation of n candidates.

    Attributes:
        known: what is known beforehand.
        rows: of the candidates in the bank (n,).
        parents: how many of them a searcher would learn from.
        rng: what a rule draws with.
    """

    known: Known
    rows: np.ndarray
    parents: int
    rng: np.random.Generator

    @cached_property
    def decides(self) -> np.ndarray:
        """What decides, of each candidate and search item (n, N)."""
        return self._answers(self.known.metric)

    @cached_property
    def right(self) -> np.ndarray:
        """Whether each candidate answered rightly (n, N)."""
        return self._answers(RIGHT)

    @cached_property
    def smooth(self) -> np.ndarray:
        """The log-probability of the right answers (n, N)."""
        return self._answers(SMOOTH)

    @property
    def whole(self) -> int:
        """What scoring all candidates on all items costs, in item evaluations."""
        return self.decides.size

    def _answers(self, metric: str) -> np.ndarray:
        return self.known.bank.responses[metric][np.ix_(self.rows, self.known.columns)]


def generations(
    known: Known, kinds: Sequence[str], size: int, parents: int, seeds: int, since: int = 0
) -> Iterator[Draw]:
    """Yield a draw for each seed.

    Args:
        known: the bank and what decides.
        kinds: of searches.
        size: candidates in a generation.
        parents: how many of them a searcher would learn from.
        seeds: how many draws.
        since: the first generation of a search that is drawn.
    """
    bank = known.bank
    searches = [name for name in bank.searches if name.split()[0] in kinds]
    for seed in range(seeds):
        rng = np.random.default_rng([seed, size])
        own = np.flatnonzero(bank.names == searches[int(rng.integers(len(searches)))])
        last = int(bank.generations[own].max())
        width = 1
        middle = int(rng.integers(min(since, last), last + 1))
        while True:  # generations of few candidates give one with more of its neighbours
            near = own[np.abs(bank.generations[own] - middle) <= width]
            near = near[bank.generations[near] > 0]  # generation 0 holds constants
            if len(near) >= size or width > last:
                break
            width += 1
        yield Draw(known, rng.choice(near, min(size, len(near)), replace=False), parents, rng)
