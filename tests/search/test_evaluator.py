"""The serial evaluator: a bad candidate costs one candidate, and a trial is a function of its point and its items."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from dataclasses import asdict
from itertools import islice, permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from evomerge.common.errors import CheckpointError
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.search.evaluators.blocks import cut, scored_whole
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.serial import SerialScorer, Timing
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.log import TrialLog
from evomerge.trials import Batch

GONE = "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has 3.19 MiB free. Process 4711 has 23.64 GiB in use."


class Fake:
    """Wraps a fitness: what `act` does with the outcome of candidate number n is what comes out."""

    metrics = ("accuracy", "log_probability")
    pure = True

    def __init__(self, fitness, act):
        self._fitness, self._act, self.calls = fitness, act, 0

    def prepare(self, tokenizer, items):
        return self._fitness.prepare(tokenizer, items)

    def __call__(self, model, prepared, ids):
        outcome = self._fitness(model, prepared, ids)
        self.calls += 1
        return self._act(self.calls - 1, outcome)


@pytest.fixture
def make(problem):
    """Make an evaluator on the pico suite; the base is put back afterwards."""
    items = {task: chosen[:20] for task, chosen in problem.items["search"].items()}

    def evaluator(
        act=lambda n, outcome: outcome,
        objective=None,
        record=lambda timing: None,
        rotate=False,
        limit=None,
        scorer=lambda serial: serial,
    ):
        fitness = Fake(problem.fitness, act)
        score = LiveFitness(problem.live.model, fitness, fitness.prepare(problem.live.processor, items))
        return ValueEvaluator(
            scorer(SerialScorer(problem, {"search": score}, limit)),
            Subset(items, 12, seed=0, rotate=rotate),
            objective or Objective("log_probability"),
            record,
        )

    yield evaluator
    problem.merger.restore()


@pytest.fixture
def batch(problem):
    return Batch(3, np.random.default_rng(0).uniform(0, 0.6, (3, problem.space.dim)))


def fail(error):
    def act(n, outcome):
        if n == 1:
            raise error
        return outcome

    return act


def spoil(metric, value):
    def act(n, outcome):
        if n == 1:
            outcome.results["trees"][metric][2] = value
        return outcome

    return act


def test_trials_are_complete_and_fit_into_the_log(make, batch, tmp_path):
    trials = list(make()(batch, [0, 1, 2]))
    assert [(t.batch, t.index, t.status, t.error) for t in trials] == [(3, i, "ok", None) for i in range(3)]
    for trial in trials:
        assert {task: len(ids) for task, ids in trial.items.items()} == {"animals": 4, "trees": 4, "metals": 4}
        means = [np.mean(trial.results[task]["log_probability"]) for task in trial.items]
        assert trial.values == pytest.approx((np.mean(means),))
        assert trial.scores["trees"]["accuracy"] == np.mean(trial.results["trees"]["accuracy"])
        assert json.loads(json.dumps(asdict(trial), allow_nan=False))["scores"] == trial.scores
    assert len({trial.values for trial in trials}) == 3
    with TrialLog(tmp_path / "trials.jsonl", {}, {}) as log:
        log.begin(log.ask(Batch(3, batch.points)))
        for trial in trials:
            log.append(trial)


def test_a_trial_depends_on_its_point_and_its_items_alone(make, batch):
    together = list(make()(batch, [0, 1, 2]))
    assert [next(make()(batch, [i])) for i in range(3)] == together
    assert [trial.index for trial in make()(batch, [2, 0])] == [2, 0]


def test_all_candidates_of_a_generation_see_the_same_items(make, batch):
    evaluate = make(rotate=True)
    items = [[trial.items for trial in evaluate(Batch(i, batch.points), [0, 1])] for i in (3, 4, 3)]
    assert all(one == other for one, other in items)
    assert items[0] == items[2] != items[1]


def test_trials_come_as_they_end(make, batch):
    done = []
    evaluate = make(act=lambda n, outcome: done.append(n) or outcome)
    assert len(list(islice(evaluate(batch, [0, 1, 2]), 1))) == 1
    assert done == [0]


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_trials_come_in_the_order_asked_whatever_ends_first(make, batch, order):
    def pool(serial):
        def score(units):
            done = list(serial(units))
            return (done[i] for i in order)

        return score

    act = fail(ValueError("no"))
    expected = list(make(act=act)(batch, [2, 0, 1]))
    assert [(trial.index, trial.status) for trial in expected] == [(2, "ok"), (0, "failed"), (1, "ok")]
    assert list(make(act=act, scorer=pool)(batch, [2, 0, 1])) == expected


def test_a_trial_comes_once_those_before_it_have_ended(make, batch):
    ended = []

    def pool(serial):
        def score(units):
            done = list(serial(units))
            for i in (1, 0, 2):
                ended.append(i)
                yield done[i]

        return score

    seen = [(trial.index, len(ended)) for trial in make(scorer=pool)(batch, [0, 1, 2])]
    assert seen == [(0, 2), (1, 2), (2, 3)]


def test_units_of_one_candidate_are_merged_once(problem, batch, monkeypatch):
    items = {task: chosen[:6] for task, chosen in problem.items["search"].items()}
    fitness = Fake(problem.fitness, fail(ValueError("no")))
    live = LiveFitness(problem.live.model, fitness, fitness.prepare(problem.live.processor, items))
    merged, apply = [], problem.merger.apply
    monkeypatch.setattr(problem.merger, "apply", lambda coefficients: merged.append(1) or apply(coefficients))
    blocks = [{task: [item.id for item in chosen[i : i + 2]] for task, chosen in items.items()} for i in (0, 2, 4)]
    first, second = batch.points[0], batch.points[1]
    units = [Unit(second, blocks[0]), Unit(first.copy(), blocks[0]), *(Unit(first, block) for block in blocks)]
    scorer, count = SerialScorer(problem, {"search": live}), []
    found = []
    for position, scored in scorer(units):
        assert position == len(found)
        found.append(scored.outcome)
        count.append(len(merged))
    problem.merger.restore()
    assert count == [1, 2, 3, 3, 3]  # what failed is merged anew
    assert isinstance(found[1], ValueError)
    problem.merger.apply(problem.space.decode(first))
    whole = live({task: [item.id for item in chosen] for task, chosen in items.items()})
    problem.merger.restore()
    for task, metrics in whole.results.items():
        parts = np.concatenate([outcome.results[task]["log_probability"] for outcome in found[2:]])
        assert parts == pytest.approx(metrics["log_probability"], rel=1e-5)


@pytest.mark.parametrize("blocks", [1, 2, 5, 40])
def test_blocks_change_last_digits_alone(make, batch, blocks):
    whole, parts = make(), make()
    parts._blocks = blocks
    for one, other in zip(whole(batch, [0, 1, 2]), parts(batch, [0, 1, 2]), strict=True):
        assert (one.items, list(one.results)) == (other.items, list(other.results))
        for task, metrics in one.results.items():
            assert other.results[task]["log_probability"] == pytest.approx(metrics["log_probability"], rel=1e-5)
        assert other.values == pytest.approx(one.values, rel=1e-5)


def test_the_first_block_that_fails_decides_and_later_ones_are_not_scored(make, batch):
    """Whatever ends first: blocks of the second candidate come in every order, and two of them fail."""
    calls = []

    def act(n, outcome):
        calls.append(n)
        if n == 4:
            raise ValueError(f"block {n}")
        return outcome

    evaluate = make(act=act)
    evaluate._blocks = 3
    trials = list(evaluate(batch, [0, 1, 2]))
    assert [trial.status for trial in trials] == ["ok", "failed", "ok"]
    assert trials[1].error == "ValueError: block 4"
    assert len(calls) == 8  # three blocks of the first, two of the second, three of the third


@given(st.permutations(range(4)), st.sets(st.integers(0, 3)))
def test_what_comes_of_a_candidate_does_not_depend_on_the_order_of_its_blocks(order, failing):
    ids = {"a": list("wxy"), "b": ["z"]}
    parts = cut(ids, 4)
    answers = [
        Scored(ValueError(str(i)))
        if i in failing
        else Scored(Outcome(part, {task: {"m": np.array([float(i)])} for task in part}))
        for i, part in enumerate(parts)
    ]
    (found,) = scored_whole([(i, answers[i]) for i in order], [4], ids)
    if failing:
        assert str(found.outcome) == str(min(failing))
    else:
        assert found.outcome.items == ids
        assert [found.outcome.results[task]["m"].tolist() for task in ids] == [[0.0, 1.0, 2.0], [3.0]]


def test_times_go_to_the_record_and_not_into_the_trial(make, batch):
    timings: list[Timing] = []
    trials = list(make(act=fail(ValueError("no")), record=timings.append)(batch, [0, 1, 2]))
    assert [trial.status for trial in trials] == ["ok", "failed", "ok"]
    assert [(timing.batch, timing.index) for timing in timings] == [(3, 0), (3, 2)]
    for timing in timings:
        assert 0 < timing.merge < timing.total
        assert 0 < timing.forward < timing.total


def test_without_forward_seconds_the_fitness_counts_as_forward(make, batch):
    def slow(number: int, outcome: Outcome) -> Outcome:
        time.sleep(0.2)
        return Outcome(outcome.items, outcome.results)

    timings: list[Timing] = []
    list(make(act=slow, record=timings.append)(batch, [0]))
    assert 0.2 <= timings[0].forward <= timings[0].total


@pytest.mark.parametrize(
    ("act", "error"),
    [
        (fail(ValueError("too bad")), "ValueError: too bad"),
        (fail(RuntimeError("one line\nand another")), "RuntimeError: one line"),
        (fail(ZeroDivisionError()), "ZeroDivisionError: "),
        (fail(KeyError("<object at 0x7f12ab34CD>")), "KeyError: '<object at 0x…>'"),
        (fail(OSError("no file /home/me/data/a.bin")), "OSError: no file …/a.bin"),
        (fail(CheckpointError("x" * 1000)), "CheckpointError: " + "x" * 283),
        (fail(MemoryError()), "OutOfMemoryError"),
        (fail(MemoryError("one batch is too much")), "MemoryError: one batch"),
        (fail(SystemExit(0)), "Exited: SystemExit was raised with status 0; raise an Exception that says what is wr"),
        (fail(SystemExit("no data")), "Exited: SystemExit was raised with status 'no data'; "),
        (fail(GeneratorExit()), "Exited: GeneratorExit was raised; "),
        (fail(asyncio.CancelledError("too slow")), "Exited: CancelledError was raised: too slow; "),
        (fail(torch.OutOfMemoryError(GONE)), "OutOfMemoryError"),
        (spoil("log_probability", math.nan), "NotFinite: log_probability of 1 of 4 items of trees is not a finite"),
        (spoil("log_probability", -math.inf), "NotFinite: log_probability of 1 of 4 items of trees is not a finite"),
        (spoil("accuracy", math.nan), "NotFinite: accuracy of 1 of 4 items of trees is not a finite number"),
        (lambda n, outcome: Outcome({}, {}) if n == 1 else outcome, "ValueError: the fitness scored other items"),
        (lambda n, outcome: None if n == 1 else outcome, "TypeError: the fitness returned None, which is no Outcome"),
    ],
)
def test_a_bad_candidate_costs_one_candidate(make, batch, act, error, caplog, tmp_path):
    good = list(make()(batch, [0, 2]))
    with caplog.at_level(logging.WARNING, logger="evomerge"):
        trials = list(make(act=act)(batch, [0, 1, 2]))
    assert [trials[0], trials[2]] == good
    failed = trials[1]
    assert (failed.batch, failed.index, failed.status, failed.values) == (3, 1, "failed", None)
    assert failed.error is not None
    assert failed.error.startswith(error)
    assert len(failed.error.splitlines()) == 1
    assert len(failed.error) <= 300
    assert failed.items == good[0].items
    assert failed.results == {}
    assert "Candidate 1 of generation 3 failed and is ranked last" in caplog.text
    with TrialLog(tmp_path / "trials.jsonl", {}, {}) as log:
        log.begin(log.ask(Batch(3, batch.points)))
        log.append(failed)


def hang(n, outcome):
    while n == 1:
        try:  # noqa: SIM105
            time.sleep(10**6)
        except Exception:
            pass
    return outcome


def test_a_candidate_that_hangs_costs_one_candidate(make, batch, caplog):
    good = list(make()(batch, [0, 2]))
    timings: list[Timing] = []
    with caplog.at_level(logging.WARNING, logger="evomerge"):
        trials = list(make(act=hang, record=timings.append, limit=TimeLimit(1))(batch, [0, 1, 2]))
    assert [trials[0], trials[2]] == good
    assert (trials[1].status, trials[1].values, trials[1].items) == ("failed", None, good[0].items)
    assert trials[1].error == "TimeoutError: took longer than time_limit=1 s"
    assert f"Candidate 1 of generation 3 failed and is ranked last: {trials[1].error}" in caplog.text
    assert [timing.index for timing in timings] == [0, 2]


def test_no_time_limit_while_a_trial_is_taken(make, batch):
    """What the loop does between two candidates, such as writing the log, is none of theirs."""
    for trial in make(limit=TimeLimit(0.5))(batch, [0, 1]):
        time.sleep(0.7)
        assert trial.status == "ok"


def test_a_lack_of_memory_is_said_in_full_but_not_logged(make, batch, caplog):
    with caplog.at_level(logging.WARNING, logger="evomerge"):
        trials = list(make(act=fail(torch.OutOfMemoryError(GONE)))(batch, [0, 1]))
    assert "Process 4711" in caplog.text
    assert "4711" not in str(trials[1].error)


def test_an_objective_that_is_no_number(make, batch):
    trials = list(make(objective=lambda outcome: ((math.inf,), ()))(batch, [0]))
    assert trials[0].error == "ArithmeticError: the objective is inf, not a finite number"


def test_a_point_that_cannot_be_merged(make, batch, problem):
    points = batch.points.copy()
    points[1] = math.nan
    trials = list(make()(Batch(3, points), [0, 1, 2]))
    assert [trial.status for trial in trials] == ["ok", "failed", "ok"]
    assert trials[2] == next(make()(batch, [2]))
    problem.merger.restore()
    assert all(torch.isfinite(parameter).all() for parameter in problem.live.model.parameters())


def test_ctrl_c_passes(make, batch):
    trials = make(act=fail(KeyboardInterrupt()))(batch, [0, 1, 2])
    assert next(trials).status == "ok"
    with pytest.raises(KeyboardInterrupt):
        next(trials)
    assert next(make()(batch, [2])).status == "ok"
