"""Learning coefficients of language models by gradient: cross-entropy and entropy at answers, on pico models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError
from evomerge.runs.build import build_problem
from evomerge.runs.checks import make_fitness
from evomerge.runs.config import plain
from evomerge.runs.learning import check_learning, find_learning
from evomerge.runs.run import run_search
from evomerge.search.evaluators.gradient import GradientEvaluator
from evomerge.trials import Batch
from tests.kit.evaluations import under
from tests.kit.helpers import compose
from tests.kit.language import TASKS, documents, save_language_family, write_jsonl, write_task


@pytest.fixture(scope="module")
def family(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = save_language_family(tmp_path_factory.mktemp("language"))
    for name in TASKS:
        write_task(path / "tasks", name)
    write_jsonl(path / "texts.jsonl", [{"text": row["text"]} for row in documents(40)])
    return path


def settings(family: Path, fitness: str, names: list[str], *more: str) -> dict:
    given = {
        "lm_eval": {name: f"{family}/tasks/{name}.yaml" for name in names},
        "perplexity": {"t": f"{family}/texts.jsonl"},
    }
    tasks = ", ".join(f"{name}: {file}" for name, file in given[fitness].items())
    sources = [f"model.base={family}/base", f"model.experts=[{family}/left,{family}/right]", "model.device=cpu"]
    cache = f"model.cache={family}/cache"
    return compose(
        f"fitness={fitness}", f"fitness.tasks={{{tasks}}}", *sources, cache, "space=model", "loss.inputs=6", *more
    )


@pytest.mark.parametrize("loss", ["cross_entropy", "entropy"])
@pytest.mark.parametrize(
    ("fitness", "names"), [*(("lm_eval", [name]) for name in TASKS), ("perplexity", [])], ids=[*TASKS, "perplexity"]
)
def test_the_gradient_is_what_finite_differences_say(family, fitness, names, loss):
    given = plain(settings(family, fitness, names, f"loss={loss}"))
    problem = build_problem(given, Reporter())
    evaluate = GradientEvaluator(under(problem, given), find_learning(problem, given, Reporter()))
    x, step = np.array([0.3, 0.5]), 2e-3

    def trial(point: np.ndarray):
        (found,) = evaluate(Batch(3, point[None], gradient=True), [0])
        assert found.status == "ok", found.error
        return found

    middle = trial(x)
    for axis, direction in enumerate(np.eye(2)):
        slope = (trial(x + step * direction).values[0] - trial(x - step * direction).values[0]) / (2 * step)
        assert middle.gradient[axis] == pytest.approx(slope, rel=0.05, abs=0.01)


def test_the_cross_entropy_of_choices_is_minus_their_log_probability(family):
    given = plain(settings(family, "lm_eval", ["choice", "answer"], "fitness.batch_size=4"))
    problem = build_problem(given, Reporter())
    learning = find_learning(problem, given, Reporter())
    evaluate = GradientEvaluator(under(problem, given), learning)
    (trial,) = evaluate(Batch(0, np.array([[0.4, 0.2]]), gradient=True), [0])
    model = problem.live.model
    outcome = problem.fitness(model, learning.prepared, trial.items)
    np.testing.assert_allclose(
        trial.results["choice"]["cross_entropy"], -outcome.results["choice"]["log_probability"], atol=1e-4
    )
    documents_ = problem.fitness._benchmarks["answer"].documents
    tokens = [len(problem.live.processor(documents_[i].doc["answer"])["input_ids"]) for i in trial.items["answer"]]
    np.testing.assert_allclose(  # the mean over tokens, where the metric is by bytes
        np.array(trial.results["answer"]["cross_entropy"]) * tokens,
        -outcome.results["answer"]["score"],
        atol=1e-3,
    )


def test_a_search_by_gradient(family, tmp_path):
    config = settings(
        family, "lm_eval", ["choice", "rolling"], "searcher=gradient", "searcher.steps=5", "budget=9", "start=0.3"
    )
    summary = run_search(config, tmp_path, Reporter())
    assert summary is not None
    assert summary.failed == 0


def test_losses_that_compare_classes_are_refused(family):
    given = plain(settings(family, "lm_eval", ["choice"], "searcher=gradient", "loss=jensen_shannon"))
    with pytest.raises(ConfigError, match="write loss=cross_entropy or loss=entropy"):
        check_learning(given, make_fitness(given["fitness"]))


def test_gradients_leave_no_graph_behind(family):
    given = plain(settings(family, "lm_eval", ["choice"]))
    problem = build_problem(given, Reporter())
    evaluate = GradientEvaluator(under(problem, given), find_learning(problem, given, Reporter()))
    evaluate.measure()
    assert all(parameter.grad is None for parameter in problem.live.model.parameters())
    assert not any(parameter.requires_grad for parameter in problem.live.model.parameters())
    assert torch.is_grad_enabled()
