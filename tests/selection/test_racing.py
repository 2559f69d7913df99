"""What saves evaluations beside dropping: neighbours along a line, and items of which the leader is unsure first."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.selection.activity import LEAST, WIDTH, Standing, active_first, activity_of
from evomerge.selection.dropping import cut
from evomerge.selection.racing import Chosen, choose
from evomerge.selection.ranking import order

SIZES = {"a": 180, "b": 240, "c": 180}
IDS = {task: [f"{task}{i}" for i in range(size)] for task, size in SIZES.items()}
GRID = [f"{i / 10:g}" for i in range(1, 16)]
OBJECTIVE = Objective("accuracy", weights={"b": 2})
Odds = dict[str, dict[str, np.ndarray]]
"""By model and task, the log-odds of the right answer to each item."""


def along(seed: int) -> Odds:
    """Constants: each item's odds rise to a top of its own and fall again, the tops around .7."""
    rng = np.random.default_rng(seed)
    models: Odds = {name: {} for name in GRID}
    for task, size in SIZES.items():
        top, height = rng.normal(0.7, 0.25, size), rng.normal(1.0, 2.0, size)
        for name in GRID:
            models[name][task] = height - 4 * (float(name) - top) ** 2
    return models


def around(seed: int, apart: float = 0.4, count: int = 6) -> Odds:
    """Finalists: the same items are hard for all of them; one is better by a little, at a place of its own."""
    rng = np.random.default_rng(seed)
    common = {task: rng.normal(1.0, 2.0, size) for task, size in SIZES.items()}
    lead = int(rng.integers(count))
    return {
        f"m{i}": {task: odds + rng.normal(0.08 * (i == lead), apart, len(odds)) for task, odds in common.items()}
        for i in range(count)
    }


def scorer(models: Odds, asked: list | None = None, smooth: bool = True) -> Callable:
    def score(name, part):
        places = {task: [int(item[1:]) for item in items] for task, items in part.items()}
        odds = {task: models[name][task][at] for task, at in places.items()}
        if asked is not None:
            asked.append((name, {task: tuple(items) for task, items in part.items()}))
        results = {
            task: {"accuracy": (z > 0).astype(float), **({"log_probability": -np.logaddexp(0, -z)} if smooth else {})}
            for task, z in odds.items()
        }
        return Outcome({task: list(items) for task, items in part.items()}, results)

    return score


def full(models: Odds) -> dict[str, float]:
    return {name: OBJECTIVE(scorer(models)(name, IDS))[0][0] for name in models}


def spent(chosen: Chosen) -> float:
    return sum(chosen.seen.values()) / len(chosen.seen) / sum(SIZES.values())


@pytest.mark.parametrize("smooth", [True, False])
def test_who_lies_between_two_is_asked_where_they_differ(smooth: bool) -> None:
    lost, cost, plain = [], [], []
    for seed in range(12):
        models = along(seed)
        worth, score = full(models), scorer(models, smooth=smooth)
        chosen = choose(models, score, OBJECTIVE, IDS, line=True)
        assert chosen.values[chosen.name] == pytest.approx(worth[chosen.name])
        assert chosen.seen[chosen.name] == sum(SIZES.values())
        assert chosen.outcomes[chosen.name].items == IDS
        lost.append(max(worth.values()) - worth[chosen.name])
        cost.append(spent(chosen))
        plain.append(spent(choose(models, score, OBJECTIVE, IDS)))
    assert np.mean(np.array(lost) > 0.002 + 1e-9) <= 0.17
    assert np.mean(cost) < 0.8 * np.mean(plain)


def test_a_metric_without_ties_is_known_of_nobody_unasked() -> None:
    models, objective = along(0), Objective("log_probability")
    with_it, without = (choose(models, scorer(models), objective, IDS, line=line) for line in (True, False))
    assert (with_it.name, with_it.seen, with_it.values) == (without.name, without.seen, without.values)


def test_items_of_which_the_leader_is_unsure_come_first() -> None:
    lost, early, late = [], [], []
    for seed in range(12):
        models, asked = around(seed), []
        worth = full(models)
        chosen = choose(models, scorer(models, asked), OBJECTIVE, IDS)
        lost.append(max(worth.values()) - worth[chosen.name])
        whole = [name for name, seen in chosen.seen.items() if seen == sum(SIZES.values())]
        reference = next(name for name, part in asked[2 * len(models) :] if name in whole)
        sure = [np.abs(models[reference][t][[int(i[1:]) for i in ids]]) for _, part in asked for t, ids in part.items()]
        early.append(np.mean(np.concatenate(sure[: 3 * len(models)])))  # the first block, drawn as any other
        late.append(np.mean(np.concatenate(sure[3 * (2 * len(models) + 1) :][:9])))
    assert np.mean(np.array(lost) > 0.002 + 1e-9) <= 0.1
    assert np.mean(late) < 0.75 * np.mean(early)


def test_whoever_is_best_is_chosen_first_or_last_in_the_row() -> None:
    for seed in range(8):
        models = around(seed, apart=0.2)
        worth = full(models)
        forth, back = (choose(names, scorer(models), OBJECTIVE, IDS) for names in (list(models), list(models)[::-1]))
        assert worth[forth.name] == pytest.approx(worth[back.name], abs=0.002)


