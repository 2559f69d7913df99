from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import ByDisagreement, Draw, spread, stratified, uniform
from evomerge.fitness.items import Item
from evomerge.fitness.sampling import Growth, Sample, Subset

LABELS = {"even": [0, 1] * 30, "rare": [0] * 50 + [1] * 3 + [2] * 17}


def task(labels) -> list[Item]:
    return [Item(f"i{i:03}", f"text {i}", label) for i, label in enumerate(labels)]


ITEMS = {name: task(labels) for name, labels in LABELS.items()}
APART = {name: np.arange(len(labels)) % 5 for name, labels in LABELS.items()}
DRAWS: dict[str, Draw] = {"stratified": stratified, "uniform": uniform, "disagreement": ByDisagreement(APART)}


@settings(max_examples=50, deadline=None)
@given(
    labels=st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=60), min_size=1, max_size=4),
    size=st.integers(1, 150),
    seed=st.integers(0, 2**32),
)
def test_sizes_order_and_shares_of_the_classes(labels, size, seed):
    items = {f"task{i}": task(each) for i, each in enumerate(labels)}
    size = max(size, len(items))
    subset = Subset(items, size, seed)
    chosen = subset(0)
    assert list(chosen) == list(items)
    assert sum(map(len, chosen.values())) == subset.size
    for i, (name, ids) in enumerate(chosen.items()):
        everything = [item.id for item in items[name]]
        assert len(ids) == min(len(everything), size // len(items) + (i < size % len(items)))
        assert len(set(ids)) == len(ids)
        assert ids == [one for one in everything if one in set(ids)]
        counts = Counter(item.label for item in items[name])
        drawn = Counter(item.label for item in items[name] if item.id in set(ids))
        for label, count in counts.items():
            assert abs(drawn[label] - len(ids) * count / len(everything)) < 1


def test_every_item_is_equally_likely():
    n, draws = 14, 3000
    counts = Counter(one for seed in range(draws) for one in Subset({"rare": ITEMS["rare"]}, n, seed)(0)["rare"])
    observed = np.array([counts[item.id] for item in ITEMS["rare"]])
    assert observed.sum() == n * draws
    # items of a draw exclude each other, which makes the counts less spread than the test takes them to be
    assert stats.chisquare(observed).pvalue > 1e-3


def test_items_are_drawn_independently_of_their_order_in_the_file():
    """Every fifth item of a class in the order of the file would never pair neighbours."""
    pairs = Counter()
    for seed in range(500):
        ids = Subset({"even": ITEMS["even"]}, 12, seed)(0)["even"]
        pairs[ITEMS["even"][0].id in ids and ITEMS["even"][2].id in ids] += 1
    assert 3 < pairs[True] < 60  # 500 * 6/30 * 5/29 = 17


@pytest.mark.parametrize("draw", DRAWS)
def test_the_same_seed_and_generation_give_the_same_items(draw):
    how = {"draw": DRAWS[draw]}
    for rotate in (False, True):
        one, other = (Subset(ITEMS, 20, 7, rotate, **how) for _ in range(2))
        assert one.sample(5) == other.sample(5)
        assert one.sample(0) == Subset(ITEMS, 20, 7, **how).sample(0)
        assert (one(0) == one(1)) == (not rotate)
    assert Subset(ITEMS, 20, 8, **how)(0) != Subset(ITEMS, 20, 7, **how)(0)


@pytest.mark.parametrize("draw", DRAWS)
def test_rotation_reaches_every_item(draw):
    subset = Subset(ITEMS, 20, 1, rotate=True, draw=DRAWS[draw])
    seen = {one for generation in range(150) for one in subset(generation)["even"]}
    assert seen == set(subset.every()["even"]) == {item.id for item in ITEMS["even"]}


def grown(batches: list[int], points: int, **how) -> list[Sample]:
    """Return the samples of generations of so many points each."""
    subset, starts = Subset(ITEMS, 41, 3, growth=Growth(0.1, points), **how), np.cumsum([0, *batches])
    return [subset.sample(i, int(starts[i]), count) for i, count in enumerate(batches)]


@pytest.mark.parametrize("rotate", [False, True])
@pytest.mark.parametrize("draw", DRAWS)
def test_a_sample_grows_to_its_full_size_and_every_task_with_it(draw, rotate):
    samples = grown([10] * 10 + [1] * 3, 100, draw=DRAWS[draw], rotate=rotate)
    sizes = [{task: len(ids) for task, ids in sample.ids.items()} for sample in samples]
    assert sizes[0] == {"even": 2, "rare": 2}
    assert sizes[5] == {"even": 13, "rare": 12}  # 0.1 + 0.9 * 50 / 90 = 0.6
    assert sizes[8]["even"] < 21
    assert sizes[9:] == [{"even": 21, "rare": 20}] * 4  # the last generation, and whatever comes after it
    for number, sample in enumerate(samples):
        for name, ids in sample.ids.items():
            place = {item.id: i for i, item in enumerate(ITEMS[name])}
            assert sorted(ids, key=place.__getitem__) == ids
            weighs = sum(sample.weights.get(name, [len(ITEMS[name])]))
            assert weighs == len(ITEMS[name]) if rotate or number >= 9 else 0 < weighs <= len(ITEMS[name])


@pytest.mark.parametrize("draw", DRAWS)
def test_a_fixed_sample_that_grows_keeps_what_it_has_and_ends_as_one_that_does_not(draw):
    samples = grown([6, 10, 10, 10, 4], 40, draw=DRAWS[draw])
    for one, other in pairwise(samples):
        for task, ids in one.ids.items():
            weights, later = (sample.weights.get(task, [1] * len(sample.ids[task])) for sample in (one, other))
            assert (
                set(zip(ids, weights, strict=True)) < set(zip(other.ids[task], later, strict=True))
                or ids == other.ids[task]
            )
    assert samples[-1] == Subset(ITEMS, 41, 3, draw=DRAWS[draw]).sample(0)
    anew = grown([6, 10, 10, 10, 4], 40, draw=DRAWS[draw], rotate=True)
    assert not set(anew[1].ids["even"]) < set(anew[2].ids["even"])


@pytest.mark.parametrize(
    ("batches", "points"),
    [([50], 50), ([50], 40), ([6, 12, 12, 7], 37), ([6, 12, 12, 12], 37), ([1] * 30, 30), ([6, *[1] * 9], 15)],
)
def test_the_last_generation_has_all_items_and_none_has_less_than_the_one_before(batches, points):
    sizes = [sum(map(len, sample.ids.values())) for sample in grown(batches, points)]
    assert sizes == sorted(sizes)
    assert sizes[-1] == 41
    assert len(batches) == 1 or sizes[-2] < 41


def test_the_beginning_of_a_sample_has_the_share_of_each_class_nearly_and_each_item_the_same_chance():
    counts, worst = Counter(), 0.0
    for seed in range(2000):
        sample = Subset(ITEMS, 80, seed, growth=Growth(0.3, 100)).sample(0, 0, 10)
        counts.update(sample.ids["even"])
        labels = {item.id: item.label for item in ITEMS["even"]}
        assert len(sample.ids["even"]) == 12
        worst = max(worst, abs(sum(labels[one] for one in sample.ids["even"]) - 6))
    assert worst <= 1  # 12 at random are 2 or more off in one of three draws
    observed = np.array([counts[item.id] for item in ITEMS["even"]])
    assert stats.chisquare(observed).pvalue > 1e-3


def test_every_beginning_is_spread_evenly():
    for n in (1, 2, 40, 64, 100):
        order = spread(n, np.random.default_rng(n))
        assert sorted(order.tolist()) == list(range(n))
        for size in range(1, n):
            taken = np.cumsum(np.isin(np.arange(n), order[:size])) - size * np.arange(1, n + 1) / n
            assert np.ptp(taken) < 3  # of items too many or too few, between any two places
    assert len(spread(0, np.random.default_rng(0))) == 0


def test_weights_stay_with_their_items():
    subset = Subset({"even": ITEMS["even"]}, 12, 3, draw=DRAWS["disagreement"])
    sample = subset.sample(0)
    ids, counts = sample.ids["even"], sample.weights["even"]
    alike = {id: count for id, count in zip(ids, counts, strict=True) if APART["even"][int(id[1:])] == 0}
    assert min(alike.values()) > max(set(counts) - set(alike.values()), default=0)  # agreement stands for many items
    values = np.arange(12.0)
    outcome = Outcome(sample.ids, {"even": {"accuracy": values}})
    assert sample.weighed(outcome).scores()["even"]["accuracy"] == pytest.approx(np.dot(values, counts) / 60)
    assert Subset(ITEMS, 20, 7).sample(0).weighed(outcome) is outcome


def test_what_is_not_known_yet_is_drawn_by_class_and_may_be_any_item():
    subset = Subset(ITEMS, 20, 7, draw=None)
    assert subset(0) == Subset(ITEMS, 20, 7)(0)
    assert sum(map(len, subset.every().values())) == 130
    assert subset.informed(DRAWS["disagreement"]).sample(0) == Subset(ITEMS, 20, 7, draw=DRAWS["disagreement"]).sample(
        0
    )


def test_all_items():
    everything = {name: [item.id for item in items] for name, items in ITEMS.items()}
    for size in (None, 130, 10**6):
        subset = Subset(ITEMS, size, 3)
        assert subset.size == (130 if size != 130 else 125)  # 65 for each task, of which one has 60
        assert subset(0)["even"] == everything["even"]
    assert Subset(ITEMS, None, 3, rotate=True)(9) == everything


def test_global_random_state_is_not_read(monkeypatch):
    expected = Subset(ITEMS, 20, 7)(0)
    np.random.seed(99)  # noqa: NPY002
    assert Subset(ITEMS, 20, 7)(0) == expected


def test_fewer_items_than_tasks():
    with pytest.raises(ConfigError, match=r"fitness\.items is 1, less than one for each of 2 tasks: write at least 2"):
        Subset(ITEMS, 1, 0)
