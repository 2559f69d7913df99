"""The noise floor: what is known of samples drawn from numbers that are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from evomerge.selection.noise import LAST, noise_of
from evomerge.trials import Batch, Trial

N, J = 60, 12


def searched(results: np.ndarray, places: np.ndarray, weights: Sequence[int] = ()) -> list[Batch]:
    """Return a generation scored on some items of one task."""
    ids, trials = [f"i{place}" for place in places], list[Trial | None]()
    counts = {"a": list(weights)} if len(weights) else {}
    for index, row in enumerate(results[:, places]):
        value = float(np.average(row, weights=weights if len(weights) else None))
        found = {"a": {"accuracy": row.tolist()}}
        trials.append(Trial(0, index, "ok", (value,), items={"a": ids}, results=found, weights=counts))
    return [Batch(0, np.zeros((len(results), 2)), trials)]


@pytest.mark.parametrize("sizes", [None, {"a": N}])
def test_standard_errors_are_those_of_repeated_samples(sizes: dict[str, int] | None) -> None:
    """Without the size, items are drawn with replacement, as from very many."""
    rng = np.random.default_rng(0)
    results = rng.normal(size=N) + rng.normal(0, 0.3, (J, N)) + np.linspace(0, 0.2, J)[:, None]
    value, difference, spread, shares = [], [], [], []
    first = results.mean(1)
    for _ in range(500):
        places = rng.choice(N, 20, replace=sizes is None)
        found = noise_of(searched(results, places), "accuracy", None, sizes)
        assert found is not None
        shown = results[:, places].mean(1)
        value.append((found.value**2, np.mean((shown - first) ** 2)))
        gaps = (shown[:, None] - shown) - (first[:, None] - first)
        difference.append((found.difference**2, (gaps**2).sum() / (J * (J - 1))))
        spread.append(np.var(shown, ddof=1))
        shares.append(found.share)
    for pairs in (value, difference):
        estimate, true = np.mean(pairs, axis=0)
        assert estimate == pytest.approx(true, rel=0.1)
    assert np.mean(shares) == pytest.approx(1 - np.var(first, ddof=1) / np.mean(spread), abs=0.07)


def test_items_that_stand_for_themselves_alone_bring_no_noise() -> None:
    results = np.random.default_rng(0).normal(size=(J, 10))
    all_items = noise_of(searched(results, np.arange(10)), "accuracy", None, {"a": 10})
    assert all_items is not None
    assert (all_items.value, all_items.share) == (0, 0)
    alike = noise_of(searched(results, np.arange(10), [6] * 10), "accuracy", None, {"a": 60})
    assert alike == noise_of(searched(results, np.arange(10)), "accuracy", None, {"a": 60})
    results[:, 5:] = results[:, 5:6]  # the rest has no spread within a candidate's items
    results[:, :5] += 5
    known = noise_of(searched(results, np.arange(10), [1] * 5 + [11] * 5), "accuracy", None, {"a": 60})
    unknown = noise_of(searched(results, np.arange(10)), "accuracy", None, {"a": 60})
    assert known is not None
    assert unknown is not None
    assert known.value < unknown.value


def test_what_cannot_be_compared_has_no_noise() -> None:
    results = np.random.default_rng(0).normal(size=(J, 10))
    assert noise_of([], "accuracy") is None
    bare = [Trial(0, i, "ok", (float(i),)) for i in range(J)]
    assert noise_of([Batch(0, np.zeros((J, 2)), list(bare))], "accuracy") is None
    assert noise_of(searched(results[:1], np.arange(10)), "accuracy") is None
    assert noise_of(searched(results[[0, 0]], np.arange(10)), "accuracy") is None  # no spread
    assert noise_of(searched(results, np.arange(1)), "accuracy") is None  # one item has no variance
    assert noise_of(searched(results, np.arange(10)), "other") is None
    others = searched(results, np.arange(5)) + searched(results[:6], np.arange(5, 10))
    for few in ([], searched(results[:3], np.arange(5))):  # which a budget may leave at the end
        last = noise_of(others + few, "accuracy")
        assert last is not None
        assert last.candidates == 6  # the generation before was scored on other items
    many = noise_of(searched(np.tile(results, (3, 1)), np.arange(10)), "accuracy")
    assert many is not None
    assert many.candidates == LAST


def one_by_one(results: np.ndarray, places: Sequence[np.ndarray], dropped: Sequence[int] = ()) -> list[Batch]:
    """Return batches of one candidate each, as TPE asks, each on items of its own."""
    batches = [searched(row[None], each)[0] for row, each in zip(results, places, strict=True)]
    for i in dropped:
        batches[i].trials = [replace(trial, status="censored") for trial in batches[i].trials if trial]
    return batches


def test_a_generation_long_past_is_not_the_end() -> None:
    """Constants come first and share their items; each candidate after them has others, or comes of a gradient."""
    results = np.random.default_rng(0).normal(size=(J, N))
    constants, rng = searched(results[:6], np.arange(10)), np.random.default_rng(1)
    others = one_by_one(results, [rng.choice(N, 10, replace=False) for _ in range(J)])
    assert noise_of(constants + others, "accuracy") is None
    alone = noise_of(constants, "accuracy")
    assert alone is not None
    assert alone.candidates == 6
    steps = [replace(batch, gradient=True) for batch in one_by_one(results, [np.arange(10)] * J)]
    assert noise_of(constants + steps, "accuracy") is None
    assert noise_of(steps + constants, "accuracy") == alone
    few = [searched(results[i : i + 4], rng.choice(N, 10, replace=False))[0] for i in (0, 4, 8)]
    small = noise_of(constants + few, "accuracy")  # generations of four
    assert small == noise_of(few[2:], "accuracy")
    assert small is not None
    cut = noise_of([*few, *searched(results[:3], np.arange(10))], "accuracy")  # which a budget has cut
    assert cut == small


def test_batches_of_one_are_raced_as_well() -> None:
    results = np.random.default_rng(0).normal(size=(30, 10)) + np.linspace(0, 2, 30)[:, None]
    places = [np.arange(10)] * 30
    whole = noise_of(one_by_one(results, places), "accuracy")
    assert whole is not None
    assert whole.candidates == LAST
    for dropped in ([29], [15], [9, 20], [11]):
        assert noise_of(one_by_one(results, places, dropped), "accuracy") is None
    assert noise_of(one_by_one(results, places, [9]), "accuracy") == whole  # before all that are looked at


def test_survivors_of_a_race_say_nothing_of_the_spread_of_their_generation() -> None:
    """They lie closer together than it, so most of their spread would seem to be noise."""
    results = np.random.default_rng(0).normal(size=(J, 10)) + np.linspace(0, 2, J)[:, None]
    before, raced = searched(results, np.arange(10))[0], searched(results, np.arange(10))[0]
    raced.trials = [
        replace(trial, status="censored") if i < 6 else trial for i, trial in enumerate(raced.trials) if trial
    ]
    assert noise_of([before, raced], "accuracy") is None
    since = [before] * 2  # more than are looked at
    assert noise_of([raced, *since], "accuracy") == noise_of(since, "accuracy") is not None
