"""The ensemble of the experts' outputs: what a merge is held against that costs one model's time instead of K models'.

In: a problem whose fitness gives probabilities of classes. Out: a `Contender`: the mean over all experts of what each
says of an item. An expert answers as it does in its own row: what is merged is its own, and the head is that of the
task, the same for all rows. Each item takes K forward passes.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import Probable
from evomerge.problem import Problem
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import Scoring
from evomerge.selection.contenders import Contender


def of_ensemble(problem: Problem) -> Contender:
    """Return the ensemble of all experts.

    Raises:
        ConfigError: the fitness gives no probabilities.
    """
    fitness = problem.fitness
    if not isinstance(fitness, Probable):
        raise ConfigError(f"The fitness {type(fitness).__name__} gives no probabilities, so the experts have no mean.")
    about = {"model": {"ensemble": list(problem.vectors.experts)}, **problem.contents}
    return Contender(about, partial(_score, problem, fitness))


def _score(problem: Problem, fitness: Probable, score: Scoring, ids: Mapping[str, list[str]]) -> Outcome:
    if not isinstance(score, LiveFitness):
        raise ConfigError("The ensemble is scored in the dtype that everything is computed in.")
    total: dict[str, np.ndarray] = {}
    try:
        for expert in problem.vectors.experts:
            problem.become(expert)
            for task, said in score.probabilities(fitness, ids).items():
                total[task] = total[task] + said if task in total else said
    finally:
        problem.become(None)
    count = len(problem.vectors.experts)
    return fitness.of_probabilities({task: each / count for task, each in total.items()}, score.prepared, ids)
