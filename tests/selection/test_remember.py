"""Outcomes on disk, that several runs of a sweep want at the same time."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from evomerge.fitness.base import Outcome
from evomerge.selection.remember import remembered


def test_who_wants_the_same_outcome_meanwhile_waits_for_it(tmp_path: Path) -> None:
    begun = threading.Barrier(3)
    computed = []

    def want(number: int) -> Outcome:
        begun.wait()
        return remembered(tmp_path, {"model": "base"}, compute)

    def compute() -> Outcome:
        computed.append(0)
        time.sleep(0.1)
        return Outcome({"a": ["x", "y"]}, {"a": {"accuracy": np.array([0.5, 1.0])}})

    with ThreadPoolExecutor(3) as pool:
        outcomes = list(pool.map(want, range(3)))
    assert len(computed) == 1
    assert all(one.results["a"]["accuracy"].tolist() == [0.5, 1.0] for one in outcomes)


def test_one_that_fails_leaves_the_others_to_try(tmp_path: Path) -> None:
    def broken() -> Outcome:
        raise ValueError("no luck")

    with pytest.raises(ValueError, match="no luck"):
        remembered(tmp_path, {}, broken)
    assert remembered(tmp_path, {}, lambda: Outcome({}, {})) == Outcome({}, {})
