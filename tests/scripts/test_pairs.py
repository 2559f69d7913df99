"""What tells beforehand which experts may be merged: rank correlations by hand, and a suite of tiny models."""

# pyright: reportMissingImports=false

from __future__ import annotations

import json
import sys
from itertools import combinations
from pathlib import Path

import pytest

from evomerge.runs.suite import Suite
from tests.kit.evaluations import sources_of

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import pairs


def test_orders_of_experts_and_not_of_pairs() -> None:
    """With four experts there are 24 orders; here the given one and its reverse alone are as far from 0."""
    places = {"a": 0.0, "b": 1.0, "c": 3.0, "d": 7.0}
    rows = [{"pair": pair, "far": abs(places[pair[0]] - places[pair[1]])} for pair in combinations(places, 2)]
    for row in rows:
        row["near"] = -(row["far"] ** 2)
    found = pairs.mantel(rows, "far", "near", list(places))
    assert found["rho"] == pytest.approx(-1)
    assert (found["orders"], found["p"]) == (24, pytest.approx(1 / 24))
    assert pairs.mantel([{**row, "near": 1.0} for row in rows], "far", "near", list(places))["p"] == 1


def test_all_pairs_of_a_suite(pico_suite: Suite, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "pairs.json"
    pairs.main([*sources_of(pico_suite, tmp_path / "cache"), "--out", str(out)])
    found = json.loads(out.read_text())
    assert [row["pair"] for row in found["pairs"]] == [list(pair) for pair in combinations(pico_suite.experts, 2)]
    for row in found["pairs"]:
        assert row["constant"] in pairs.CONSTANTS
        assert row["barrier"] >= 0
        assert row["cost_se"] > 0
    assert set(found["correlations"]) == {f"{c}/{name}" for c in pairs.COSTS for name in (*pairs.HIGH, *pairs.LOW)}
    table = capsys.readouterr().out.splitlines()
    assert len([line for line in table if " and " in line and line.startswith("|")]) == 3
