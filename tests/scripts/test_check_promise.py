"""What a choice promises: the optimism of choosing among finalists that are alike, and none where one is better."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from evomerge.runs.suite import Suite
from tests.kit.evaluations import sources_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import check_promise
import compare_spending


def test_the_luckiest_of_many_alike_promises_too_much() -> None:
    rng = np.random.default_rng(0)
    alike = {"a": [rng.normal(size=(8, n)) for n in (100, 100)]}
    finalists, bias, spread = check_promise.promise(alike, {"a": 1.0}, 2000, np.random.default_rng(1))
    assert finalists == 8
    assert bias == pytest.approx(0.14, abs=0.06)  # of eight normal values the largest is 1.42, and an error is .1
    assert spread > 0.1
    ahead = np.array([[0.0], [9.0]])
    better = {"a": [ahead + rng.normal(size=(2, n)) for n in (100, 100)]}
    assert abs(check_promise.promise(better, {"a": 1.0}, 2000, np.random.default_rng(1))[1]) < 0.01


def test_finalists_of_searches_are_scored_on_both_splits(
    pico_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    sources = [*sources_of(pico_suite, tmp_path / "cache"), "searcher.popsize=4"]
    arms = ["--arm", "one", "budget=8", "--arm", "two", "budget=12"]
    compare_spending.main(["--out", str(tmp_path), "--seeds", "1", *arms, "--", *sources])
    capsys.readouterr()
    check_promise.main([str(tmp_path / "one-s1"), str(tmp_path / "two-s1"), "--draws", "50"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| one-s1", "| two-s1", "| all"]
    assert all(int(line.split(" | ")[1]) > 1 for line in lines[2:4])


def test_a_search_that_has_not_ended_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="error: "):
        check_promise.main([str(tmp_path)])
