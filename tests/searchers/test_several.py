"""The conformance matrix of searchers that are told several values: what holds for one value holds for three."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.common.errors import ConfigError
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.searchers.archive import Archive, unfinished
from evomerge.searchers.base import Incumbent, Searcher, parts_of
from evomerge.searchers.domination import crowding, dominates, ranks, thinned
from evomerge.searchers.lines import Lines
from evomerge.searchers.mocma import MoCma
from evomerge.searchers.nsga2 import Nsga2
from evomerge.searchers.random import Random
from evomerge.searchers.surrogate import Surrogate
from evomerge.searchers.warm import WarmStart
from evomerge.space.coefficients import make_space
from evomerge.space.variable import Variable
from evomerge.trials import Batch, Trial
from tests.kit.helpers import box
from tests.kit.searching import SEVERAL, answer_several, drive, points, trade


def driven(searcher: Searcher, trials: int, value=trade) -> list[Batch]:
    return drive(searcher, value, trials, answer_several)


def front(batches: list[Batch]) -> np.ndarray:
    """The values that no other ones dominate, of all points that hold the constraint."""
    values = np.concatenate([batch.table(3) for batch in batches])
    violated = np.concatenate([batch.violated for batch in batches])
    return values[(ranks(values, violated) == 0) & (violated <= 0)]


def values_of(found: dict[str, Incumbent], batches: list[Batch]) -> np.ndarray:
    """What the log says of the trials that incumbents name; the points must be theirs."""
    places = {batch.index: batch for batch in batches}
    for name, one in found.items():
        assert one.trial is not None, name
        assert np.array_equal(places[one.trial[0]].points[one.trial[1]], one.x), name
    return np.array([places[one.trial[0]].table(3)[one.trial[1]] for one in found.values() if one.trial])


@pytest.mark.parametrize("name", SEVERAL)
def test_what_is_handed_over_is_a_front_of_what_was_seen(name: str) -> None:
    searcher = SEVERAL[name](box(4), 3)
    batches = driven(searcher, 60)
    assert (np.abs(points(batches) - 0.75) <= 0.75).all()
    found = searcher.incumbents()
    handed, best = values_of(found, batches), front(batches)
    assert 2 <= len(found) <= min(12, len(best))
    assert list(found) == [f"front_{i}" for i in range(1, len(found) + 1)]
    assert all(any(np.array_equal(one, other) for other in best) for one in handed)
    assert np.array_equal(handed.max(axis=0), best.max(axis=0))  # the ends of each value stay
    assert (np.diff(handed[:, 0]) <= 0).all()
    assert len(found) <= sum(part.incumbents for part in parts_of(searcher, 60))


@pytest.mark.parametrize("name", SEVERAL)
def test_the_same_is_asked_whatever_the_log_was_cut_at(name: str, tmp_path: Path) -> None:
    """Failed, infeasible and censored points among them."""

    def evaluate(batch: Batch, missing):
        for i in missing:
            kind = (7 * batch.index + i) % 5
            lacks = (0.2 - float(batch.points[i, 0]),)
            if kind == 0:
                yield Trial(batch.index, i, "failed", None, error="ValueError: no")
            else:
                yield Trial(batch.index, i, "censored" if kind == 1 else "ok", trade(batch.points[i]), lacks)

    def run(path: Path, trials: int) -> Searcher:
        searcher = SEVERAL[name](box(4), 5)
        with TrialLog(path, {"searcher": name}, {"machine": "this"}) as log:
            search(searcher, evaluate, log, Budget(trials))
        return searcher

    whole = run(tmp_path / "whole.jsonl", 40)
    for trials in (1, 13, 27, 40):
        resumed = run(tmp_path / "trials.jsonl", trials)
    assert (tmp_path / "whole.jsonl").read_bytes() == (tmp_path / "trials.jsonl").read_bytes()
    one, two = whole.incumbents(), resumed.incumbents()
    assert {name: (x.x.tobytes(), x.trial) for name, x in one.items()} == {
        name: (x.x.tobytes(), x.trial) for name, x in two.items()
    }
    assert one or name == "lines"  # whose ends are among those that fail


@pytest.mark.parametrize("name", SEVERAL)
def test_no_censored_point_is_handed_over_however_good_its_estimate(name: str) -> None:
    censored = set[tuple[int, int]]()

    def fill(batch: Batch, value: Callable[[np.ndarray], Any]) -> Batch:
        for i, trial in enumerate(answer_several(batch, value).trials):
            if (batch.index + i) % 3 and trial is not None and trial.values is not None:
                batch.trials[i] = replace(trial, status="censored", values=tuple(v + 9 for v in trial.values))
                censored.add((batch.index, i))
        return batch

    searcher = SEVERAL[name](box(4), 3)
    asked = len(points(drive(searcher, trade, 60, fill)))
    assert asked >= (2 if name == "lines" else 60)
    assert not censored & {one.trial for one in searcher.incumbents().values()}
    assert searcher.incumbents()


@pytest.mark.parametrize("name", SEVERAL)
def test_a_point_that_holds_the_constraint_goes_before_better_ones_that_do_not(name: str) -> None:
    searcher = SEVERAL[name](box(4), 1)
    batches = driven(searcher, 60, lambda x: (*trade(x), 0.5 - float(x[0])))
    assert all(one.x[0] >= 0.5 for one in searcher.incumbents().values())
    assert np.array_equal(values_of(searcher.incumbents(), batches).max(axis=0), front(batches).max(axis=0))


@pytest.mark.parametrize("name", SEVERAL)
def test_where_all_violate_the_nearest_is_handed_over(name: str) -> None:
    searcher = SEVERAL[name](box(4), 1)
    batches = driven(searcher, 30, lambda x: (*trade(x), 2.0 - float(x[0])))
    (only,) = searcher.incumbents().values()
    assert only.x[0] == points(batches)[:, 0].max()


@pytest.mark.parametrize("name", SEVERAL)
def test_failed_points_and_flat_values_end_nothing(name: str) -> None:
    searcher = SEVERAL[name](box(3), 1)
    driven(searcher, 24, lambda x: None)
    assert searcher.incumbents() == {}
    searcher = SEVERAL[name](box(3), 1)
    assert len(points(driven(searcher, 40, lambda x: (0.5, 0.5, 0.5)))) >= (2 if name == "lines" else 40)
    assert len(searcher.incumbents()) == 1


@pytest.mark.parametrize("kind", [Nsga2, MoCma])
def test_a_population_begins_with_one_weight_for_each_expert(kind: type[Nsga2 | MoCma]) -> None:
    """The weights of each expert are spread over their whole range."""
    parameters = {f"encoder.layer.{i}.w": (2,) for i in range(3)}
    space = make_space(
        "layer", parameters, ["a", "b"], [Variable("weight", 0.0, 1.5, 0.4), Variable("t", 0.0, 1.0, 0.5)]
    )
    first = kind(space, space.start({}), 1, popsize=9, first="experts", objectives=3).ask()
    assert np.array_equal(first.points[0], space.start({}))
    for variable, high in (("weight", 1.5), ("t", 1.0)):
        for row in ("a", "b"):
            own = first.points[1:, [name.startswith(f"{variable}/") and name.endswith(row) for name in space.names]]
            assert own.shape == (8, 3)
            assert (own == own[:, :1]).all()
            assert (np.sort(own[:, 0]) * 8 / high // 1 == np.arange(8)).all()


def test_the_second_generation_has_the_first_as_parents() -> None:
    """What was told of it decides what is asked next; a first generation around the start has no children."""

    def second(first: str, value: Callable[[np.ndarray], tuple[float, ...]]) -> np.ndarray:
        searcher = Nsga2(box(4), box(4).start({}), 1, popsize=6, first=first, objectives=3)
        return driven(searcher, 12, value)[1].points

    for first, alike in (("experts", False), ("start", True)):
        assert np.array_equal(second(first, trade), second(first, lambda x: trade(1.5 - x))) == alike


@pytest.mark.parametrize("kind", [Nsga2, MoCma])
def test_an_unknown_first_generation_is_refused(kind: type[Nsga2 | MoCma]) -> None:
    with pytest.raises(ConfigError, match="did you mean 'experts'"):
        kind(box(2), box(2).start({}), 1, first="expert")


@pytest.mark.parametrize("name", ["tpe", "nsga2", "mocma", "mocma-diagonal", "map"])
def test_what_learns_finds_a_better_front_than_random(name: str) -> None:
    """By R2 (Hansen and Jaszkiewicz 1998): how far behind the ideal the best point lies, over several weights."""
    weights = np.random.default_rng(0).dirichlet(np.ones(3), 20)

    def behind(chosen: str) -> float:
        fronts = [front(driven(SEVERAL[chosen](box(6), seed), 80)) for seed in range(2)]
        return -float(np.mean([(weights[:, None] * one).min(axis=2).max(axis=1).mean() for one in fronts]))

    assert behind(name) < behind("random")


NUMBERS = arrays(np.float64, st.tuples(st.integers(1, 9), st.integers(2, 3)), elements=st.integers(-3, 3))


@settings(max_examples=60, deadline=None)
@given(NUMBERS, st.data())
def test_domination_is_what_its_definition_says(values: np.ndarray, data: st.DataObject) -> None:
    lacks = np.array(
        data.draw(st.lists(st.sampled_from([0.0, 0.0, 1.0, 2.0]), min_size=len(values), max_size=len(values)))
    )
    above, found = dominates(values, lacks), ranks(values, lacks)
    for i, j in np.ndindex(above.shape):
        better = all(values[i] >= values[j]) and any(values[i] > values[j])
        expected = lacks[i] < lacks[j] if lacks[i] or lacks[j] else better
        assert above[i, j] == expected
        assert not above[i, j] or found[i] < found[j]
    for i in np.flatnonzero(found):
        assert any(above[j, i] and found[j] == found[i] - 1 for j in range(len(values)))


def test_crowding_by_hand() -> None:
    """Deb et al. (2002), section III B, for a front of four points."""
    values = np.array([[0.0, 4.0], [1.0, 3.0], [3.0, 2.0], [4.0, 0.0]])
    assert crowding(values).tolist() == [np.inf, 3 / 4 + 2 / 4, 3 / 4 + 3 / 4, np.inf]
    assert thinned(values, 3) == [0, 2, 3]
    assert thinned(values, 9) == [0, 1, 2, 3]
    assert crowding(np.zeros((2, 2))).tolist() == [0, 0]


def test_a_warm_start_begins_at_a_compromise() -> None:
    space, starts = box(3), list[np.ndarray]()

    def make(start: np.ndarray) -> Searcher:
        starts.append(start)
        return Random(space, start, 1, objectives=3)

    searcher = WarmStart(space, make, objectives=3)
    first = answer_several(searcher.ask(), trade)
    searcher.tell(first)
    assert starts[-1].tolist() == [0.6] * 3  # in the middle of 0.2, 0.6 and 1.0
    assert [one.trial for one in searcher.incumbents().values()] == [(0, i) for i in range(5)]


def test_a_generation_that_was_cut_short_is_not_lost() -> None:
    batch = answer_several(Batch(3, np.array([[0.2], [0.6], [0.4], [1.5], [0.0]])), trade)
    batch.trials[4] = None
    assert [one.trial for one in unfinished(batch).values()] == [(3, 0), (3, 2), (3, 1)]
    with pytest.raises(ConfigError, match=r"searcher\.incumbents is 0"):
        Archive(0, 3)


def test_rewarded_soups_fill_the_front_between_the_experts() -> None:
    """Each expert is best at its own value, which falls with the distance from it."""
    space = make_space("model", {"w": (2,)}, ["a", "b", "c"], [Variable("weight", 0.0, 1.5, 0.4)])
    searcher, ends = Lines(space, space.start({}), 0, batch=3, objectives=3), np.eye(3)
    batches = driven(searcher, 40, lambda x: tuple(-float(((x - end) ** 2).sum()) for end in ends))
    assert batches[0].points.tolist() == [[0.4] * 3, *ends.tolist()]
    assert np.allclose(batches[1].points, (batches[0].points[1:] + 0.4) / 2)  # the start lies between all of them
    asked, found = points(batches), [one.x for one in searcher.incumbents().values()]
    assert (asked >= 0).all()
    assert (np.abs(asked.sum(axis=1) - 1.1) <= 0.1 + 1e-9).all()  # nothing lies beyond the ends
    assert len(found) == 12
    assert all(any(np.array_equal(end, x) for x in found) for end in ends)
    with pytest.raises(ConfigError, match="draws lines between models that are best at different values"):
        Lines(space, space.start({}), 0)


def test_lines_go_on_where_no_point_holds_a_constraint_yet() -> None:
    """It holds near a middle of a middle alone, and neither at the start nor at an end."""
    space = make_space("model", {"w": (2,)}, ["a", "b", "c"], [Variable("weight", 0.0, 1.5, 0.4)])
    searcher, ends = Lines(space, space.start({}), 0, batch=3, objectives=3), np.eye(3)

    def value(x: np.ndarray) -> tuple[float, ...]:
        lacks = float(np.abs(x - [0.85, 0.1, 0.1]).max()) - 0.06
        return (*(-float(((x - end) ** 2).sum()) for end in ends), lacks)

    batches = driven(searcher, 40, value)
    assert not any((batch.violated <= 0).any() for batch in batches[:1])
    assert len(points(batches)) > 7
    found = [one.trial for one in searcher.incumbents().values()]
    assert found
    assert all(batches[batch].violated[index] <= 0 for batch, index in filter(None, found))


def test_a_quadratic_finds_the_front_of_quadratics() -> None:
    """Three spheres are quadratics, so their front is known once the model is fitted: the line between the centres."""
    searcher = Surrogate(box(3), np.full(3, 0.4), 2, batch=6, objectives=3)
    batches = driven(searcher, 32)
    assert len(batches[0].points) == 20
    first, proposed = batches[0].points, points(batches[1:])
    off = [np.abs(x - x.mean(axis=1, keepdims=True)).max(axis=1) for x in (first, proposed)]
    assert np.median(off[1]) < 0.1 < np.median(off[0])
    assert (proposed >= first.min(axis=0) - 1e-9).all()
    assert (proposed <= first.max(axis=0) + 1e-9).all()


@pytest.mark.parametrize(
    ("make_bad", "message"),
    [
        (
            lambda: Surrogate(box(13), np.full(13, 0.4), 1),
            "has 105 coefficients in the 13 of this space",
        ),
        (lambda: Surrogate(box(3), np.full(3, 0.4), 1, points=1), "at least 2 points are fitted"),
        (lambda: MoCma(box(2), np.zeros(2), 1, popsize=1), "at least 2 points, such as 10"),
        (lambda: MoCma(box(2), np.zeros(2), 1, sigma=0.0), "a fraction of the range"),
        (lambda: Nsga2(box(2), np.zeros(2), 1, popsize=1), "at least 2 points, such as 16"),
        (lambda: Nsga2(box(2), np.zeros(2), 1, sigma=2.0), "a fraction of the range"),
        (lambda: Nsga2(box(2), np.zeros(2), 1, crossover=1.5), "is a chance"),
        (lambda: Nsga2(box(2), np.zeros(2), 1, sigma=0.3, first="experts"), "write searcher.first=start"),
        (lambda: Nsga2(box(2), np.zeros(2), 1, lag=-1), "searcher.lag=-1"),
    ],
)
def test_bad_settings_are_refused(make_bad: Callable[[], Searcher], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_bad()
