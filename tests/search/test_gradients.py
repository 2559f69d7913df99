"""The gradient evaluator on the pico suite: its numbers, bad steps, and when it warns of a collapse."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.cli.progress import Reporter
from evomerge.common.limits import TimeLimit
from evomerge.problem import Problem
from evomerge.runs.config import plain
from evomerge.runs.learning import Learning, find_learning
from evomerge.search.evaluators.gradient import COLLAPSED, GradientEvaluator
from evomerge.search.evaluators.serial import Timing
from evomerge.search.log import TrialLog
from evomerge.trials import Batch, Trial
from tests.kit.evaluations import under
from tests.kit.helpers import compose

LOSSES = ("cross_entropy", "entropy", "entropy_normalised", "entropy_marginal", "jensen_shannon")
Logits = Callable[[int, Tensor], Tensor]


class Fake:
    """Wraps a fitness: what `act` makes of the logits of call number n is what comes out."""

    def __init__(self, fitness: Any, act: Logits) -> None:
        self._fitness, self._act, self.calls = fitness, act, 0

    def logits(self, *arguments: Any) -> Iterator[dict[str, Any]]:
        for answers in self._fitness.logits(*arguments):
            yield {task: replace(a, logits=self._act(self.calls, a.logits)) for task, a in answers.items()}
        self.calls += 1


@pytest.fixture
def make(problem: Problem, tmp_path: Path) -> Iterator[Callable[..., tuple[GradientEvaluator, Learning]]]:
    """Make an evaluator of some settings; the base is put back afterwards."""

    def evaluator(*overrides: str, act: Logits | None = None, loss: Any = None, **more: Any) -> Any:
        settings = plain(compose("model=pico", f"model.cache={tmp_path}", *overrides))
        learning = find_learning(problem, settings, Reporter())
        if act:
            learning = replace(learning, fitness=Fake(learning.fitness, act))  # pyright: ignore[reportArgumentType]
        learning = replace(learning, loss=loss or learning.loss)
        return GradientEvaluator(under(problem, settings), learning, **more), learning

    yield evaluator
    problem.merger.restore()


def at(problem: Problem, x: np.ndarray | float = 0.4, index: int = 3) -> Batch:
    return Batch(index, np.broadcast_to(x, (1, problem.space.dim)), gradient=True)


def scored(evaluate: GradientEvaluator, batch: Batch) -> Trial:
    (trial,) = evaluate(batch, [0])
    return trial


@pytest.mark.parametrize("loss", LOSSES)
def test_value_and_gradient(make, problem: Problem, loss: str) -> None:
    """Minus the weighted mean over tasks; the gradient is what finite differences say, along it and across."""
    evaluate, learning = make(f"loss={loss}", "objective.weights={animals: 3, trees: 0.5}", "loss.inputs=12")
    rng = np.random.default_rng(0)
    x = rng.uniform(0.2, 0.6, problem.space.dim)
    trial = scored(evaluate, at(problem, x))
    assert trial.status == "ok", trial.error
    name = learning.loss.name
    assert trial.values is not None
    assert trial.gradient is not None
    shares = {"animals": 3 / 4.5, "trees": 0.5 / 4.5, "metals": 1 / 4.5}
    means = {task: float(np.mean(np.array(rows[name]))) for task, rows in trial.results.items()}
    assert trial.scores == {task: {name: pytest.approx(mean)} for task, mean in means.items()}
    assert trial.values[0] == pytest.approx(-sum(shares[task] * mean for task, mean in means.items()))
    assert {len(rows[name]) for rows in trial.results.values()} == {12}

    gradient = np.array(trial.gradient)
    steepest = gradient / np.linalg.norm(gradient)
    for direction in (steepest, *rng.normal(size=(3, len(x))) / np.sqrt(len(x))):
        high, low = (scored(evaluate, at(problem, x + h * direction)).values for h in (0.01, -0.01))
        assert high is not None
        assert low is not None
        slope = (high[0] - low[0]) / 0.02
        assert slope == pytest.approx(direction @ gradient, rel=0.02, abs=0.02 * float(np.linalg.norm(gradient)))


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("blocks", [2, 5])
def test_blocks_change_last_digits_alone(make, problem: Problem, loss: str, blocks: int) -> None:
    """Where inputs are compared with each other, a block holds whole tasks."""
    asked = [f"loss={loss}", "objective.weights={animals: 3, trees: 0.5}", "loss.inputs=12"]
    whole, (cut, _) = scored(make(*asked)[0], at(problem)), make(*asked, blocks=blocks)
    parts = scored(cut, at(problem))
    assert (parts.items, parts.error, list(parts.scores)) == (whole.items, None, list(whole.scores))
    assert parts.values == pytest.approx(whole.values, rel=1e-4)
    assert parts.gradient == pytest.approx(whole.gradient, rel=1e-3, abs=1e-5)


def test_a_trial_depends_on_its_point_and_its_batch_alone(make, problem: Problem, tmp_path: Path) -> None:
    evaluate, _ = make()
    again, _ = make()
    one = scored(evaluate, at(problem))
    scored(evaluate, at(problem, 1.1, 7))
    assert scored(evaluate, at(problem)) == one == scored(again, at(problem))
    assert scored(evaluate, at(problem, index=4)).items != one.items
    other_seed, _ = make("seed=2")
    assert scored(other_seed, at(problem)).items != one.items
    with TrialLog(tmp_path / "trials.jsonl", {}, {}) as log:
        batch = log.begin(log.ask(at(problem)))
        log.append(one)
        assert batch.trials == [one]  # what is written is what was found
    assert not any(p.requires_grad or p.grad is not None for p in problem.live.model.parameters())


def test_tasks_without_weight_cost_nothing(make, problem: Problem) -> None:
    evaluate, _ = make("objective.weights={animals: 0}", "loss.inputs=5")
    trial = scored(evaluate, at(problem))
    assert list(trial.items) == ["trees", "metals"]
    assert trial.spent == evaluate.size == 10


def test_more_inputs_than_items(make, problem: Problem) -> None:
    evaluate, learning = make("loss=entropy", "loss.inputs=1000")
    trial = scored(evaluate, at(problem))
    assert trial.spent == evaluate.size == sum(map(len, learning.items.values()))


class Poisoned:
    """A loss whose values are numbers and whose gradient is none."""

    name, labelled, taught, joint = "poison", True, False, False

    def __call__(self, logits: Tensor, target: Tensor) -> Tensor:
        return (logits - logits.detach()).abs().sqrt().sum(-1)


@pytest.mark.parametrize(
    ("act", "loss", "error"),
    [
        (lambda n, z: z * float("nan"), None, "ArithmeticError: the cross_entropy is nan, not a finite number"),
        (lambda n, z: z * float("inf"), None, "ArithmeticError: the cross_entropy is nan, not a finite number"),
        (lambda n, z: 1 / 0, None, "ZeroDivisionError: "),
        (lambda n, z: z, Poisoned(), "ArithmeticError: the gradient of the poison is not finite"),
        (lambda n, z: z.detach(), None, "ConfigError: The loss depends on none of the coefficients"),
    ],
    ids=["nan", "inf", "exception", "gradient", "no graph"],
)
def test_a_bad_step_costs_one_candidate(make, problem: Problem, act, loss, error: str) -> None:
    good, _ = make()
    before = scored(good, at(problem))
    bad, _ = make(act=act, loss=loss)
    trial = scored(bad, at(problem))
    assert (trial.status, trial.values, trial.gradient) == ("failed", None, None)
    assert trial.error is not None
    assert trial.error.startswith(error)
    assert trial.items == before.items
    assert not any(p.requires_grad or p.grad is not None for p in problem.live.model.parameters())
    assert scored(good, at(problem)) == before


def test_a_point_that_cannot_be_merged(make, problem: Problem) -> None:
    evaluate, _ = make()
    before = scored(evaluate, at(problem))
    assert scored(evaluate, at(problem, float("nan"))).status == "failed"
    assert scored(evaluate, at(problem)) == before


def test_a_step_that_hangs_costs_one_candidate(make, problem: Problem) -> None:
    def hang(n: int, logits: Tensor) -> Tensor:
        while n == 1:  # the second task: the gradient of the first has been taken
            pass
        return logits

    good, _ = make()
    before = scored(good, at(problem))
    bad, _ = make(act=hang, limit=TimeLimit(1))
    trial = scored(bad, at(problem))
    assert (trial.status, trial.error) == ("failed", "TimeoutError: took longer than time_limit=1 s")
    assert trial.items == before.items
    assert not any(p.requires_grad or p.grad is not None for p in problem.live.model.parameters())
    assert scored(good, at(problem)) == before


def test_times_are_recorded(make, problem: Problem) -> None:
    timings: list[Timing] = []
    evaluate, _ = make(record=timings.append)
    scored(evaluate, at(problem))
    assert [(timing.batch, timing.index) for timing in timings] == [(3, 0)]
    assert 0 < timings[0].merge < timings[0].total
    assert evaluate.measure() > 0


def of_class(label: int) -> Logits:
    """All predictions are of one class, with a graph all the same."""
    return lambda n, z: z * 0 + 9 * torch.eye(z.shape[1])[label]


def watched(make, problem: Problem, act: Logits, steps: int, caplog, *overrides: str) -> list[str]:
    evaluate, _ = make("loss=entropy", "loss.inputs=16", *overrides, act=act)
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        for step in range(steps):
            assert scored(evaluate, at(problem, index=step)).status == "ok"
    return [record.getMessage() for record in caplog.records]


def test_a_collapse_is_said_once_for_each_task(make, problem: Problem, caplog) -> None:
    def act(n: int, logits: Tensor) -> Tensor:  # three calls a step
        return logits if n < 30 else of_class(1)(n, logits)

    said = watched(make, problem, act, 24, caplog)
    assert sorted(text.split("of task ")[1].split()[0] for text in said) == ["animals", "metals", "trees"]
    assert all("collapsed to class 1 (100 % of the last 64 inputs)" in text for text in said)
    assert all("loss=entropy_marginal" in text for text in said)


def test_what_is_no_collapse(make, problem: Problem, caplog) -> None:
    assert watched(make, problem, lambda n, z: z, 12, caplog) == []  # an ordinary start
    assert watched(make, problem, of_class(0), 24, caplog) == []  # so from the beginning: a task of one class
    assert watched(make, problem, lambda n, z: z if n < 30 else of_class(1)(n, z), 11, caplog) == []  # a few inputs

    def mostly(n: int, logits: Tensor) -> Tensor:
        """14 of 16 are of a class, at times all of them."""
        z = of_class(0)(n, logits)
        return z if n >= 30 else torch.cat([z[:14], of_class(1)(n, logits)[14:]])

    assert watched(make, problem, mostly, 24, caplog) == []
    assert COLLAPSED > 14 / 16


def test_a_search_that_goes_on_warns_as_if_it_had_never_stopped(make, problem: Problem, caplog) -> None:
    """Also of a collapse that was before it stopped: whoever goes on with it may not have seen the first warning."""

    def act(n: int, logits: Tensor) -> Tensor:
        return logits if n < 30 else of_class(1)(n, logits)

    def said() -> list[str]:
        return sorted(record.getMessage() for record in caplog.records)

    whole = sorted(watched(make, problem, act, 24, caplog))
    assert len(whole) == 3
    evaluate, _ = make("loss=entropy", "loss.inputs=16", act=act)
    batches = [at(problem, index=step) for step in range(24)]
    for batch in batches:
        batch.trials[0] = scored(evaluate, batch)
    for logged in (0, 5, 12, 24):
        resumed, learning = make("loss=entropy", "loss.inputs=16", act=act)
        learning.fitness.calls = 3 * logged
        caplog.clear()
        for batch in batches:
            missing = [0] if batch.index >= logged else []
            again = replace(batch, trials=[None] if missing else list(batch.trials))
            assert len(list(resumed(again, missing))) == len(missing)
        assert said() == whole