def test_it_is_asked_alike_each_time_and_nothing_twice() -> None:
    for models, line in ((along(1), True), (around(1), False)):
        first, again = [], []
        choose(models, scorer(models, first), OBJECTIVE, IDS, line=line)
        choose(models, scorer(models, again), OBJECTIVE, IDS, line=line)
        assert first == again
        items = [(name, item) for name, part in first for chosen in part.values() for item in chosen]
        assert len(items) == len(set(items))


@pytest.mark.parametrize("smooth", [True, False])
def test_who_is_known_on_all_items_is_not_scored_and_races_on(smooth: bool) -> None:
    for seed in range(3):
        models, asked = around(seed), []
        score, known = scorer(models, asked, smooth), scorer(models, None, smooth)("m3", IDS)
        chosen = choose(models, score, OBJECTIVE, IDS, known={"m3": known})
        paid = sum(len(items) for _, part in asked for items in part.values())
        assert "m3" not in {name for name, _ in asked}
        assert chosen.values["m3"] == pytest.approx(full(models)["m3"])
        assert (chosen.seen["m3"], chosen.name in chosen.outcomes) == (sum(SIZES.values()), True)
        assert paid + chosen.spared == len(models) * sum(SIZES.values())
        alone = choose(models, scorer(models, None, smooth), OBJECTIVE, IDS)
        assert full(models)[chosen.name] == pytest.approx(full(models)[alone.name], abs=0.02)


@pytest.mark.parametrize("smooth", [True, False])
def test_who_is_known_to_end_ahead_wins_although_it_begins_behind(smooth: bool) -> None:
    models = around(0)
    for part in cut(IDS)[:4]:
        for task, items in part.items():
            models["m0"][task][[int(item[1:]) for item in items]] = -1.0
    for odds in models["m0"].values():
        odds[odds != -1.0] = 1.0
    score = scorer(models, None, smooth)
    assert order(full(models))[0] == "m0" != choose(models, score, OBJECTIVE, IDS).name  # unknown, it is dropped early
    chosen = choose(models, score, OBJECTIVE, IDS, known={"m0": score("m0", IDS)})
    assert (chosen.name, chosen.values["m0"]) == ("m0", pytest.approx(full(models)["m0"]))


def test_what_is_scored_next_is_begun_in_that_order() -> None:
    models, begun, asked = along(2), [], []

    def begin(wanted):
        begun.extend((name, {task: tuple(items) for task, items in part.items()}) for name, part in wanted)

    choose(models, scorer(models, asked), OBJECTIVE, IDS, begin, line=True)
    assert begun == asked


@pytest.mark.parametrize("after", [0, 1, 2, 4, 8])
def test_one_that_fails_costs_itself_alone(after: int) -> None:
    for models, line in ((along(3), True), (around(3), False)):
        best, score, times = order(full(models))[0], scorer(models), 0

        def failing(name, part, best=best, score=score):
            nonlocal times
            times += name == best
            if name == best and times > after:
                raise RuntimeError("no more")
            return score(name, part)

        chosen = choose(models, failing, OBJECTIVE, IDS, line=line)
        assert chosen.values[best] == -math.inf
        assert chosen.name != best
        times = 0


def test_an_item_that_is_there_twice_is_scored_twice() -> None:
    models = along(4)
    twice = {task: [*items, *items[:30]] for task, items in IDS.items()}
    chosen = choose(models, scorer(models), OBJECTIVE, twice, line=True)
    assert chosen.seen[chosen.name] == sum(map(len, twice.values()))
    assert chosen.values[chosen.name] == pytest.approx(OBJECTIVE(scorer(models)(chosen.name, twice))[0][0])


def test_activity_by_hand() -> None:
    odds = np.array([-8.0, -1.0, 1.0, 2.0])
    found = activity_of(np.array([0.0, 0.0, 1.0, 1.0]), -np.logaddexp(0, -odds), np.zeros(4, dtype=int))
    assert found == pytest.approx([LEAST, math.exp(-1 / WIDTH), math.exp(-1 / WIDTH), math.exp(-2 / WIDTH)])
    assert (
        activity_of(np.array([0.0, 1.0, 1.0]), np.array([np.nan, -np.inf, 0.0]), np.zeros(3, dtype=int)).min() == LEAST
    )
    parts = active_first(found, np.arange(4), 2)
    assert sorted(np.concatenate(parts)) == [0, 1, 2, 3]


def test_with_equal_activities_it_is_the_mean_of_the_differences() -> None:
    rng = np.random.default_rng(0)
    rows = {name: (rng.random(60) < 0.6).astype(float) for name in "ab"}
    tasks, seen = np.repeat([0, 1], 30), np.r_[0:10, 30:50]
    standing = Standing(rows, seen, np.ones(60), tasks, [0.25, 0.75])
    d = (rows["b"] - rows["a"])[seen]
    assert standing.values == pytest.approx({"a": 0, "b": 0.25 * d[:10].mean() + 0.75 * d[10:].mean()})
    whole = Standing(rows, np.arange(60), np.ones(60), tasks, [0.25, 0.75])
    best = max(whole.values, key=lambda name: whole.values[name])
    assert sum(whole.chances(["a", "b"]).values()) == 0 < whole.values[best] + 1
