"""A bank of the logs of searches: what their candidates answered to the search items that they saw.

In: run directories of one problem. Out: a `Bank` with NaN where a candidate did not see an item. Items that few
candidates saw are left out. Of the others every second one of a task counts as a select item, so that a winner is
judged on items that no simulated search sees.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from affordable.bank import SPLITS, Bank
from evomerge.common.errors import SuiteError
from evomerge.search.journal import read_log

LEAST = 80
"""By so many candidates an item must have been answered."""
SAME = ("base", "experts", "items", "method", "space", "fitness")
"""What the identities of the runs must share."""

Key = tuple[str, str]
"""The task and the id of an item."""


def bank_of_runs(runs: Sequence[Path], metric: str) -> Bank:
    """Return the bank of some runs.

    Args:
        runs: their directories.
        metric: what the answers are.

    Raises:
        SuiteError: one is no run directory, they are of different models, items or spaces, or no item was seen by
            enough candidates.
    """
    identities, merges = list[Mapping[str, Any]](), dict[bytes, dict[Key, float]]()
    for run in runs:
        if not (run / "trials.jsonl").is_file():
            raise SuiteError(f"{run} is no run directory: give directories of searches, or an .npz.")
        header, *records = read_log(run / "trials.jsonl")
        identities.append(header["identity"])
        points = {each["batch"]: np.array(each["points"]) for each in records if each["kind"] == "ask"}
        for each in records:
            if each["kind"] == "trial" and each["status"] == "ok":
                merges.setdefault(points[each["batch"]][each["index"]].tobytes(), {}).update(_answers(each, metric))
    if any(each.get(name) != identities[0].get(name) for each in identities for name in SAME):
        raise SuiteError("These runs are of different models, items or spaces: give runs of one problem.")
    seen = Counter(key for answers in merges.values() for key in answers)
    often = sorted(key for key, count in seen.items() if count >= LEAST)
    if not often:
        raise SuiteError(f"No item was seen by {LEAST} candidates of these runs: give more runs, or longer ones.")
    return _bank(merges, often, metric)


def _answers(record: Mapping[str, Any], metric: str) -> dict[Key, float]:
    return {
        (task, item): value
        for task, ids in record["items"].items()
        for item, value in zip(ids, record["results"][task][metric], strict=True)
    }


def _bank(merges: Mapping[bytes, Mapping[Key, float]], items: Sequence[Key], metric: str) -> Bank:
    tasks = list(dict.fromkeys(task for task, _ in items))
    task = np.array([tasks.index(name) for name, _ in items])
    place = np.array([i - int(np.searchsorted(task, t)) for i, t in enumerate(task)])  # within its task
    none = np.zeros(len(merges), dtype=int)
    return Bank(
        kinds=np.full(len(merges), "logged"),
        names=np.full(len(merges), "logged"),
        generations=none,
        places=none,
        points=np.array([np.frombuffer(x) for x in merges]),
        tasks=np.array(tasks),
        weights=np.full(len(tasks), 1 / len(tasks)),
        items=np.array([item for _, item in items]),
        task=task,
        labels=np.zeros(len(items), dtype=int),
        splits=np.array(SPLITS)[place % 2],
        metric=metric,
        responses={metric: np.array([[each.get(item, np.nan) for item in items] for each in merges.values()])},
    )
