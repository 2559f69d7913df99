"""Estimates of what a candidate scores on all search items, from its answers to some of them.

In: right and wrong answers of a few models to all search items, and the outcome of a candidate on a sample. Out: that
candidate's scores on all of them, by item response theory (`irt.py`): a form of Polo et al. (2024) or of MERGE³
(Mencattini et al. 2025). Each task has an ability of its own. Where models are as few as base and experts, items differ
by how hard they are (Rasch 1960); where there are more, also by how sharply they tell models apart.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import numpy as np

from evomerge.fitness.base import Outcome

P, GP, MP, GMP = FORMS = ("p-irt", "gp-irt", "mp-irt", "gmp-irt")
MERGED, HALF = (MP, GMP), (GP, GMP)
"""The forms that take the ability of a merge for a weighted sum of those of experts, and those halfway to the mean."""
MANY = 10
"""From so many models on, items differ in sharpness."""


def one_thread() -> AbstractContextManager[object]:
    """Return a context in which sums of matrices are made by one thread: by others they end in other last bits."""
    from threadpoolctl import threadpool_limits  # as scipy, below: settings are checked without it

    return threadpool_limits(1, "blas")


@dataclass(frozen=True)
class Answers:
    """What models have answered to all search items.

    Attributes:
        ids: of the items, by task; N in all.
        rows: by name of a model, 1 for a right answer and 0 for a wrong one, float64 (N,).
        experts: which of them are experts, by name.
    """

    ids: Mapping[str, Sequence[str]]
    rows: Mapping[str, np.ndarray]
    experts: Sequence[str]

    def without(self, name: str) -> Answers:
        """Return those of the other models."""
        rows = {other: row for other, row in self.rows.items() if other != name}
        return Answers(self.ids, rows, [other for other in self.experts if other != name])

    def outcome(self, name: str, metric: str, ids: Mapping[str, Sequence[str]] | None = None) -> Outcome:
        """Return what a model scores on items; on all of them where they are left out."""
        ids = {task: list(chosen) for task, chosen in (ids or self.ids).items()}
        row = self.rows[name]
        return Outcome(ids, {task: {metric: row[places]} for task, places in self.places(ids).items()})

    def places(self, ids: Mapping[str, Sequence[str]]) -> dict[str, np.ndarray]:
        """Return where items stand in a row, int64 (n,) by task; an item that is there twice has two places."""
        found, asked = dict[str, np.ndarray](), Counter[tuple[str, str]]()
        for task, chosen in ids.items():
            places = list[int]()
            for item in chosen:
                places.append(self._places[task, item][asked[task, item]])
                asked[task, item] += 1
            found[task] = np.array(places, int)
        return found

    @cached_property
    def _places(self) -> dict[tuple[str, str], list[int]]:
        every, found = [(task, item) for task, chosen in self.ids.items() for item in chosen], {}
        for place, item in enumerate(every):
            found.setdefault(item, []).append(place)
        return found


class Estimate:
    """Makes the scores on all search items of an outcome on some of them.

    Args:
        form: one of `FORMS`; for those in `MERGED` there must be experts.
        metric: which metric is estimated: 1 for a right answer, 0 for a wrong one.
        answers: of some models to all search items.
        sharp: whether items differ in how sharply they tell models apart; None where the number of models says it.
    """

    def __init__(self, form: str, metric: str, answers: Answers, sharp: bool | None = None) -> None:
        from evomerge.fitness.irt import fit_items  # comes with scipy, and settings are checked without it

        self._form, self._metric, self._answers = form, metric, answers
        names, sizes = list(answers.rows), [len(chosen) for chosen in answers.ids.values()]
        loads = np.repeat(np.eye(len(sizes)), sizes, axis=0)
        self._ends = dict(zip(answers.ids, pairwise([0, *np.cumsum(sizes)]), strict=True))
        sharp = len(names) >= MANY if sharp is None else sharp
        with one_thread():
            self._items = fit_items(np.stack([*answers.rows.values()]), loads, sharp)
        self._experts = self._items.abilities[[names.index(name) for name in answers.experts]]

    def __call__(self, outcome: Outcome) -> Outcome:
        """Return an outcome with one result a task: the estimate of its mean over all items.

        Raises:
            ValueError: an answer is neither right nor wrong.
        """
        from evomerge.fitness.irt import fit_abilities, fit_merges, gp_irt, p_irt

        places = self._answers.places(outcome.items)
        rows = {task: outcome.results[task][self._metric] for task in places}
        seen, answers = np.concatenate([*places.values()]), np.concatenate([*rows.values()])
        if not np.isin(answers, (0, 1)).all():
            raise ValueError(f"{self._metric} of an item is neither 0 nor 1, so nothing can be estimated from it")
        with one_thread():
            if self._form in MERGED:
                (ability,) = fit_merges(self._items, self._experts, seen, answers[None])
            else:
                (ability,) = fit_abilities(self._items, seen, answers[None])
            chances, results = self._items.chances(ability), dict[str, Mapping[str, np.ndarray]]()
        for task, (start, end) in self._ends.items():
            known = chances[start:end], places[task] - start, rows[task]
            score = gp_irt(*known, outcome.weights.get(task)) if self._form in HALF else p_irt(*known)
            results[task] = {self._metric: np.array([score])}
        return Outcome({task: ["estimate"] for task in results}, results)


@dataclass(frozen=True)
class Calibration:
    """How far estimates are from values on all items.

    Attributes:
        form: of the estimates.
        models: how many models were estimated.
        items: by how many of their answers.
        samples: how many samples of each.
        error: the root mean square of the differences.
        plain: that of the means over the same samples.
    """

    form: str
    models: int
    items: int
    samples: int
    error: float
    plain: float

    @property
    def said(self) -> str:
        """The same in words."""
        return (
            f"estimates by {self.form} of {self.models} models, each left out of the fit, from {self.samples} samples "
            f"of {self.items} items are off by {self.error:.4f} (root mean square); the means of these samples, "
            f"stratified by class, are off by {self.plain:.4f}"
        )

    @property
    def worse(self) -> bool:
        """Whether the plain mean is nearer."""
        return self.error > self.plain


def calibrate(
    form: str,
    metric: str,
    answers: Answers,
    samples: Iterable[Mapping[str, Sequence[str]]],
    value: Callable[[Outcome], float],
) -> Calibration | None:
    """Estimate each model from samples of its answers and those of the other models to all items.

    Args:
        form: of the estimates.
        metric: that is estimated.
        answers: of the models; a form in `MERGED` leaves experts out only if another one is left.
        samples: ids by task of each.
        value: makes one number of an outcome.

    Returns:
        How far off they are; None where no model can be left out.
    """
    samples = list(samples)
    models = [name for name in answers.rows if answers.without(name).experts or form not in MERGED]
    off, off_plain, sharp = list[float](), list[float](), len(answers.rows) >= MANY
    for name in models:
        estimate, whole = Estimate(form, metric, answers.without(name), sharp), value(answers.outcome(name, metric))
        for ids in samples:
            outcome = answers.outcome(name, metric, ids)
            off.append(value(estimate(outcome)) - whole)
            off_plain.append(value(outcome) - whole)
    if not off:
        return None
    errors = (float(np.sqrt(np.mean(np.square(each)))) for each in (off, off_plain))
    return Calibration(form, len(models), sum(map(len, samples[0].values())), len(samples), *errors)
