"""What asking ahead costs and gains: the tables that are printed, and laws of the simulated pool."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import bench_lag


def test_both_tables(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(bench_lag, "LAGS", (0, 2))
    monkeypatch.setattr(bench_lag, "CANDIDATES", 200)
    given = ["--budget", "20", "--dims", "3", "--seeds", "2", "--searchers", "cmaes"]
    monkeypatch.setattr(sys, "argv", ["bench_lag.py", *given])
    bench_lag.main()
    rows = [line.strip("| ").split(" | ") for line in capsys.readouterr().out.splitlines() if line.count("|") > 3]
    assert [row[1] for row in rows[2:5]] == [f"{name}, 3 coefficients" for name in ("bowl", "valley", "noisy bowl")]
    assert rows[2][2].endswith("(20)") or rows[2][2].endswith("(19)")  # without a lag it is worth what it is
    assert len(rows) == 5 + 2 + 4


def test_the_simulated_pool() -> None:
    even, uneven = [1.0] * 24, [1.0, 3.0] * 12
    assert bench_lag.utilisation(even, workers=4, batch=4, lag=0) == 1.0
    assert bench_lag.utilisation(even, workers=4, batch=3, lag=0) == 0.75
    assert bench_lag.utilisation(even, workers=4, batch=1, lag=0) == 0.25
    assert bench_lag.utilisation(even, workers=4, batch=1, lag=3) == 1.0
    assert bench_lag.utilisation(uneven, workers=2, batch=2, lag=0) == pytest.approx(4 / 6)
    assert bench_lag.utilisation(uneven, workers=2, batch=2, lag=0, blocks=2) > 4 / 6
