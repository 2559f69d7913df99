"""The simulation of dropping on logged outcomes: what it reads of a cache, and what it counts."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

SCRIPT = Path(__file__).parents[2] / "scripts" / "simulate_dropping.py"


def remember(cache: Path, number: int, weights: list[float], chance: float) -> None:
    rows = {task: (np.random.default_rng([number, i]).random(60) < chance) for i, task in enumerate("ab")}
    content = {
        "description": {"model": {"weight": {"g": {"x": weights[0]}, "h": {"x": weights[-1]}}}, "base": "0"},
        "items": {task: [str(i) for i in range(60)] for task in rows},
        "results": {task: {"m": row.astype(float).tolist()} for task, row in rows.items()},
    }
    (cache / "outcomes").mkdir(exist_ok=True)
    (cache / "outcomes" / f"{number}.json").write_text(json.dumps(content))


def test_a_table_of_what_was_logged(tmp_path: Path) -> None:
    for number, chance in enumerate((0.2, 0.4, 0.9)):
        remember(tmp_path, number, [number / 10], chance)
    for number, chance in enumerate((0.9, 0.3, 0.5, 0.4), 3):
        remember(tmp_path, number, [0.1, number / 10], chance)
    command = [sys.executable, str(SCRIPT), str(tmp_path), "--metric", "m", "--draws", "20"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines()[2:]]
    assert [re.sub(".*: ", "", line[0]) for line in lines] == [
        *("3 constants", "5 finalists", "both", "the choice", "3 near-equal finalists, alone")
    ]
    assert {line[1] for line in lines} == {"120"}
    for _, _, within, regret, better, spent in lines[:4]:
        assert float(within.rstrip("%")) >= 80
        assert 0 <= float(regret) < 0.01
        assert float(better.rstrip("%")) <= 20
        assert 30 < float(spent.rstrip("%")) < 95


def test_a_cache_without_that_metric_is_refused(tmp_path: Path) -> None:
    for number in range(3):
        remember(tmp_path, number, [number / 10], 0.5)
    for where, metric in ((tmp_path, "accuracy"), (tmp_path / "none", "m")):
        command = [sys.executable, str(SCRIPT), str(where), "--metric", metric, "--draws", "20"]
        found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert found.stderr == f"error: {where} holds no 3 constants with {metric}: name another cache or --metric\n"
        assert found.returncode == 1
