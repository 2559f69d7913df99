"""Models that workers score, in place of the live model of this process.

In: a model by its name, and a pool. Out: a `Contender` as `evaluation.py` has them, which workers have begun with. They
find the model by themselves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.search.evaluators.blocks import begin, blocks_of, outcome_or_raise
from evomerge.search.evaluators.splits import Scoring, make_subsets
from evomerge.search.evaluators.units import Named, Scored, Scorer
from evomerge.selection.contenders import Contender
from evomerge.selection.named import Model, described
from evomerge.selection.remember import recalled


@dataclass(frozen=True)
class Workers:
    """What scores in place of the live model of this process.

    Attributes:
        scorer: scores models by their names.
        blocks: into how many the items of a candidate of a search are cut; those of a model here in as large ones.
    """

    scorer: Scorer
    blocks: int


def at_once(compute: Callable[[], Outcome]) -> Outcome:
    """Return what is computed, within no limit: workers have limits of their own."""
    return compute()


def by_workers(
    workers: Workers,
    model: Model,
    contender: Contender,
    problem: Problem,
    split: str,
    ids: Mapping[str, list[str]],
    written: bool = False,
) -> Contender:
    """Return a contender that workers score; they begin now, unless it is remembered.

    Args:
        workers: score it.
        model: it, by its name.
        contender: the same as this process would score it.
        problem: what is searched.
        split: whose items these are.
        ids: the items by task.
        written: whether it is scored in the dtype of the checkpoint.
    """
    blocks = blocks_of(ids, workers.blocks, make_subsets(problem)["search"].size)
    about = {**contender.about, "blocks": blocks} if blocks > 1 else contender.about
    asked = model.kind if model.kind in ("base", "experts") else Named(described(model))

    def ask() -> Iterator[Scored]:
        return begin(workers.scorer, asked, dict(ids), blocks, split=split, written=written, first=True)

    known = problem.fitness.pure and recalled(problem.opening.cache, {**about, "items": ids, **problem.circumstances})
    begun = None if known else ask()

    def score(_: Scoring, __: Mapping[str, list[str]]) -> Outcome:
        return outcome_or_raise(next(begun or ask()))

    return replace(contender, about=about, score=score)
