"""The judge: scores finished models on the select and the report split, each of them once; and on tasks held out.

In: coefficients, or the base, or the experts, and a split. Out: outcomes. What is scored is remembered on disk under
all that it depends on (contents of the problem, coefficients, items, kind of machine), so a selection that was cut off
goes on where it was, and the runs of a sweep share what is the same for all of them. Both splits are sampled alike for
every seed, so that runs can be compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import numpy as np

from evomerge.common.limits import TimeLimit
from evomerge.common.names import dtype_name
from evomerge.fitness.base import Outcome
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem, without_compute
from evomerge.search.evaluators.serial import LiveFitness
from evomerge.search.evaluators.splits import Scoring, in_checkpoints_dtype, score_experts
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.dropping import Items
from evomerge.selection.remember import remembered
from evomerge.space.named import name_coefficients


class Judge:
    """Scores models on the select and the report split, and on the tasks that the search never sees.

    Args:
        problem: what is searched.
        fitnesses: score the live model on the items of a split.
        subsets: choose the items of a split.
        interrupt: a request to stop, looked at before every model.
        limit: of the time of a candidate; a model may take longer by as much as there are more items.

    Attributes:
        ids: the items of each split by task.
        sizes: their number.
        scored: is told of each model that has been scored, or was remembered, on how many items.
    """

    def __init__(
        self,
        problem: Problem,
        fitnesses: Mapping[str, LiveFitness],
        subsets: Mapping[str, Subset],
        interrupt: Interrupt,
        limit: TimeLimit | None = None,
    ) -> None:
        self._problem, self._fitnesses, self._interrupt = problem, fitnesses, interrupt
        self.ids = {split: subset(0) for split, subset in subsets.items() if split != "search"}
        self._limit = limit or TimeLimit()
        self.sizes = {split: subsets[split].size for split in self.ids}
        self.scored: Callable[[int], object] = lambda items: None
        self._candidate = subsets["search"].size
        self._cache = problem.opening.cache if problem.fitness.pure else None
        self._surroundings = {**problem.contents, **problem.circumstances}

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds that the search has for weights."""
        weight = self._problem.space.weight
        return weight.low, weight.high

    def decode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Return the coefficients of a point."""
        return self._problem.space.decode(x)

    def constant(self, weight: float) -> dict[str, np.ndarray]:
        """Return coefficients with the same weight everywhere."""
        return self._problem.space.constant(weight)

    def within(self, weight: float) -> dict[str, np.ndarray]:
        """Return the coefficients of the space that are nearest to a constant; what the user froze stays frozen."""
        return self.decode(self._problem.space.start({"weight": weight}))

    def merged(self, coefficients: Mapping[str, np.ndarray], split: str, part: Items | None = None) -> Outcome:
        """Score a merge on a split, or on a part of its items; see the class for what is remembered."""
        ids = {task: list(chosen) for task, chosen in (part or self.ids[split]).items()}
        space = self._problem.space
        named = name_coefficients(coefficients, space.groups, space.rows)
        return self._once(named, split, ids, lambda: self._merge(coefficients, self._fitnesses[split], ids))

    @property
    def other(self) -> tuple[str, str] | None:
        """The dtype that the weights are rounded to, and the one that models are scored in; None where it is one."""
        live = self._problem.live
        return (dtype_name(live.dtype), dtype_name(live.compute)) if live.compute else None

    def as_written(self, coefficients: Mapping[str, np.ndarray]) -> Outcome:
        """Score a merge on the report split in the dtype of the checkpoint, as a search in that dtype would."""
        ids = self.ids["report"]
        named = name_coefficients(coefficients, self._problem.space.groups, self._problem.space.rows)
        score = in_checkpoints_dtype(self._problem.live, self._fitnesses["report"])
        compute = partial(self._merge, coefficients, score, ids)
        limited = partial(self._limit.first, compute, self.sizes["report"] / self._candidate)
        if self._interrupt.requested:
            raise Stopped
        if self._cache is None:
            return limited()
        return remembered(self._cache, without_compute(self._described(named, ids)), limited)

    def remember(self, coefficients: Mapping[str, np.ndarray], split: str, outcome: Outcome) -> None:
        """Remember a merge on all items of a split that was scored on parts of them."""
        if self._cache is not None:
            named = name_coefficients(coefficients, self._problem.space.groups, self._problem.space.rows)
            remembered(self._cache, self._described(named, self.ids[split]), lambda: outcome)

    def base(self, split: str) -> Outcome:
        """Score the base."""
        return self._once("base", split, self.ids[split], lambda: self._restored(split))

    def experts(self, split: str) -> Outcome:
        """Score each task with its own expert; tasks without an expert are left out."""
        return self._once(
            {"experts": self._problem.experts},
            split,
            self.ids[split],
            lambda: score_experts(self._problem, self._fitnesses[split], self.ids[split]),
        )

    def _merge(self, coefficients: Mapping[str, np.ndarray], score: Scoring, ids: dict[str, list[str]]) -> Outcome:
        self._problem.merger.apply(coefficients)
        return score(ids)

    def _restored(self, split: str) -> Outcome:
        self._problem.merger.restore()
        return self._fitnesses[split](self.ids[split])

    def _described(self, model: Any, ids: Items) -> dict[str, Any]:
        return {"model": model, "items": ids, **self._surroundings}

    def _once(self, model: Any, split: str, ids: Items, compute: Callable[[], Outcome]) -> Outcome:
        if self._interrupt.requested:
            raise Stopped
        size = sum(map(len, ids.values()))
        share = size / self._candidate
        if self._cache is None:
            outcome = self._limit(compute, share)
        else:
            outcome = remembered(self._cache, self._described(model, ids), lambda: self._limit(compute, share))
        self.scored(size)
        return outcome
