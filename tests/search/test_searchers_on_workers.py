"""Searchers of many values on workers: whoever scores, in whatever order, the log is one.

Each searcher that takes several values, as it is told three of them with a constraint, and as it is told one. Some
candidates fail, some workers die.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition
from evomerge.fitness.items import Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.fitness.values import Value
from evomerge.search.evaluators import pool as evaluators_pool
from evomerge.search.evaluators.pool import Pool
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.search.evaluators.values import ValueEvaluator
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget
from evomerge.searchers.base import MANY, Searcher
from tests.kit.helpers import box
from tests.kit.searching import SEARCHERS, SEVERAL, Make, trade
from tests.search.test_pool import Crew

ITEMS = {task: [Item(f"{task}{i}", "", 0) for i in range(4)] for task in "abc"}
IDS = {task: [item.id for item in items] for task, items in ITEMS.items()}
ALONE = {
    name: make
    for name, make in SEARCHERS.items()
    if make(box(3), 3).needs.objectives == MANY and not name.startswith("warm")
}
TRIALS = 26


def outcome(unit: Unit) -> Outcome:
    """Of each task another sphere; one candidate in six has no number on the items of a task."""
    point = np.ascontiguousarray(unit.model, dtype=np.float64)
    bad = np.random.default_rng(point.view(np.uint32).tolist()).random() < 1 / 6
    worth = dict(zip("abc", trade(point), strict=True))
    rows = {task: {"m": np.array([worth[task] + int(item[1:]) / 7 for item in ids])} for task, ids in unit.ids.items()}
    if bad and "b" in rows:
        rows["b"]["m"][0] = np.nan
    return Outcome(unit.ids, rows)


def serial(units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
    yield from ((i, Scored(outcome(unit))) for i, unit in enumerate(units))


def objective(values: int) -> Objective:
    if values == 1:
        return Objective("m")
    base = outcome(Unit(np.full(3, 0.3), IDS))
    limit = Condition("m", {"a": 1.0}, -1.5, "a", fixed=True)
    return Objective(
        "m", "pareto", conditions=(limit,), base=base, values=tuple(Value(t, "m", {t: 1.0}) for t in "abc")
    )


def run(path: Path, make: Make, values: int, scorer: Scorer, trials: int) -> Searcher:
    searcher = make(box(3), 3)
    evaluate = ValueEvaluator(scorer, Subset(ITEMS, None, 0), objective(values), blocks=2)
    with TrialLog(path, {"values": values}, {"machine": "this"}) as log:
        search(searcher, evaluate, log, Budget(trials))
    return searcher


@pytest.mark.parametrize(
    ("name", "values"), [*((name, 3) for name in SEVERAL), *((name, 1) for name in ALONE)], ids=lambda each: str(each)
)
def test_the_log_is_that_of_one_process(
    name: str, values: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluators_pool, "WARMING", 0.0)
    make = (SEVERAL if values == 3 else ALONE)[name]
    whole = run(tmp_path / "serial", make, values, serial, TRIALS)
    for workers, trials in ((3, 9), (2, TRIALS)):  # killed once, and on with fewer workers
        order = np.random.default_rng(workers).integers(0, 9, 400).tolist()
        with Pool(Crew(workers, faults=["", "", "", "dies", "", "dies after"], order=order, outcome=outcome)) as pool:
            pool.wait()
            again = run(tmp_path / "pool", make, values, pool, trials)
    assert (tmp_path / "pool").read_bytes() == (tmp_path / "serial").read_bytes()
    kinds = [row["status"] for row in read_log(tmp_path / "serial") if row["kind"] == "trial"]
    assert {"ok", "failed"} == set(kinds)
    found = [{key: one.trial for key, one in searcher.incumbents().items()} for searcher in (whole, again)]
    assert found[0] == found[1] != {}
