"""The script that times candidates, on tiny models: a line a case, with what it moves and what it says of memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_merge.py"
TINY = ["--layers", "2", "--width", "36", "--vocabulary", "200", "--rounds", "2", "--json"]
KEYS = {
    *("case", "method", "dtype", "rows", "store", "seconds", "roofline_ratio", "mergekit_ratio", "prepare_seconds"),
    "extra_memory",
}


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *arguments], check=False, capture_output=True, text=True)


@pytest.mark.slow
def test_a_line_for_each_case():
    done = run(*TINY, "--cases", "linear bfloat16 3", "ties bfloat16 3", "linear int4 8", "dare bfloat16 3")
    assert done.returncode == 0, done.stderr
    rows = {row["case"]: row for row in map(json.loads, done.stdout.splitlines())}
    assert set(rows) == {
        *("linear bfloat16 3", "linear int4 8", "ties bfloat16 3", "dare bfloat16 3", "draws of dare alone"),
        *("linear bfloat16 3 prepared", "linear int4 8 prepared", "ties bfloat16 3 prepared"),
        "dare bfloat16 3 prepared",
    }
    assert all(set(row) == KEYS for row in rows.values())
    assert all(rows[name]["seconds"] > 0 for name in rows if not name.endswith("prepared"))
    assert 0 <= rows["ties bfloat16 3"]["roofline_ratio"] < 1.05  # of so few elements, near nothing
    assert rows["linear int4 8"]["rows"] == 8
    assert rows["ties bfloat16 3"]["prepare_seconds"] > 0
    assert "GB/s: kernel copy" in done.stderr
    assert "load after" in done.stderr


def test_a_case_that_is_not_there():
    done = run("--cases", "ties float64*")
    assert done.returncode == 2
    assert "ties bfloat16 3" in done.stderr
