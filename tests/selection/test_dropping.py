"""Models that are behind are dropped early, and seldom the wrong one: a simulation with known truth, and laws."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.search.evaluators.dropping import LEAST, TOGETHER, Race, chances
from evomerge.selection.dropping import ALPHA, BLOCKS, blocks, cut

DRAWS = 200
SIZES = {"a": 240, "b": 160, "c": 120}
FEW = {"a": 30, "b": 30, "c": 30}
WEIGHTS = {"a": 0.5, "b": 0.25, "c": 0.25}
Models = dict[str, dict[str, np.ndarray]]


def right_or_wrong(z: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """0 and 1, as accuracies are: `worth` moves the threshold."""
    return (z < worth[:, None] + 0.5).astype(float)


def log_probability(z: np.ndarray, worth: np.ndarray) -> np.ndarray:
    """A metric with a long tail of items that go very wrong."""
    return worth[:, None] / 2 - np.exp(1.2 * z)


def drawn(
    seed: int,
    worths: np.ndarray,
    metric: Callable[[np.ndarray, np.ndarray], np.ndarray],
    sizes: Mapping[str, int] = SIZES,
) -> Models:
    """Models on the same items: what is hard for one is hard for its neighbours, as with merges."""
    rng = np.random.default_rng(seed)
    models: Models = {str(i): {} for i in range(len(worths))}
    for task, size in sizes.items():
        z = rng.standard_normal((len(worths), size))
        for i in range(1, len(worths)):
            z[i] = 0.95 * z[i - 1] + math.sqrt(1 - 0.95**2) * z[i]
        for name, row in zip(models, metric(z, worths), strict=True):
            models[name][task] = row
    return models


def value(rows: Mapping[str, np.ndarray]) -> float:
    return sum(WEIGHTS[task] * float(np.mean(row)) for task, row in rows.items())


def raced(models: Models, sizes: Mapping[str, int] = SIZES) -> tuple[str, float]:
    """The winner, and the share of the items that was scored."""
    looks = blocks(sizes.values())
    race, racing, spent = Race(sizes, WEIGHTS, looks - 1, ALPHA), dict(models), 0
    for block in range(1, looks + 1):
        seen = {task: size * block // looks for task, size in sizes.items()}
        before = {task: size * (block - 1) // looks for task, size in sizes.items()}
        spent += len(racing) * (sum(seen.values()) - sum(before.values()))
        if block < looks:
            for name in race.drop({name: {t: r[: seen[t]] for t, r in rows.items()} for name, rows in racing.items()}):
                del racing[name]
    winner = max(racing, key=lambda name: value(racing[name]))
    return winner, spent / len(models) / sum(sizes.values())


GRID = np.linspace(0.1, 1.5, 15)
FIELDS = {  # what models are worth; the share of the items on which they may be scored, by either metric
    "all equal": (np.zeros(8), 0.62, 0.68),
    "three near-equal ahead": (np.array([0.0, 0.003, 0.006, -0.3, -0.4, -0.5, -0.6, -0.7]), 0.37, 0.54),
    "a curve, as of constants": (0.3 - 1.5 * (GRID - 0.6) ** 2, 0.36, 0.56),
    "one ahead": (np.array([0.3, *np.full(7, -0.2)]), 0.27, 0.5),
}


@pytest.mark.parametrize("metric", [right_or_wrong, log_probability])
@pytest.mark.parametrize("field", FIELDS)
def test_the_best_is_dropped_as_seldom_as_stated(field: str, metric: Callable) -> None:
    worths, *shares = FIELDS[field]
    errors, spent = 0, []
    for seed in range(DRAWS):
        models = drawn(seed, worths, metric)
        winner, cost = raced(models)
        errors += max(value(rows) for rows in models.values()) > value(models[winner])
        spent.append(cost)
    assert errors / DRAWS <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / DRAWS)  # two standard errors of the simulation
    assert np.mean(spent) <= shares[metric is log_probability]


@pytest.mark.parametrize("metric", [right_or_wrong, log_probability])
@pytest.mark.parametrize("sizes", [FEW, {"a": 60}], ids=["three tasks of 30", "one of 60"])
def test_it_is_as_seldom_on_few_items(sizes: dict[str, int], metric: Callable) -> None:
    assert blocks(sizes.values()) == 4
    errors = 0
    for seed in range(DRAWS):
        models = drawn(seed, np.zeros(8), metric, sizes)
        winner, _ = raced(models, sizes)
        errors += max(value(rows) for rows in models.values()) > value(models[winner])
    assert errors / DRAWS <= ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / DRAWS)


def test_the_leader_stays_and_so_does_who_is_alike() -> None:
    rng = np.random.default_rng(0)
    rows = {task: (rng.random(size) < 0.8).astype(float) for task, size in SIZES.items()}
    hopeless = {task: np.zeros(size) for task, size in SIZES.items()}
    few = {task: row[:10] for task, row in rows.items()}
    race = Race(SIZES, WEIGHTS, 11, ALPHA)
    assert race.drop({"one": few, "two": dict(few)}) == []
    dropped = race.drop({"one": rows, "two": dict(rows), "hopeless": hopeless})
    assert dropped == ["hopeless"]


def test_no_chance_is_left_when_all_items_are_scored() -> None:
    models = drawn(0, np.array([0.2, 0.0, 0.1]), right_or_wrong)
    behind = chances(models, SIZES, WEIGHTS)
    assert len(behind) == 2
    assert set(behind.values()) == {0.0}


def test_the_chance_by_hand() -> None:
    one, other = np.array([1.0, 1.0, 1.0, 0.0]), np.array([1.0, 0.0, 0.0, 0.0])
    found = chances({"one": {"a": one}, "other": {"a": other}}, {"a": 12}, {"a": 1.0})
    # differences 0 1 1 0, mean 1/2, sum of squares 1, and 1 for half an item won and half an item lost, over 4 + 1
    sigma = math.sqrt(2 / 5 * (1 / 4 - 1 / 12))
    assert found == {"other": pytest.approx(0.5 * math.erfc(0.5 / sigma / math.sqrt(2)))}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.floats(1e-3, 1e3), st.floats(1e-3, 1e3), st.floats(-5, 5))
def test_neither_scale_nor_origin_nor_order_matters(seed: int, of_a: float, of_all: float, origin: float) -> None:
    """A task in other units with a weight that makes up for it, all weights together, a constant for every model."""
    models = drawn(seed, np.array([0.0, 0.1, 0.3]), log_probability)
    few = {name: {task: row[:20] for task, row in rows.items()} for name, rows in models.items()}
    order = np.random.default_rng(seed).permutation(20)
    other = {
        name: {task: (of_a if task == "a" else 1.0) * (row[order] + origin) for task, row in rows.items()}
        for name, rows in reversed(few.items())
    }
    weights = {task: of_all * weight / (of_a if task == "a" else 1.0) for task, weight in WEIGHTS.items()}
    assert chances(other, SIZES, weights) == pytest.approx(chances(few, SIZES, WEIGHTS), rel=1e-6, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from("abc"), st.integers(1, 100), min_size=1))
def test_blocks_hold_every_item_once_and_each_task_has_its_share(sizes: dict[str, int]) -> None:
    ids = {task: [f"{task}{i}" for i in range(size)] for task, size in sizes.items()}
    parts = cut(ids)
    assert parts == cut(ids)
    assert len(parts) == blocks(sizes.values()) <= BLOCKS
    if len(parts) > 1:
        assert min(len(part[task]) for part in parts for task in ids) >= LEAST
        assert min(sum(map(len, part.values())) for part in parts) >= TOGETHER - len(ids)
    for task, all_of_it in ids.items():
        assert sorted(item for part in parts for item in part[task]) == sorted(all_of_it)
        counts = [len(part[task]) for part in parts]
        assert max(counts) - min(counts) <= 1


def test_items_that_lie_by_class_are_shuffled() -> None:
    ids = {"a": [f"{i // 100}-{i}" for i in range(200)]}
    first = cut(ids)[0]["a"]
    assert 0.2 <= sum(item.startswith("0-") for item in first) / len(first) <= 0.8
