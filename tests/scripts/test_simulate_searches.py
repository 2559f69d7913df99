"""Searches on a bank: who spends what, and that the same search is the same."""

# pyright: reportMissingImports=false

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))

import simulate_searches
from affordable.bank import Bank


def test_arms_spend_their_share_and_a_race_spends_less(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    points, hard = rng.uniform(0, 1.5, (40, 3)), rng.normal(0, 1, 120)
    margin = 2 - ((points - 0.7) ** 2).sum(1)[:, None] + hard
    answers = -np.log1p(np.exp(-margin))
    bank = Bank(
        kinds=np.array(["random"] * 40),
        names=np.array(["random 1"] * 40),
        generations=np.zeros(40, int),
        places=np.arange(40),
        points=points,
        tasks=np.array(["a", "b"]),
        weights=np.array([0.5, 0.5]),
        items=np.array([f"i{i}" for i in range(120)]),
        task=np.repeat([0, 1], 60),
        labels=np.zeros(120, int),
        splits=np.tile(["search", "select"], 60),
        metric="log_probability",
        responses={"accuracy": (margin > 0) * 1.0, "log_probability": answers},
    )
    bank.save(tmp_path / "bank.npz")
    arms = ["--arm", "full", "items=40", "--arm", "again", "items=40", "--arm", "raced", "items=40", "alpha=0.3"]
    arms += ["candidates=30", "--arm", "half", "items=40", "share=0.5"]
    arms += [
        "--arm",
        "leaders",
        "items=20",
        "leaders=3",
        "fresh=1",
        "share=0.5",
        "--arm",
        "grown",
        "items=12",
        "adapt=1",
    ]
    arms += ["--arm", "smooth", "items=20", "smooth=3"]
    simulate_searches.main([str(tmp_path / "bank.npz"), *arms, "--seeds", "2", "--candidates", "30"])
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines()[2:]]
    spent = {row[0].strip(): int(row[1].replace(",", "")) for row in rows}
    assert rows[1][5].strip() == "+0.000 ± 0.000"
    assert spent["raced"] < spent["full"] == spent["again"] <= 1200
    assert spent["half"] <= 600
    assert spent["leaders"] <= 600 < spent["grown"] <= 1200
    assert int(rows[4][2]) < int(rows[3][2]) * 2  # leaders are paid for
    assert rows[2][3].strip() != "0%" == rows[0][3].strip()
