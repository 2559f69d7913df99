"""What scores the batches of a search: each gets what it asks for, values of the objective or a loss with gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import ADAPTIVE
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.fitness.spread import Spread
from evomerge.problem import Problem
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.racing import Racing, RacingEvaluator
from evomerge.search.evaluators.serial import Timing
from evomerge.search.evaluators.splits import make_objective
from evomerge.search.evaluators.units import Scorer
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.learning import Learning
from evomerge.search.loop import Evaluator
from evomerge.trials import Batch, Trial


def make_evaluators(
    problem: Problem,
    scorer: Scorer,
    subset: Subset,
    learning: Learning | None,
    record: Callable[[Timing], None] = lambda timing: None,
    blocks: int = 1,
    racing: Racing | None = None,
    estimate: Callable[[Outcome], Outcome] | None = None,
) -> tuple[Objective, GradientEvaluator | None, Evaluator]:
    """Put together what scores the batches of a search.

    Args:
        problem: what is searched.
        scorer: scores units of search items, and takes the steps of a gradient.
        subset: chooses these.
        learning: what a gradient learns from; None for a searcher by values.
        record: is told where the time of each candidate and step went.
        blocks: into how many the items of a candidate are cut.
        racing: how candidates by value are raced; None where they are not.
        estimate: makes of an outcome the one on all search items, where values are estimated.

    Returns:
        The objective; the evaluator of gradients, if there are any; and one that gives each batch what it asks for,
        values of the objective or a loss and its gradient.
    """
    objective = make_objective(problem, scorer, subset, blocks)
    adaptive = problem.sampling.by == ADAPTIVE
    spread = Spread(problem.items["search"], problem.goal.metric) if adaptive else None
    plain = ValueEvaluator(scorer, subset, objective, record, blocks, spread, estimate)
    values = RacingEvaluator(plain, scorer, objective, racing, blocks) if racing else plain
    gradients = learning and GradientEvaluator(problem, learning, record, scorer=scorer, blocks=blocks)

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterable[Trial]:
        return (gradients if batch.gradient and gradients else values)(batch, missing)

    return objective, gradients, evaluate
