"""Every draw keeps the laws of a sample: its size, its place in the log, and no bias; and each does what it is for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.fitness.draws import EVEN, ByDisagreement, Draw, strata, stratified, uniform
from evomerge.fitness.items import Item

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, 40)
APART = np.where(np.arange(40) % 4 == 0, RNG.gamma(1.0, size=40), 0.0)
"""How far base and expert are apart: nothing on three items of four."""
ITEMS = [Item(f"i{i:02}", f"text {i}", int(label)) for i, label in enumerate(LABELS)]
DRAWS: dict[str, Draw] = {
    "stratified": stratified,
    "uniform": uniform,
    "disagreement": ByDisagreement({"a": APART}),
    "agreement": ByDisagreement({"a": np.zeros(40)}),
}
VALUES = 0.3 + APART * RNG.normal(size=40)
"""What a merge reaches: it differs from others where base and expert do."""


def estimates(draw: Draw, n: int, seeds: int) -> np.ndarray:
    """Return the weighted means of many samples."""
    found = []
    for seed in range(seeds):
        drawn = draw("a", ITEMS, n, np.random.default_rng([seed, 0]))
        found.append(np.average(VALUES[drawn.places], weights=drawn.weights))
    return np.array(found)


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [0, 1, 2, 7, 39, 40])
def test_a_draw_has_its_size_and_stands_for_all_items(name: str, n: int) -> None:
    one, again = (DRAWS[name]("a", ITEMS, n, np.random.default_rng(n)) for _ in range(2))
    assert len(set(one.places.tolist())) == len(one.places) == n
    assert one.places.tolist() == again.places.tolist()
    if n and one.weights is not None:
        assert one.weights.min() >= 1
        assert one.weights.sum() == len(ITEMS)
        assert one.weights.tolist() == (again.weights if again.weights is not None else one.weights).tolist()


@pytest.mark.parametrize("name", DRAWS)
@pytest.mark.parametrize("n", [3, 12])
def test_the_mean_of_a_sample_is_on_average_that_of_all_items(name: str, n: int) -> None:
    found = estimates(DRAWS[name], n, 400)
    assert abs(found.mean() - VALUES.mean()) < 4 * found.std() / np.sqrt(len(found))


def test_no_bias_to_the_last_digit() -> None:
    """Over all that may be drawn of the strata of one order, each with its chance."""
    order = np.argsort(-APART, kind="stable")
    ends = strata(EVEN / 40 + (1 - EVEN) * APART[order] / APART.sum(), 12)
    parts = np.split(VALUES[order], ends[:-1])
    assert sum(len(part) * part.mean() for part in parts) / 40 == pytest.approx(VALUES.mean(), abs=1e-15)


def test_items_that_experts_have_changed_tell_more_of_a_merge() -> None:
    spread = {name: estimates(draw, 12, 300).std() for name, draw in DRAWS.items()}
    assert spread["disagreement"] < 0.88 * min(spread["stratified"], spread["uniform"])
    assert spread["agreement"] < 1.2 * spread["uniform"]


def test_no_item_stands_for_many_more_than_its_share() -> None:
    drawn = DRAWS["disagreement"]("a", ITEMS, 10, RNG)
    assert drawn.weights is not None
    assert drawn.weights.max() <= 40 / (10 * EVEN) + 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.integers(1, 50))
def test_strata_are_never_empty_and_hold_about_the_same(apart: list[float], n: int) -> None:
    amount, n = np.array(sorted(apart, reverse=True)) + 1e-3, min(n, len(apart))
    ends = strata(amount, n)
    assert ends[-1] == len(amount)
    assert (np.diff([0, *ends]) >= 1).all()
    sums = np.add.reduceat(amount, [0, *ends[:-1]])
    several = sums[np.diff([0, *ends]) > 1]
    assert (several <= 2 * amount.sum() / n + 1e-9 * amount.sum()).all()  # one item alone may hold any amount
