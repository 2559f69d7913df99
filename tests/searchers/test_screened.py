"""Screening: who is scored, what CMA-ES and TPE are told of the others, and when all are scored."""

from __future__ import annotations

import numpy as np
import pytest

from evomerge.common.errors import ConfigError
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.regression import fitted
from evomerge.searchers.screened import Screened
from evomerge.searchers.screening import LEAST, Screening
from evomerge.searchers.tpe import PART, Tpe
from evomerge.trials import Batch
from tests.kit.helpers import box, sphere
from tests.kit.searching import answer, drive, points

SPACE = box(6)
SIZE = 9  # 4 + floor(3 ln 6)


def screened(seed: int = 0, **settings: float) -> Screened:
    return Screened(SPACE, SPACE.start({}), seed, **settings)  # pyright: ignore[reportArgumentType]


def test_the_better_half_of_what_cmaes_draws_is_scored() -> None:
    searcher, twice = screened(), CmaEs(SPACE, SPACE.start({}), 0, popsize=2 * SIZE)
    first = answer(searcher.ask(), sphere)
    assert np.array_equal(first.points, twice.ask().points)  # nothing is known yet: all are scored
    searcher.tell(first)
    twice.tell(answer(first, sphere))
    drawn, asked = twice.ask().points, searcher.ask().points
    kept = np.array([any(np.array_equal(x, y) for y in asked) for x in drawn])
    assert len(asked) == kept.sum() == SIZE
    worth = np.array([sphere(x) for x in drawn])
    assert worth[kept].mean() > worth[~kept].mean()
    assert np.array_equal(drawn[kept], asked)  # in the order drawn


@pytest.mark.parametrize(("share", "popsize"), [(0.4, 7), (0.75, 9), (0.07, 3)])
def test_as_many_points_are_scored_as_the_population_says(share: float, popsize: int) -> None:
    searcher = screened(share=share, popsize=popsize, agree=-1.0)
    sizes = [len(batch.points) for batch in drive(searcher, sphere, 90)]
    assert set(sizes[-3:]) == {popsize}
    assert searcher.parents().count >= popsize  # a race drops none of them


def test_screening_finds_more_for_as_many_points() -> None:
    def best(searcher: Screened | CmaEs) -> float:
        return max(sphere(x) for batch in drive(searcher, sphere, 90) for x in batch.points)

    seeds = range(8)
    with_, without = (
        np.mean([np.log(-best(made(seed))) for seed in seeds])
        for made in (screened, lambda seed: CmaEs(SPACE, SPACE.start({}), seed))
    )
    assert with_ < without - 0.2


def test_all_points_are_scored_while_the_regression_ranks_at_random() -> None:
    noise = np.random.default_rng(0)
    sizes = [len(batch.points) for batch in drive(screened(agree=0.5), lambda x: noise.normal(), 200)]
    assert sizes[:2] == [2 * SIZE, SIZE]
    assert set(sizes[3:]) == {2 * SIZE}


def test_a_screened_point_is_no_incumbent_and_a_failed_one_is_ranked_last() -> None:
    searcher = screened()
    batches = drive(searcher, lambda x: None if x[0] > 0.6 else sphere(x), 80)
    found = [one for name, one in searcher.incumbents().items() if name != "mean"]
    assert found
    for one in found:
        assert one.trial is not None
        batch = next(each for each in batches if each.index == one.trial[0])
        assert np.array_equal(batch.points[one.trial[1]], one.x)
    asked = points(batches[-3:])
    assert (asked[:, 0] > 0.6).mean() < 0.5


def test_a_generation_that_fails_as_a_whole_is_told() -> None:
    assert len(drive(screened(), lambda x: None, 60)) > 2


def test_offsets_of_generations_do_not_mislead_the_regression() -> None:
    rng = np.random.default_rng(0)
    x, generation = rng.uniform(size=(60, 3)), np.repeat(np.arange(6), 10)
    values = x[:, 0] + 5 * rng.normal(size=6)[generation]
    others = rng.uniform(size=(30, 3))
    fit = fitted(x, values, generation)
    assert fit is not None
    assert np.corrcoef(fit(others), others[:, 0])[0, 1] > 0.9


def test_nothing_is_expected_of_points_that_are_all_alike() -> None:
    same, values = np.ones((5, 2)), np.arange(5.0)
    assert fitted(same, values, np.zeros(5)) is None
    assert fitted(np.eye(5), np.zeros(5), np.zeros(5)) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"share": 1.0}, "searcher=cmaes to score all"), ({"share": 0.0}, "between 0 and 1"), ({"agree": 2.0}, "rank")],
)
def test_what_is_no_share_or_correlation_is_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        screened(**settings)


def far(x: np.ndarray) -> float:
    """A sphere around a point that lies elsewhere in each coordinate, far from where a search starts."""
    return -float(((x - np.linspace(0.1, 1.3, len(x))) ** 2).mean())


def test_tpe_finds_more_for_as_many_points() -> None:
    def best(share: float, seed: int) -> float:
        searcher = Tpe(SPACE, SPACE.start({}), seed, share=share)
        return max(far(x) for batch in drive(searcher, far, 40) for x in batch.points)

    with_, without = (np.mean([np.log(-best(share, seed)) for seed in range(4)]) for share in (0.25, 1.0))
    assert with_ < without - 0.2


