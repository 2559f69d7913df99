"""The benchmark of what a candidate costs, on a pico language model."""

from __future__ import annotations

import importlib.util
import math
import shutil
from pathlib import Path

from tests.kit.language import save_language_family, write_task

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_fitness.py"


def test_the_language_case_measures_overhead_and_the_ratio_to_simple_evaluate(tmp_path, monkeypatch):
    specification = importlib.util.spec_from_file_location("bench_fitness", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    bench = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(bench)
    save_language_family(tmp_path)
    (tmp_path / "experts").mkdir()
    for name in ("left", "right"):
        shutil.move(tmp_path / name, tmp_path / "experts" / name)
    for name in ("choice", "rolling"):
        write_task(tmp_path / "tasks", name)
    monkeypatch.chdir(tmp_path)  # its cache is made there
    row = bench.measure_lm(tmp_path, 8, 7, "cpu")
    assert row.keys() == {
        "case",
        "items",
        "overhead",
        "overhead_seconds",
        "forward_seconds",
        "pairs",
        "simple_evaluate_ratio",
    }
    assert (row["case"], row["items"], row["pairs"]) == ("lm", 8, 7)
    assert 0 < row["simple_evaluate_ratio"] < math.inf  # how large it is, depends on what else the machine does
    assert all(0 < row[name] < math.inf for name in ("overhead", "overhead_seconds", "forward_seconds"))
