"""The conformance matrix: every searcher has every property (those of tests/searching.py)."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError
from evomerge.searchers.base import Searcher, lag_of, parts_of
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.gradient import Gradient
from evomerge.searchers.grid import Grid
from evomerge.searchers.hybrid import Hybrid
from evomerge.searchers.random import Random
from evomerge.searchers.tpe import Tpe
from evomerge.searchers.warm import TRIED_FIRST, WarmStart
from evomerge.trials import Batch
from tests.kit.helpers import box, sphere
from tests.kit.searching import BY_GRADIENT, OPTIONS, SEARCHERS, Make, answer, drive, points

WITHOUT_SEED = ("grid", "greedy", "topk", "gradient", "gradient-cosine", "warm-gradient")
SOLVERS = {
    "cmaes": (400, 1e-3),
    "cmaes-diagonal": (400, 1e-3),
    "cmaes-popsize": (400, 1e-3),
    "screened": (300, 1e-3),
    "tpe": (150, 0.05),
    "tpe-batch": (150, 0.05),
    "tpe-screened": (150, 0.02),
    "warm-cmaes": (400, 1e-3),
    "warm-tpe": (150, 0.05),
    "hybrid": (400, 1e-3),
    "warm-hybrid": (400, 1e-3),
}


@pytest.fixture(params=SEARCHERS, ids=str)
def make(request: pytest.FixtureRequest) -> Make:
    return SEARCHERS[request.param]


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 2**31), dim=st.integers(2, 12), low=st.floats(-2, 0), width=st.floats(0.1, 3))
@pytest.mark.parametrize("name", SEARCHERS)
def test_bounds_are_kept(name: str, seed: int, dim: int, low: float, width: float) -> None:
    assume(
        name not in ("greedy", "topk") or (low + width >= 0 and 2 * low + width != 0)
    )  # which leaves experts out, or takes them
    space = box(dim, low, low + width)
    searcher = SEARCHERS[name](space, seed)
    asked = points(drive(searcher, lambda x: float(x.sum()), 40))  # the best lies in a corner
    assert (asked >= space.low).all()
    assert (asked <= space.high).all()
    for x in (one.x for one in searcher.incumbents().values()):
        assert x.shape == (dim,)
        assert (x >= space.low).all()
        assert (x <= space.high).all()


@pytest.mark.parametrize("budget", [4, 20, 60])
def test_no_more_is_asked_and_handed_over_than_was_told(make: Make, budget: int) -> None:
    searcher = make(box(6), 7)
    parts = parts_of(searcher, budget)
    assert sum(part.count for part in parts) <= budget
    batches = drive(searcher, sphere, budget)
    assert parts_of(searcher, budget) == parts  # it stays as it was told
    for gradient in (False, True):
        asked = sum(len(batch.points) for batch in batches if batch.gradient is gradient)
        largest = max((len(batch.points) for batch in batches), default=0)  # the budget would have cut the last one
        told = sum(part.count for part in parts if part.gradient is gradient)
        ended = searcher.stop() is not None and asked <= told  # a forecast: what topk asks for depends on values
        assert told - largest < asked < told + largest or asked == told or ended
    assert len(searcher.incumbents()) <= sum(part.incumbents for part in parts)


def test_same_seed_same_run(make: Make) -> None:
    one, two = (points(drive(make(box(6), 7), sphere, 60)) for _ in range(2))
    assert np.array_equal(one, two)


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in WITHOUT_SEED])
def test_another_seed_another_run(name: str) -> None:
    one, two = (points(drive(SEARCHERS[name](box(6), seed), sphere, 25)) for seed in (0, 1))
    assert not np.array_equal(one, two)


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_replay_is_identical(cut: int) -> None:
    """Rebuilt and told what was logged, a searcher goes on as if it had never stopped; test_search.py has them all."""
    whole = drive(SEARCHERS["random"](box(5), 3), sphere, 80)
    again = SEARCHERS["random"](box(5), 3)
    for batch in whole[:cut]:
        again.tell(Batch(batch.index, again.ask().points, list(batch.trials)))
    rest = drive(again, sphere, 80 - sum(len(b.points) for b in whole[:cut]))
    assert np.array_equal(points(whole), points(whole[:cut] + rest))
    assert [*again.incumbents()]


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name not in (*BY_GRADIENT, "greedy", "topk")])
def test_failed_and_nan_points_come_last_and_are_never_best(name: str) -> None:
    space = box(4)
    searcher = SEARCHERS[name](space, 1)
    calls = iter(range(10**6))

    def value(x: np.ndarray) -> float | None:
        return (None, float("nan"), sphere(x))[next(calls) % 3]

    batches = drive(searcher, value, 60)
    good = [x for b in batches for x, v in zip(b.points, b.values, strict=True) if np.isfinite(v)]
    seen = [one.x for name, one in searcher.incumbents().items() if name != "mean"]
    assert all(any(np.array_equal(x, other) for other in good) for x in seen)
    assert max(map(sphere, seen)) == max(map(sphere, good))
    for name, one in searcher.incumbents().items():
        assert np.isfinite(one.x).all(), name


def test_incumbents_name_the_trials_that_scored_them(make: Make) -> None:
    """By the numbers that the log has, also behind a warm start or as the second of two."""
    searcher = make(box(4), 1)
    batches = drive(searcher, sphere, 60)
    found = searcher.incumbents()
    for name, one in found.items():
        if one.trial is not None:
            batch, index = one.trial
            assert np.array_equal(batches[batch].points[index], one.x), name
    without = {name for name, one in found.items() if one.trial is None}
    assert without <= {"mean"} | {name for name in found if "step_" in name}
    assert len(without) <= 1 + any("first_" in name for name in found)


def test_all_points_failed(make: Make) -> None:
    searcher = make(box(3), 1)
    drive(searcher, lambda x: None, 40)
    assert searcher.incumbents() == {}


@pytest.mark.parametrize(
    "value", [lambda x: 0.5, lambda x: round(sphere(x), 1), lambda x: float("-1e30")], ids=["flat", "steps", "huge"]
)
@pytest.mark.parametrize(
    "name", [name for name in SEARCHERS if not name.startswith(("grid", "greedy", "topk", "warm-hybrid"))]
)
def test_flat_and_quantised_fitness_do_not_end_the_run(name: str, value: Callable[[np.ndarray], float]) -> None:
    searcher = SEARCHERS[name](box(4), 1)
    trials = 60 if "tpe" in name else 300
    assert len(points(drive(searcher, value, trials))) >= trials


def test_global_random_state_is_neither_read_nor_written() -> None:
    """Of the one that draws most; test_search.py has them all, with an evaluator that reseeds whatever it can."""

    def states() -> tuple[Any, ...]:
        return repr(np.random.get_state()), torch.get_rng_state().tolist(), random.getstate()  # noqa: NPY002

    before = states()
    calm = points(drive(SEARCHERS["random"](box(6), 5), sphere, 60))
    assert states() == before
    np.random.seed(1234)  # noqa: NPY002
    torch.manual_seed(1234)
    random.seed(1234)
    assert np.array_equal(calm, points(drive(SEARCHERS["random"](box(6), 5), sphere, 60)))


@pytest.mark.parametrize("name", SOLVERS)
def test_the_sphere_is_solved(name: str) -> None:
    trials, error = SOLVERS[name]
    searcher = SEARCHERS[name](box(5), 2)
    drive(searcher, sphere, trials)
    assert -sphere(searcher.incumbents()["best"].x) < error


@pytest.mark.parametrize(
    "name", [name for name in SEARCHERS if not name.startswith(("warm", "cmaes", "screened", "grid"))]
)
def test_the_start_is_scored_first(name: str) -> None:
    space = box(3)
    first = SEARCHERS[name](space, 4).ask().points
    assert first[0].tolist() == space.start({}).tolist()


@pytest.mark.parametrize("name", [name for name in SEARCHERS if name.startswith("cmaes")])
def test_the_start_is_the_mean_of_the_first_generations(name: str) -> None:
    """Over 80 seeds; sigma is .15 of a range of 1.5, so that the mean over n points has an error of .225 / √n."""
    space = box(3)
    start = space.nearest({"weight": np.linspace(0.6, 0.9, 3)[:, None]})
    first = np.concatenate([CmaEs(space, start, seed, **OPTIONS[name]).ask().points for seed in range(80)])
    assert np.abs(first.mean(axis=0) - start).max() < 4 * 0.225 / len(first) ** 0.5
    assert np.abs(first - start).max() > 0.3


@pytest.mark.parametrize(
    "make_one", [CmaEs, Tpe, Random, Gradient, partial(Hybrid, first=partial(Gradient, steps=2), second=CmaEs)]
)
@pytest.mark.parametrize(
    ("start", "message"),
    [
        ([0.5, 1.6], r"start is 1\.6 for weight/p1/expert, outside of its bounds \[0, 1\.5\]"),
        ([-0.1, 0.5], r"start is -0\.1 for weight/p0/expert"),
        ([0.5, float("nan")], "start is nan"),
        ([0.5], r"shape \(1,\)"),
    ],
)
def test_a_start_outside_the_bounds_is_refused(
    make_one: Callable[..., Searcher], start: list[float], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_one(box(2), np.array(start), 1)


def test_protocol_errors(make: Make) -> None:
    searcher = make(box(3), 1)
    batch = searcher.ask()
    for _ in range(lag_of(searcher)):
        searcher.ask()
    with pytest.raises(RuntimeError, match="ask\\(\\) was called too early"):
        searcher.ask()
    with pytest.raises(RuntimeError, match="missing"):
        searcher.tell(batch)
    with pytest.raises(RuntimeError, match="batch 9, but the oldest open one is 0"):
        searcher.tell(Batch(9, batch.points))


def test_open_batches_are_told_in_the_order_asked() -> None:
    searcher = Random(box(3), np.zeros(3), 1, lag=2)
    first, second, third = (answer(searcher.ask(), sphere) for _ in range(3))
    assert [batch.index for batch in (first, second, third)] == [0, 1, 2]
    with pytest.raises(RuntimeError, match="batch 1, but the oldest open one is 0"):
        searcher.tell(second)
    searcher.tell(first)
    assert searcher.ask().index == 3
    for batch in (second, third):
        searcher.tell(batch)


@pytest.mark.parametrize("make_lagged", [CmaEs, Tpe, Random])
def test_a_lag_beyond_a_generation_may_be_told_at_one_go(make_lagged: Callable[..., Searcher]) -> None:
    """Nothing is asked between two generations of CMA-ES."""
    searcher = make_lagged(box(3), np.full(3, 0.3), 1, lag=30)
    for batch in [searcher.ask() for _ in range(31)]:
        searcher.tell(answer(batch, sphere))
    assert searcher.ask().index == 31


def test_cmaes_is_not_upset_by_points_that_were_drawn_long_ago() -> None:
    """Taken as they are, they make variances collapse: pycma warns, and then divides by zero."""
    searcher = CmaEs(box(30), box(30).start({}), 0, popsize=5, lag=31)
    drive(searcher, sphere, 250)
    assert np.isfinite(searcher.incumbents()["mean"].x).all()


def test_a_warm_start_begins_at_the_best_constant() -> None:
    space = box(4)
    starts: list[np.ndarray] = []

    def make_inner(start: np.ndarray) -> Searcher:
        starts.append(start)
        return Random(space, start, 1)

    searcher = WarmStart(space, make_inner)
    first = answer(searcher.ask(), sphere)
    assert first.points.tolist() == [[c] * 4 for c in TRIED_FIRST]
    searcher.tell(first)
    assert starts[-1].tolist() in ([0.6] * 4, [0.8] * 4)  # equally near to 0.7
    assert searcher.ask().points[0].tolist() == starts[-1].tolist()
    assert "constant" in searcher.incumbents()


def test_grid_covers_the_range_once() -> None:
    space = box(1)
    searcher = Grid(space, space.start({}), 0, points=4)
    assert searcher.ask().points[:, 0].tolist() == [0.0, 0.5, 1.0, 1.5]
    with pytest.raises(ConfigError, match=r"one coefficient, and this space has 3.*space=model"):
        Grid(box(3), np.zeros(3), 0)
    with pytest.raises(ConfigError, match="Near ones: weight/p1/expert"):
        Grid(box(3), np.zeros(3), 0, coordinate="weight/p1/exprt")


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (lambda: CmaEs(box(1), np.zeros(1), 1), "at least two free coefficients"),
        (lambda: CmaEs(box(2), np.zeros(2), 1, sigma=0.0), "fraction of the range"),
        (lambda: CmaEs(box(2), np.zeros(2), 1, popsize=1), "at least 2 points"),
        (lambda: CmaEs(box(2), np.zeros(2), 1, popsize=2, lag=1), "at least 3 points with a lag"),
        (lambda: Tpe(box(2), np.zeros(2), 1, batch=0), "at least one point"),
        (lambda: Random(box(2), np.zeros(2), 1, batch=0), "at least one point"),
        (lambda: CmaEs(box(2), np.zeros(2), 1, lag=-1), r"searcher\.lag=-1 .*write 0, or for a pool of 8 workers 7"),
        (lambda: Tpe(box(2), np.zeros(2), 1, lag=1.5), r"searcher\.lag=1\.5 "),  # type: ignore[arg-type]
        (lambda: Random(box(2), np.zeros(2), 1, lag=True), r"searcher\.lag=True "),
        (lambda: Grid(box(1), np.zeros(1), 1, points=1), "at least 2"),
    ],
)
def test_bad_settings_are_refused(make_bad: Callable[[], Searcher], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_bad()
