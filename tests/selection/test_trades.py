"""Values that go against each other, and the share of sampling, on candidates whose truth is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy.stats import spearmanr

from evomerge.fitness.values import Value
from evomerge.selection.trades import FEWEST, Trade, Trades, trades_of
from evomerge.trials import Batch, Trial

VALUES = (Value("first", "m", {"a": 1.0}), Value("second", "m", {"b": 1.0}), Value("third", "m", {"c": 1.0}))


def trial(number: int, rows: dict[str, np.ndarray], status: str = "ok") -> Trial:
    items = {task: [f"{task}{i}" for i in range(len(row))] for task, row in rows.items()}
    values = tuple(float(row.mean()) for row in rows.values())
    return Trial(0, number, status, values, items=items, results={t: {"m": r.tolist()} for t, r in rows.items()})


def searched(seed: int, slope: float, items: int = 30, candidates: int = 80, noise: float = 1.0) -> list[Batch]:
    """A search in which `second` is `slope` times `first`, and `third` has nothing to do with them."""
    rng = np.random.default_rng(seed)
    skill, other = rng.normal(size=candidates), rng.normal(size=candidates)
    truth = {"a": skill, "b": slope * skill + np.sqrt(1 - slope**2) * rng.normal(size=candidates), "c": other}
    trials = [
        trial(i, {task: true[i] + noise * rng.normal(size=items) for task, true in truth.items()})
        for i in range(candidates)
    ]
    return [Batch(0, np.zeros((candidates, 1)), list(trials))]


def told(batches: list[Batch], values: Sequence[Value] = VALUES) -> Trades:
    found = trades_of(batches, values)
    assert found is not None
    return found


def correlations(values: np.ndarray) -> list[float]:
    """Those of scipy, of each two columns."""
    known: Any = spearmanr(values)
    return [float(known.statistic[i, j]) for i, j in combinations(range(3), 2)]


def pair(found: Trades, one: str, other: str) -> Trade:
    return next(p for p in found.pairs if (p.one, p.other) == (one, other))


def test_correlations_are_those_of_scipy():
    batches = searched(0, -0.8)
    found = told(batches)
    values = np.array([t.values for t in batches[0].trials if t])
    assert [(p.one, p.other) for p in found.pairs] == [("first", "second"), ("first", "third"), ("second", "third")]
    assert [p.correlation for p in found.pairs] == pytest.approx(correlations(values))
    assert found.candidates == 80
    assert told(batches) == found  # no state, no clock


def test_a_trade_is_told_from_none():
    found = told(searched(1, -0.8))
    assert pair(found, "first", "second").verdict == "against each other"
    assert pair(found, "first", "third").verdict == "cannot be told"
    assert found.said.startswith(
        "over 80 candidates, what made one better made the other worse in first and second (-0."
    )
    together = told(searched(1, 0.8))
    assert pair(together, "first", "second").verdict == "together"
    assert "no two values went against each other" in together.said


def test_the_share_of_sampling_is_that_of_the_variance():
    """Items of a spread of 6 around candidates that lie 1 apart: of a mean over 36, half of the spread is sampling."""
    shares, corrected, plain = [], [], []
    for seed in range(12):
        found = told(searched(seed, -0.9, items=36, candidates=120, noise=6.0))
        shares += list(found.sampling.values())
        corrected.append(pair(found, "first", "second").corrected)
        plain.append(pair(found, "first", "second").correlation)
    assert np.mean(shares) == pytest.approx(0.5, abs=0.07)
    assert np.mean(plain) == pytest.approx(-0.45, abs=0.06)  # half of the truth
    assert np.mean([one for one in corrected if one is not None]) == pytest.approx(-0.9, abs=0.08)
    exact = told(searched(0, -0.9, noise=0.0))
    assert list(exact.sampling.values()) == pytest.approx([0, 0, 0])


def test_standard_errors_are_those_of_searches_on_other_items():
    found = [told(searched(seed, -0.6, items=20, noise=3.0)) for seed in range(40)]
    pairs = [pair(one, "first", "second") for one in found]
    spread = np.std([p.correlation or 0.0 for p in pairs])
    assert spread < np.mean([p.se or 0.0 for p in pairs]) < 2 * spread  # on the safe side


def test_values_of_several_tasks_and_those_to_be_small():
    batches = searched(2, -0.8)
    values = (
        Value("both", "m", {"a": 3.0, "c": 1.0}),
        Value("small", "m", {"b": 1.0}, minimise=True),
        Value("worst", "m", {"a": 1.0, "b": 1.0}, aggregate="worst"),
    )
    found = told(batches, values)
    rows = [
        {task: float(np.mean(np.array(row["m"], dtype=float))) for task, row in t.results.items()}
        for t in batches[0].trials
        if t
    ]
    by_hand = np.array([[0.75 * r["a"] + 0.25 * r["c"], -r["b"], min(r["a"], r["b"])] for r in rows])
    assert [p.correlation for p in found.pairs] == pytest.approx(correlations(by_hand))


def test_what_cannot_be_told_is_not():
    few = searched(0, -0.8, candidates=FEWEST - 1)
    assert trades_of(few, VALUES) is None
    flat = [Batch(0, np.zeros((20, 1)), [trial(i, {t: np.ones(4) for t in "abc"}) for i in range(20)])]
    found = told(flat)
    assert {p.correlation for p in found.pairs} == {None}
    assert set(found.sampling.values()) == {None}
    assert found.said == "over 20 candidates, no two values went against each other by two standard errors"
    single = told(searched(0, -0.8, items=1))  # one item has no halves
    assert set(single.sampling.values()) == {None}
    assert single.pairs[0].correlation is not None


def test_dropped_candidates_and_gradients_are_left_out_and_json_brings_it_back():
    batches = searched(3, -0.8)
    found = told(batches)
    more = [trial(i, {t: np.full(30, 9.0) for t in "abc"}, "censored") for i in range(5)]
    steps = Batch(
        2, np.zeros((5, 1)), [trial(i, {t: np.full(30, 9.0) for t in "abc"}) for i in range(5)], gradient=True
    )
    assert trades_of([*batches, Batch(1, np.zeros((5, 1)), list(more)), steps], VALUES) == found
    assert Trades.from_plain(asdict(found)) == found
