"""The ensemble of the experts' outputs, from the logits of each; and who gives no probabilities."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.common.errors import ConfigError
from evomerge.problem import Problem
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.selection.ensemble import of_ensemble
from tests.kit.evaluations import is_base


def test_it_is_the_mean_of_what_all_experts_say(problem: Problem) -> None:
    problem = replace(problem, sampling=replace(problem.sampling, select=45))
    score, ids = live_fitness(problem, problem.items["select"]), make_subsets(problem)["select"](0)
    contender = of_ensemble(problem)
    found = contender.score(score, ids)
    assert is_base(problem)
    total: dict[str, Any] = {task: 0 for task in ids}
    labels: dict[str, Any] = {task: np.zeros(len(chosen), int) for task, chosen in ids.items()}
    for expert in problem.vectors.experts:
        problem.become(expert)
        with torch.no_grad():
            for answers in problem.fitness.logits(problem.live.model, score.prepared, ids):
                for task, one in answers.items():
                    rows = np.zeros((len(ids[task]), one.logits.shape[1]))
                    rows[one.positions] = torch.softmax(one.logits.double(), -1).numpy()
                    total[task] = total[task] + rows / 3
                    labels[task][one.positions] = one.labels
    problem.become(None)
    for task, rows in total.items():
        picked = rows[np.arange(len(rows)), labels[task]]
        assert found.results[task]["log_probability"] == pytest.approx(np.log(picked))
        assert found.results[task]["accuracy"].tolist() == (rows.argmax(1) == labels[task]).tolist()
    alone = replace(problem, vectors=replace(problem.vectors, experts={"trees": problem.vectors.experts["trees"]}))
    said = of_ensemble(alone).score(score, ids)  # of one expert it is that expert
    problem.become("trees")
    itself = score(ids)
    problem.become(None)
    for task in ids:
        assert said.results[task]["log_probability"] == pytest.approx(itself.results[task]["log_probability"], abs=1e-5)
        assert (said.results[task]["accuracy"] == itself.results[task]["accuracy"]).all()


def test_a_fitness_without_probabilities_cannot(problem: Problem) -> None:
    with pytest.raises(ConfigError, match="SimpleNamespace gives no probabilities"):
        of_ensemble(replace(problem, fitness=SimpleNamespace()))