def test_tpe_scores_the_first_of_its_draws_until_a_regression_knows_enough() -> None:
    searcher = Tpe(SPACE, SPACE.start({}), 3, batch=3, share=0.5)
    asked = points(drive(searcher, far, LEAST))
    assert np.array_equal(asked[0], SPACE.start({}))
    same = [Tpe(SPACE, SPACE.start({}), 3, batch=3, share=0.5) for _ in range(2)]
    assert np.array_equal(*(points(drive(one, lambda x: None, 30)) for one in same))  # all fail: nothing is known


def test_tpe_is_not_misled_by_generations_with_other_items() -> None:
    def found(share: float, seed: int) -> float:
        searcher, rng = Tpe(SPACE, SPACE.start({}), seed, batch=8, share=share), np.random.default_rng(seed)
        for _ in range(8):
            offset = rng.normal()  # of the items; between points values differ by a tenth of that
            batch = searcher.ask()
            searcher.tell(answer(batch, lambda x, offset=offset: far(x) + offset))
        handed = searcher.incumbents()
        return max(far(one.x) for name, one in handed.items() if share == 1 or name.startswith("expected"))

    with_, without = (np.mean([np.log(-found(share, seed)) for seed in range(4)]) for share in (0.25, 1.0))
    assert with_ < without - 0.5


def test_what_is_expected_stands_in_for_values_but_not_for_failures() -> None:
    screening, rng = Screening(SPACE), np.random.default_rng(0)
    batch = Batch(0, rng.uniform(size=(LEAST - 1, SPACE.dim)))
    screening.learn(answer(batch, far), None)
    assert np.array_equal(screening.smoothed()[1], batch.values)  # too few for a regression
    other = Batch(1, rng.uniform(size=(20, SPACE.dim)))
    screening.learn(answer(other, lambda x: None if x[0] < 0.3 else far(x)), None)
    smoothed, failed = screening.smoothed()[1], other.points[:, 0] < 0.3
    assert 0 < failed.sum() < 20
    assert np.array_equal(np.isneginf(smoothed), [*[False] * (LEAST - 1), *failed])
    leaders = screening.leaders(3)
    assert [one.trial for one in leaders] == [
        (int(place >= LEAST - 1), int(place - (LEAST - 1) * (place >= LEAST - 1)))
        for place in np.argsort(-smoothed, kind="stable")[:3]
    ]


@pytest.mark.parametrize(
    ("share", "objectives", "lag", "message"),
    [
        (0.0, 1, 0, "up to 1"),
        (1.5, 1, 0, "up to 1"),
        (0.5, 2, 0, "searcher.share=1"),
        (0.5, 1, 3, "searcher.lag=0, or searcher.share=1"),
    ],
)
def test_tpe_refuses_what_is_no_share(share: float, objectives: int, lag: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tpe(SPACE, SPACE.start({}), 0, share=share, objectives=objectives, lag=lag)


def test_tpe_goes_by_the_last_points(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.searchers.screening.RECENT", 16)
    searcher = Tpe(SPACE, SPACE.start({}), 0, batch=4, share=0.5)
    batches = drive(searcher, lambda x: far(x) if x[0] < 1.4 else None, 40)
    known = {name: one.trial for name, one in searcher.incumbents().items() if name.startswith("expected")}
    assert known
    assert all(trial is not None and trial[0] >= len(batches) - 4 for trial in known.values())
    best = searcher.incumbents()["best"]
    assert far(best.x) == max(far(x) for x in points(batches) if x[0] < 1.4)  # the best of all stays


def test_a_regression_goes_by_all_points_so_a_race_drops_none() -> None:
    alone, together = (Tpe(SPACE, SPACE.start({}), 0, batch=batch, share=0.5) for batch in (1, 4))
    asked = sum(len(batch.points) for batch in drive(alone, far, 15))
    assert (alone.parents().count, alone.parents().earlier) == (asked + 1, asked)
    assert (together.parents().count, together.parents().earlier) == (4, None)
    assert alone.parents().all_count == together.parents().all_count != ""


def test_what_batches_have_in_common_does_not_count_as_agreement() -> None:
    rng, screening = np.random.default_rng(0), Screening(SPACE, part=PART)
    for index in range(PART):  # two points each; what is expected is right within a batch, and offsets are large
        batch = Batch(index, rng.uniform(size=(2, SPACE.dim)))
        screening.learn(
            answer(batch, lambda x, i=index: far(x) + 9 * (-1) ** i), np.array([far(x) for x in batch.points])
        )
    assert screening.better(np.array([0.0, 1.0, 2.0]), 1) is not None


def test_ranks_are_measured_over_batches_of_one_point() -> None:
    rng, start = np.random.default_rng(0), SPACE.start({})
    screening = Screening(SPACE, part=PART)
    for index in range(3 * PART):
        x = start + 0.1 * rng.normal(size=(1, len(start)))
        expected_of = np.array([float(index % 2)])
        screening.learn(answer(Batch(index, x), lambda x, i=index: -float(i % 2)), expected_of)  # the other way round
        left_out = screening.better(np.array([0.0, 1.0]), 1)
        assert (left_out is None) == (index + 1 >= PART)
