"""Adaptive sampling: items on which candidates were apart come more often, means stay, and a replay is the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from evomerge.fitness.base import Outcome
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.fitness.spread import PRIOR, Spread
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.trials import Batch, Trial

ITEMS = {"a": [Item(f"i{i:02}", "", i % 2) for i in range(40)]}
TELLING = {item.id for item in ITEMS["a"][:8]}
"""The items on which the answer depends on the point."""


def score(units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
    for number, unit in enumerate(units):
        x = float(np.asarray(unit.model)[0])
        row = np.array([x if item in TELLING else 0.01 * x for item in unit.ids["a"]])
        yield number, Scored(Outcome(dict(unit.ids), {"a": {"accuracy": row}}))


def searched(batches: list[Batch], known: int = 0) -> list[Batch]:
    """Score batches in turn; the trials of the first ones are those that they have, as after a kill."""
    subset = Subset(ITEMS, 10, 3, rotate=True, draw=None)
    evaluate = ValueEvaluator(score, subset, Objective("accuracy"), spread=Spread(ITEMS, "accuracy"))
    for number, batch in enumerate(batches):
        if number >= known:
            batch.trials = [None] * len(batch.points)
        for trial in evaluate(batch, batch.missing):
            batch.trials[trial.index] = trial
    return batches


def test_telling_items_come_more_often_and_the_mean_stays() -> None:
    rng = np.random.default_rng(0)
    batches = searched([Batch(i, rng.random((6, 1))) for i in range(30)])
    trials = [trial for batch in batches[5:] for trial in batch.trials if trial is not None]
    shown = [len(TELLING & set(trial.items["a"])) for trial in trials]
    assert np.mean(shown) > 3 > 10 * 8 / 40  # of ten; uniformly, it would be two
    first = batches[0].trials[0]
    assert first is not None
    assert first.weights == {}
    assert all(sum(trial.weights["a"]) == 40 for trial in trials)
    for batch in batches:
        assert len({str((trial.items, trial.weights)) for trial in batch.trials if trial is not None}) == 1
    points = [float(batch.points[i, 0]) for batch in batches[5:] for i in range(6)]
    values = [trial.values[0] / point for trial, point in zip(trials, points, strict=True) if trial.values]
    assert np.mean(values) == pytest.approx((8 + 32 * 0.01) / 40, rel=0.05)


def test_a_replay_chooses_the_same_items() -> None:
    points = np.random.default_rng(1).random((4, 5, 1))
    whole = searched([Batch(i, rows) for i, rows in enumerate(points)])
    again = searched([Batch(i, rows, list(whole[i].trials)) for i, rows in enumerate(points)], known=2)
    assert [batch.trials for batch in again] == [batch.trials for batch in whole]


def test_few_results_are_drawn_to_the_mean_over_items() -> None:
    spread = Spread({"a": ITEMS["a"][:3]}, "accuracy")
    assert spread.deviations() is None
    rows = {"i00": [0.0, 2.0, 4.0], "i01": [1.0, 1.0, 1.0]}
    for number in range(3):
        results = {"a": {"accuracy": [rows["i00"][number], rows["i01"][number]]}}
        spread.take(Trial(0, number, "ok", (0.0,), items={"a": ["i00", "i01"]}, results=results))
    found = spread.deviations()
    assert found is not None
    assert found["a"] ** 2 == pytest.approx([(3 * 4 + PRIOR * 2) / (3 + PRIOR), PRIOR * 2 / (3 + PRIOR), 2])
