"""Races during a search: who is dropped, what is known of them, and that logs depend on results alone."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from optuna.samplers._tpe import sampler as tpe_of_optuna

from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import Draw, Drawn, stratified
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.search.evaluators.kept import Kept
from evomerge.search.evaluators.pool import Pool
from evomerge.search.evaluators.racing import Racing, RacingEvaluator
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.evaluators.wire import packed, scored_message, unit_of, unpacked
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget, Interrupt, fixed
from evomerge.searchers.base import Parents, Searcher, parents_of
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.random import Random
from evomerge.searchers.tpe import Tpe
from evomerge.searchers.warm import WarmStart
from evomerge.trials import Batch, Trial
from tests.kit.helpers import box, sphere
from tests.kit.searching import SEARCHERS, answer, drive

SPACE = box(3)
MAKE: dict[str, Callable[[], Searcher]] = {
    "cmaes": lambda: CmaEs(SPACE, SPACE.start({}), 3, popsize=8),
    "tpe": lambda: Tpe(SPACE, SPACE.start({}), 3, startup=4),
    "tpe-batch": lambda: Tpe(SPACE, SPACE.start({}), 3, startup=4, batch=4),
    "random": lambda: Random(SPACE, SPACE.start({}), 3, batch=2, keep=2),
    "warm": lambda: WarmStart(SPACE, lambda start: CmaEs(SPACE, start, 3, popsize=6)),
}
ITEMS = {task: [Item(f"{task}{i}", "", i % 2) for i in range(size)] for task, size in {"a": 40, "b": 25}.items()}
ALL = sum(map(len, ITEMS.values()))
HARD = {
    item.id: float(z) for task in ITEMS.values() for item, z in zip(task, np.linspace(-1, 1, len(task)), strict=True)
}
TRIALS = 28


def scored(unit: Unit, failing: bool = True) -> Scored:
    """What is hard for one candidate is hard for all; one in six fails, at an item of its own."""
    worth = sphere(np.asarray(unit.model)) + 0.3
    draw = np.random.default_rng(np.asarray(unit.model).view(np.uint32).tolist())
    bad = list(HARD)[int(draw.integers(ALL))] if failing and draw.random() < 1 / 6 else None
    if any(bad in ids for ids in unit.ids.values()):
        return Scored(RuntimeError("no luck"))
    noise = {item: draw.normal(0, 0.05) for item in HARD}
    z = {task: np.array([worth - HARD[item] + noise[item] for item in ids]) for task, ids in unit.ids.items()}
    return Scored(Outcome(dict(unit.ids), {t: {"right": (row > 0) * 1.0, "log": row} for t, row in z.items()}))


def serial(units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
    yield from ((i, scored(unit)) for i, unit in enumerate(units))


class Crew:
    """Three workers without processes; which of them ends first is a matter of chance."""

    size = 3

    def __init__(self) -> None:
        self._due: list[tuple[int, Any]] = []
        self._rng = np.random.default_rng(0)

    def start(self, worker: int) -> None:
        self._due.append((worker, {"kind": "ready", "circumstances": {"fingerprint": {}}}))

    def send(self, worker: int, message: Any) -> None:
        answer = scored_message(message["number"], scored(unit_of(unpacked(packed(message)))))
        self._due.append((worker, unpacked(packed(answer))))

    def receive(self, seconds: float | None) -> list[tuple[int, Any]]:
        return [self._due.pop(int(self._rng.integers(len(self._due))))]

    def kill(self, worker: int) -> None: ...

    def last_words(self, worker: int) -> str:
        return ""

    def close(self) -> None: ...


def pool(directory: Path) -> Scorer:
    """Workers whose units are kept, as a search has them."""
    return Kept(Pool(Crew()), directory / "units.jsonl", "")


def unequal(task: str, items: Sequence[Item], n: int, rng: np.random.Generator) -> Drawn:
    """All items, which stand for different numbers of others."""
    return Drawn(np.arange(n), 1 + np.arange(n) % 3)


def plain(score: Scorer = serial, metric: str = "right", draw: Draw = stratified) -> ValueEvaluator:
    return ValueEvaluator(score, Subset(ITEMS, None, 1, draw=draw), Objective(metric))


def racing(
    parents: Callable[[], Parents | None],
    alpha: float | None = 0.3,
    score: Scorer = serial,
    metric: str = "right",
    draw: Draw = stratified,
    **how: Any,
) -> RacingEvaluator:
    one, rules = plain(score, metric, draw), Racing(alpha, 3, parents, **how)
    return RacingEvaluator(one, score, Objective(metric), rules, blocks=8)


def run(
    path: Path, name: str, trials: int = TRIALS, alpha: float | None = 0.3, score: Scorer = serial, **how: Any
) -> bytes:
    searcher = MAKE[name]()
    evaluate = racing(lambda: parents_of(searcher), alpha, score)
    with TrialLog(path, {}, {}) as log:
        search(searcher, evaluate, log, Budget(trials, price=fixed(ALL), **how))
    chosen = [one.trial for one in searcher.incumbents().values() if one.trial]
    told = {(t["batch"], t["index"]): t["status"] for t in read_log(path) if t["kind"] == "trial"}
    assert all(told[place] == "ok" for place in chosen)
    return path.read_bytes()


@pytest.fixture
def path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the log goes, without waiting for the disk."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    return tmp_path / "trials.jsonl"


@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 12),
    spread=st.floats(0.01, 0.7),
    alpha=st.floats(0.01, 1),
    metric=st.sampled_from(["right", "log"]),
    draw=st.sampled_from([stratified, unequal]),
)
def test_whoever_stays_is_scored_as_without_a_race_and_ahead_of_all_others(
    seed: int, size: int, spread: float, alpha: float, metric: str, draw: Draw
) -> None:
    batch = Batch(seed % 7, 0.7 + spread * np.random.default_rng(seed).standard_normal((size, 3)))
    full = list(plain(metric=metric, draw=draw)(batch, batch.missing))
    raced = list(racing(lambda: Parents(size // 2), alpha, metric=metric, draw=draw)(batch, batch.missing))
    stayed = [trial for trial in raced if trial.status == "ok"]
    assert all(trial == full[trial.index] for trial in stayed)
    assert len(stayed) >= size // 2 - sum(trial.status == "failed" for trial in full)
    worst = min((trial.values[0] for trial in stayed if trial.values), default=math.inf)
    for trial in raced:
        if trial.status == "censored":
            assert trial.full is None
            assert trial.values is not None
            assert trial.values[0] < worst
            assert 0 < trial.spent < ALL
            whole, counts = full[trial.index].results, full[trial.index].weights
            for task, ids in trial.items.items():
                places = [[item.id for item in ITEMS[task]].index(item) for item in ids]
                assert places == sorted(places)
                if counts:
                    assert trial.weights[task] == [counts[task][i] for i in places]
                if whole:
                    assert trial.results[task] == {name: [row[i] for i in places] for name, row in whole[task].items()}
    seen = {trial.spent: trial.items for trial in raced if trial.status == "censored"}
    assert all(trial.items == seen[trial.spent] for trial in raced if trial.status == "censored")


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    size=st.integers(2, 12),
    within=st.booleans(),
    draw=st.sampled_from([stratified, unequal]),
)
def test_halving_keeps_the_best_of_what_was_seen_down_to_as_many_as_count(
    seed: int, size: int, within: bool, draw: Draw
) -> None:
    """In equal shares after an eighth, a quarter and a half of the items."""
    batch = Batch(seed % 7, 0.7 + 0.3 * np.random.default_rng(seed).standard_normal((size, 3)))

    def score(units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        yield from ((i, scored(unit, failing=False)) for i, unit in enumerate(units))

    parents = Parents(size // 2) if within else Parents(size, 0)
    full = list(plain(score, "log", draw)(batch, batch.missing))
    raced = list(racing(lambda: parents, None, score, "log", draw)(batch, batch.missing))
    least = size // 2 if within else 1
    parts = Racing(None, 3, lambda: None).parts({task: [one.id for one in items] for task, items in ITEMS.items()}, 0)
    spent = np.cumsum([sum(map(len, part.values())) for part in parts]).tolist()
    assert spent[-1] == ALL
    np.testing.assert_allclose(spent, [ALL / 8, ALL / 4, ALL / 2, ALL], atol=2)
    left = list(raced)
    for look, seen in enumerate(spent[:-1]):
        kept = [trial for trial in left if trial.spent > seen]
        assert len(kept) == math.ceil(round(size * (least / size) ** ((look + 1) / 3), 9))
        worth = {trial.index: value_on(full[trial.index], raced, seen) for trial in left}
        assert {trial.index for trial in kept} == set(sorted(worth, key=lambda i: -worth[i])[: len(kept)])
        left = kept
    assert left == [full[trial.index] for trial in left]
    assert max(t.values[0] for t in raced if t.status == "censored") < min(trial.values[0] for trial in left)


def value_on(trial: Trial, raced: Sequence[Trial], seen: int) -> float:
    """Return what a trial on all items is worth on those that somebody saw who was dropped after so many."""
    ids = next((one.items for one in raced if one.spent == seen), None)
    if ids is None:
        return trial.values[0]  # nobody was dropped then
    total = 0.0
    for task, chosen in ids.items():
        row = dict(zip(trial.items[task], trial.results[task]["log"], strict=True))
        counts = trial.weights.get(task) or [1.0] * len(row)
        of = dict(zip(trial.items[task], counts, strict=True))
        total += np.mean([row[item] * of[item] for item in chosen]) / np.mean(counts) / len(ids)
    return float(total)


@pytest.mark.parametrize(
    ("name", "alpha"), [*((name, 0.3) for name in MAKE), *((name, None) for name in MAKE if name != "tpe")]
)
def test_the_log_depends_on_neither_kills_nor_workers(path: Path, name: str, alpha: float | None) -> None:
    whole = run(path, name, alpha=alpha)
    records = list(read_log(path))
    kinds = [record.get("status") for record in records]
    assert kinds.count("censored") > 3
    assert 0 < kinds.count("failed") < 12
    lines = whole.splitlines(keepends=True)
    for end in range(3, len(lines), len(lines) // 3):
        path.write_bytes(b"".join(lines[:end]))
        assert run(path, name, alpha=alpha) == whole
    for data in (b"", b"".join(lines[: len(lines) // 2])):
        path.write_bytes(data)
        assert run(path, name, alpha=alpha, score=pool(path.parent)) == whole
        assert [file.name for file in path.parent.iterdir() if file.suffix == ".jsonl"] == ["trials.jsonl"]


@pytest.mark.parametrize("name", MAKE)
def test_without_an_error_that_may_be_made_nobody_is_dropped(path: Path, name: str) -> None:
    """And the log is the same, but that a failed candidate has not spent the blocks after the one that it failed on."""
    run(path, name, alpha=1e-300)
    raced = list(read_log(path))
    path.unlink()
    searcher = MAKE[name]()
    with TrialLog(path, {}, {}) as log:
        search(searcher, plain(), log, Budget(TRIALS))
    for one, other in zip(raced, read_log(path), strict=True):
        if one.get("status") == "failed":
            one["items"], one["results"] = other["items"], {}
        assert {**one, "crc": 0} == {**other, "crc": 0}


@pytest.mark.parametrize("name", ["cmaes", "random"])
def test_a_budget_of_items_is_never_passed_and_can_be_raised(path: Path, name: str) -> None:
    for items in (ALL, 12 * ALL, 20 * ALL + 3, 31 * ALL):
        data = run(path, name, 1000, items=items)
        trials = [record for record in read_log(path) if record["kind"] == "trial"]
        assert sum(sum(map(len, trial["items"].values())) for trial in trials) <= items
        assert run(path, name, 1000, items=items) == data
    assert len(trials) > 31  # more than without a race


def test_who_asks_to_stop_within_a_generation_need_not_wait_for_its_end(path: Path) -> None:
    whole = run(path, "cmaes")
    path.unlink()
    interrupt, calls = Interrupt(), iter(range(1000))

    def stopping() -> bool:
        interrupt.requested = next(calls) >= 40
        return interrupt.requested

    searcher = MAKE["cmaes"]()
    with TrialLog(path, {}, {}) as log:
        evaluate = racing(lambda: parents_of(searcher), stopping=stopping)
        search(searcher, interrupt.wrap(evaluate), log, Budget(TRIALS, interrupt=interrupt))
        assert log.trials == 8
    assert whole.startswith(path.read_bytes())
    assert run(path, "cmaes") == whole


def test_parents_are_lost_as_seldom_as_stated() -> None:
    """Models of near worth, where a race errs most: a share of `alpha` of the parents at most, two standard errors of
    the simulation allowed; and it saves a third."""
    alpha, lost, spent = 0.1, [], []
    for seed in range(25):
        points = 0.7 + 0.25 * np.random.default_rng(seed).standard_normal((10, 3))
        batch, score = Batch(seed, points), lambda units: ((i, scored(u, False)) for i, u in enumerate(units))
        values = [trial.values[0] for trial in plain(score, "log")(batch, batch.missing)]
        raced = list(racing(lambda: Parents(5), alpha, score, "log")(batch, batch.missing))
        best = sorted(range(10), key=lambda i: -values[i])[:5]
        lost.append(sum(raced[i].status == "censored" for i in best) / 5)
        spent.append(sum(trial.spent for trial in raced) / (10 * ALL))
    assert np.mean(lost) <= alpha + 2 * np.std(lost) / math.sqrt(25)
    assert np.mean(spent) <= 2 / 3


def test_searchers_say_by_which_points_they_go(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert parents_of(SEARCHERS["cmaes-popsize"](box(4), 3)) == Parents(2)
    assert parents_of(SEARCHERS["warm-tpe"](box(4), 3)) == Parents(1)
    assert parents_of(SEARCHERS["grid"](box(4), 3)) is None
    batch = Batch(0, np.random.default_rng(0).uniform(0, 1.5, (4, 3)))
    for _ in range(2):
        evaluate = racing(lambda: parents_of(SEARCHERS["grid"](box(4), 3)))
        assert list(evaluate(batch, [0, 1])) == list(plain()(batch, [0, 1]))
        assert list(evaluate(batch, batch.missing)) == list(plain()(batch, batch.missing))
    assert caplog.text.count("the searcher does not say which points it goes by") == 2


@pytest.mark.parametrize("batch", [1, 3])
def test_tpe_goes_by_as_many_points_as_it_says(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once the batch that was asked last is told, which is when its race has ended."""
    taken, split = list[int](), tpe_of_optuna._split_trials
    monkeypatch.setattr(
        tpe_of_optuna, "_split_trials", lambda study, trials, n: taken.append(n) or split(study, trials, n)
    )
    tpe, said = Tpe(SPACE, SPACE.start({}), 3, batch=batch, startup=10), list[Parents]()
    for told in range(0, 45, batch):
        asked = tpe.ask()
        said.append(tpe.parents())
        assert said[-1].earlier == told / batch
        tpe.tell(answer(asked, sphere))
    first = -(-10 // batch)  # so many batches are random
    assert [one.count for one in said[: first - 1]] == [batch * (i + 1) for i in range(first - 1)]  # nobody is dropped
    tpe.ask()
    assert [one.count for one in said[first - 1 :]] == taken[::batch]
    assert {2, 3, 4, 5} <= set(taken)


@pytest.mark.parametrize("name", [name for name in SEARCHERS if parents_of(SEARCHERS[name](box(4), 3))])
def test_no_searcher_hands_over_a_censored_point(name: str) -> None:
    searcher = SEARCHERS[name](box(4), 3)
    censored = set()

    class Told:
        needs = searcher.needs

        def __getattr__(self, what: str) -> Any:
            return getattr(searcher, what)

        def tell(self, batch: Batch) -> None:
            for i, trial in enumerate(batch.trials):
                if trial is not None and (batch.index + i) % 3:
                    batch.trials[i] = Trial(batch.index, i, "censored", (trial.values[0] + 9,))
                    censored.add((batch.index, i))
            searcher.tell(batch)

    drive(Told(), sphere, 60)

    assert not censored & {one.trial for one in searcher.incumbents().values()}
