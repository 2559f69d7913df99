"""The judge: scores finished models on the select and the report split, each of them once; and on tasks held out.

In: coefficients, or the base, or the experts, and a split. Out: outcomes. What is scored is remembered on disk under
all that it depends on (contents of the problem, coefficients, items, kind of machine), so a selection that was cut off
goes on where it was, and the runs of a sweep share what is the same for all of them. Both splits are sampled alike for
every seed, so that runs can be compared. Several models can be begun at once, for a scorer with more than one device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np

from evomerge.common.digests import digest
from evomerge.common.names import dtype_name
from evomerge.fitness.base import Outcome
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem, without_compute
from evomerge.search.evaluators.blocks import begin, blocks_of, outcome_or_raise
from evomerge.search.evaluators.dropping import Items
from evomerge.search.evaluators.units import Model, Scored, Scorer
from evomerge.search.stopping import Interrupt, Stopped
from evomerge.selection.remember import recalled, remembered
from evomerge.space.named import Coefficients, name_coefficients

Asked = tuple[Model, str, Items | None]
"""A model, a split, and a part of its items; None for all of them."""


class Judge:
    """Scores models on the select and the report split, and on the tasks that the search never sees.

    Args:
        problem: what is searched.
        scorer: scores models on items of every split.
        subsets: choose the items of a split.
        interrupt: a request to stop, looked at before every model.
        blocks: into how many the items of a candidate are cut; those of a model here in as large ones.
        ahead: whether the scorer works beside its caller, so that models can be begun before they are asked for.

    Attributes:
        ids: the items of each split by task.
        sizes: their number.
        scored: is told of each model that has been scored, or was remembered, on how many items.
    """

    def __init__(
        self,
        problem: Problem,
        scorer: Scorer,
        subsets: Mapping[str, Subset],
        interrupt: Interrupt,
        blocks: int = 1,
        ahead: bool = False,
    ) -> None:
        self._ahead = ahead
        self._problem, self._scorer, self._interrupt, self._blocks = problem, scorer, interrupt, blocks
        self.ids = {split: subset(0) for split, subset in subsets.items() if split != "search"}
        self.sizes = {split: subsets[split].size for split in self.ids}
        self.scored: Callable[[int], object] = lambda items: None
        self._candidate = subsets["search"].size
        self._cache = problem.opening.cache if problem.fitness.pure else None
        self._surroundings = {**problem.contents, **problem.circumstances}
        self._begun: dict[str, Iterator[Scored]] = {}

    @property
    def negated(self) -> tuple[str, ...]:
        """The rows that constants take away; none where they are of all rows."""
        return self._problem.negated

    @property
    def bounds(self) -> tuple[float, float]:
        """The bounds that the search has for weights."""
        weight = self._problem.space.weight
        return weight.low, weight.high

    def decode(self, x: np.ndarray) -> dict[str, np.ndarray]:
        """Return the coefficients of a point."""
        return self._problem.space.decode(x)

    def constant(self, weight: float) -> dict[str, np.ndarray]:
        """Return coefficients with the same weight everywhere; of what takes away some rows, 0 for the others."""
        return self._problem.constant(weight)

    def named(self, coefficients: Mapping[str, np.ndarray]) -> Coefficients:
        """Return coefficients by the names of groups and rows."""
        return name_coefficients(coefficients, self._problem.space.groups, self._problem.space.rows)

    def within(self, weight: float) -> dict[str, np.ndarray]:
        """Return the coefficients of the space that are nearest to a constant; what the user froze stays frozen."""
        return self._problem.within(weight)

    def same(self, one: Mapping[str, np.ndarray], other: Mapping[str, np.ndarray]) -> bool:
        """Return whether two merges are one: they have the same coefficients wherever there is a task vector."""
        return self._problem.same(one, other)

    def begin(self, asked: Iterable[Asked]) -> None:
        """Let the scorer begin with models that are going to be asked for next; what is remembered needs no scoring."""
        for model, split, part in asked if self._ahead else ():
            ids = self._chosen(split, part)
            description = self._described(self._named(model), ids)
            key, known = digest(description), self._cache is not None and recalled(self._cache, description)
            if key not in self._begun and not known:  # two finalists may be one point
                self._begun[key] = self._begin(model, split, ids)

    def merged(self, coefficients: Mapping[str, np.ndarray], split: str, part: Items | None = None) -> Outcome:
        """Score a merge on a split, or on a part of its items; see the class for what is remembered."""
        return self._once(coefficients, split, self._chosen(split, part))

    def base(self, split: str) -> Outcome:
        """Score the base."""
        return self._once("base", split, self.ids[split])

    def experts(self, split: str) -> Outcome:
        """Score each task with its own expert; tasks without an expert are left out."""
        return self._once("experts", split, self.ids[split])

    def on_search(self, who: Model) -> Outcome:
        """Score a model on all search items, before anything else is scored; of the experts each on its own task."""
        ids = {task: [item.id for item in items] for task, items in self._problem.items["search"].items()}
        return self._once(who, "search", ids, first=True)

    @property
    def other(self) -> tuple[str, str] | None:
        """The dtype that the weights are rounded to, and the one that models are scored in; None where it is one."""
        live = self._problem.live
        return (dtype_name(live.dtype), dtype_name(live.compute)) if live.compute else None

    def as_written(self, coefficients: Mapping[str, np.ndarray]) -> Outcome:
        """Score a merge on the report split in the dtype of the checkpoint, as a search in that dtype would."""
        ids = self.ids["report"]
        compute = partial(self._computed, coefficients, "report", ids, written=True, first=True)
        if self._interrupt.requested:
            raise Stopped
        if self._cache is None:
            return compute()
        return remembered(self._cache, without_compute(self._described(self._named(coefficients), ids)), compute)

    def remember(self, coefficients: Mapping[str, np.ndarray], split: str, outcome: Outcome) -> None:
        """Remember a merge on all items of a split that was scored on parts of them."""
        if self._cache is not None:
            remembered(self._cache, self._described(self._named(coefficients), self.ids[split]), lambda: outcome)

    def _chosen(self, split: str, part: Items | None) -> dict[str, list[str]]:
        return {task: list(chosen) for task, chosen in (part or self.ids[split]).items()}

    def _named(self, model: Model) -> Any:
        """Return a model as it is remembered."""
        if isinstance(model, Mapping):
            return self.named(model)
        return {"experts": self._problem.experts} if isinstance(model, str) and model == "experts" else model

    def _described(self, model: Any, ids: Items) -> dict[str, Any]:
        blocks = blocks_of(ids, self._blocks, self._candidate)
        cut = {"blocks": blocks} if blocks > 1 else {}  # sums over other batches end in other last bits
        return {"model": model, "items": ids, **self._surroundings, **cut}

    def _begin(self, model: Model, split: str, ids: dict[str, list[str]], **how: bool) -> Iterator[Scored]:
        blocks = blocks_of(ids, self._blocks, self._candidate)
        return begin(self._scorer, model, ids, blocks, split=split, **how)

    def _computed(self, model: Model, split: str, ids: dict[str, list[str]], **how: bool) -> Outcome:
        begun = None
        if self._begun and not how:
            begun = self._begun.pop(digest(self._described(self._named(model), ids)), None)
        return outcome_or_raise(next(begun or self._begin(model, split, ids, **how)))

    def _once(self, model: Model, split: str, ids: dict[str, list[str]], **how: bool) -> Outcome:
        if self._interrupt.requested:
            raise Stopped
        compute = partial(self._computed, model, split, ids, **how)
        if self._cache is None:
            outcome = compute()
        else:
            outcome = remembered(self._cache, self._described(self._named(model), ids), compute)
        self.scored(sum(map(len, ids.values())))
        return outcome
