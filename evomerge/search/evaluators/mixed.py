"""What scores the batches of a search: each gets what it asks for, values of the objective or a loss with gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from evomerge.common.limits import TimeLimit
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.search.evaluators.serial import LiveFitness, SerialScorer, Timing
from evomerge.search.evaluators.splits import make_objective
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.learning import Learning
from evomerge.search.loop import Evaluator
from evomerge.trials import Batch, Trial


def make_evaluators(
    problem: Problem,
    fitnesses: Mapping[str, LiveFitness],
    subsets: Mapping[str, Subset],
    learning: Learning | None,
    record: Callable[[Timing], None] = lambda timing: None,
    limit: TimeLimit | None = None,
) -> tuple[Objective, GradientEvaluator | None, Evaluator]:
    """Put together what scores the batches of a search.

    Args:
        problem: what is searched.
        fitnesses: score the live model on the items of a split; here, `search`.
        subsets: choose the items of a split; here, `search`.
        learning: what a gradient learns from; None for a searcher by values.
        record: is told where the time of each candidate and step went.
        limit: of the time of each.

    Returns:
        The objective; the evaluator of gradients, if there are any; and one that gives each batch what it asks for,
        values of the objective or a loss and its gradient.
    """
    score, subset = fitnesses["search"], subsets["search"]
    objective = make_objective(problem, score, subset, limit)
    scorer = SerialScorer(problem.space, problem.merger, score, limit)
    values = ValueEvaluator(scorer, subset, objective, record)
    gradients = learning and GradientEvaluator(problem, learning, record, limit)

    def evaluate(batch: Batch, missing: Sequence[int]) -> Iterable[Trial]:
        return (gradients if batch.gradient and gradients else values)(batch, missing)

    return objective, gradients, evaluate
