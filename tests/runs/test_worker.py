"""A worker, without a process around it: it scores what it is asked as the live model of the search does."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.common.errors import CheckpointError, ConfigError, LiveModelError
from evomerge.common.progress import Silent
from evomerge.problem import Problem
from evomerge.runs import worker as runs_worker
from evomerge.runs.build import build_problem
from evomerge.runs.choices import load_choice
from evomerge.runs.suite import Suite
from evomerge.runs.transforms import resolved
from evomerge.runs.under import problem_under
from evomerge.runs.worker import Worker, build_message
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.evaluators.units import Model, Named, Scored, Unit
from evomerge.search.evaluators.wire import packed, scored_of, unit_message, unpacked
from evomerge.selection import evaluation
from evomerge.selection.named import Model as Called
from evomerge.selection.named import described, model_of
from tests.kit.evaluations import settings_of, sources_of

SPLIT = "select"


@pytest.fixture(scope="module")
def settings(pico_suite: Suite, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return settings_of(*sources_of(pico_suite, tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def own(settings: dict[str, Any]) -> Problem:
    return build_problem(settings, Silent())


@pytest.fixture(scope="module")
def worker(settings: dict[str, Any], own: Problem) -> Worker:
    return Worker(unpacked(packed(build_message(settings, own, torch.get_num_threads()))))


@pytest.fixture
def scorer(own: Problem) -> Iterator[SerialScorer]:
    yield SerialScorer(own, {SPLIT: live_fitness(own, own.items[SPLIT])})
    own.become(None)


def asked(worker: Worker, unit: Unit) -> Scored:
    """What a worker says of a unit, there and back over the wire."""
    return scored_of(unpacked(packed(worker.answer(unpacked(packed(unit_message(1, unit)))))))


def same(one: Any, other: Any) -> bool:
    assert not isinstance(one, Exception), one
    return one.items == other.items and all(
        np.array_equal(row, other.results[task][name])
        for task in one.results
        for name, row in one.results[task].items()
    )


def test_it_says_where_its_task_vectors_lie(worker: Worker, own: Problem) -> None:
    assert own.merger.placed
    assert worker.ready()["placed"] == own.merger.placed.said


def test_it_scores_what_the_live_model_of_the_search_scores(worker: Worker, own: Problem, scorer: SerialScorer) -> None:
    ids, x = make_subsets(own)[SPLIT](0), np.random.default_rng(0).uniform(0, 1, own.space.dim)
    models: list[Model] = [x, own.space.constant(0.3), "base", "experts", x, "base"]
    for model in models:
        unit = Unit(model, ids, SPLIT)
        assert same(asked(worker, unit).outcome, scorer.one(unit).outcome)


def test_blocks_of_a_candidate_are_merged_once(worker: Worker, own: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    merger, merged = worker._problem.merger, []
    apply = merger.apply
    monkeypatch.setattr(merger, "apply", lambda coefficients: merged.append(1) or apply(coefficients))
    ids, x = make_subsets(own)[SPLIT](0), np.full(own.space.dim, 0.77)
    for task in ids:
        asked(worker, Unit(x, {task: ids[task]}, SPLIT))
    assert len(merged) == 1


def test_it_finds_models_by_their_names(worker: Worker, own: Problem, pico_suite: Suite) -> None:
    ids = make_subsets(own)[SPLIT](0)
    score = live_fitness(own, own.items[SPLIT])
    for model in (Called("expert", "trees"), Called("soup"), Called("directory", pico_suite.experts["metals"])):
        assert model_of(described(model)) == model
        contender = evaluation.contender_of(model, own, Silent())
        expected = contender.score(score, ids)
        own.become(None)
        assert same(asked(worker, Unit(Named(described(model)), ids, SPLIT)).outcome, expected)
    gone = Called("recipe", pico_suite.path / "gone.yaml")
    found = asked(worker, Unit(Named(described(gone)), ids, SPLIT)).outcome
    assert isinstance(found, Exception)
    assert "gone.yaml" in str(found)


def test_it_follows_a_comparison_through_methods(worker: Worker, own: Problem, settings: dict[str, Any]) -> None:
    ids, scores = make_subsets(own)[SPLIT](0), live_fitness(own, own.items[SPLIT])
    for under in (
        {"method": load_choice("method", "ties"), "transform": []},
        {"method": load_choice("method", "linear"), "transform": resolved("tsvm")},
    ):
        there = problem_under(own, settings, under, Silent())
        unit = Unit(there.space.constant(0.8), ids, SPLIT, under=under)
        expected = SerialScorer(there, {SPLIT: scores}).one(unit).outcome
        assert same(asked(worker, unit).outcome, expected)
        there.merger.restore()
    plain = Unit(own.space.constant(0.8), ids, SPLIT)
    assert same(asked(worker, plain).outcome, SerialScorer(own, {SPLIT: scores}).one(plain).outcome)
    own.become(None)


def test_other_files_under_the_same_names_are_refused(settings: dict[str, Any], own: Problem) -> None:
    with pytest.raises(CheckpointError, match="all workers must see the same files"):
        Worker(build_message(settings, own, torch.get_num_threads()) | {"same": "another"})
    with pytest.raises(ConfigError, match=r"A worker has evomerge .*, and the search 0\.1: install the same"):
        Worker(build_message(settings, own, torch.get_num_threads()) | {"version": "0.1"})


def test_a_lack_of_memory_is_told_as_one_whoever_noticed_it(worker: Worker, own: Problem) -> None:
    """A pool then lets another worker try."""
    ids, model = make_subsets(own)[SPLIT](0), worker._problem.live.model

    def refuse(*_: Any) -> None:
        raise RuntimeError("could not create a primitive")

    with model.register_forward_pre_hook(refuse):
        outcome = asked(worker, Unit("base", ids, SPLIT)).outcome
    assert isinstance(outcome, torch.OutOfMemoryError)
    assert not isinstance(asked(worker, Unit("base", ids, SPLIT)).outcome, Exception)


@pytest.mark.parametrize("short", [True, False])
def test_a_worker_that_has_no_memory_to_put_its_model_back_ends(
    short: bool, worker: Worker, own: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new one does the unit; a fitness that ruins models is told of, since it would ruin the next one too."""
    lost, cause = LiveModelError("cannot put it back"), MemoryError() if short else RuntimeError("a device is lost")
    lost.__cause__ = cause

    def lose(*_: Any) -> None:
        raise lost

    unit = Unit("base", make_subsets(own)[SPLIT](0), SPLIT)
    monkeypatch.setattr(worker, "_scored", lose)
    if short:
        with pytest.raises(LiveModelError, match="cannot put it back"):
            asked(worker, unit)
    else:
        assert isinstance(asked(worker, unit).outcome, LiveModelError)


@pytest.mark.parametrize(("error", "status"), [(EOFError(), 0), (MemoryError(), 1)])
def test_a_worker_that_hears_no_more_ends(error: Exception, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody is there, or there is no memory for what somebody says: else a pool would wait for it for ever."""

    class Pipe:
        def recv_bytes(self) -> bytes:
            raise error

    ended: list[int] = []
    monkeypatch.setattr(runs_worker.os, "_exit", ended.append)
    with suppress(MemoryError):
        runs_worker._listen(Pipe(), queue.SimpleQueue())  # type: ignore[arg-type]
    assert ended == [status]
