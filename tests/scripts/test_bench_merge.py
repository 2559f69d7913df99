"""The script that measures the memory of a merge, on a pico family: what it counts is there."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.language import save_language_family

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_merge.py"


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="counts anonymous memory as Linux does")
def test_bytes_and_seconds(tmp_path):
    family = save_language_family(tmp_path / "suite")
    (family / "experts").mkdir()
    for name in ("left", "right"):
        (family / name).rename(family / "experts" / name)
    command = [sys.executable, str(SCRIPT), "--suite", str(family), "--pairs", "2", "--json"]
    row = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert row["experts"] == 2
    assert 2 * row["kept"]["held"] == row["cached"]["held"] == 2 * 2 * row["model"]
    assert row["kept"]["disk"] < row["cached"]["held"] <= row["cached"]["disk"]
    assert row["seconds_ratio"] > 0
    assert row["seconds"]["kept"] > 0


def test_a_suite_that_is_not_there(tmp_path):
    command = [sys.executable, str(SCRIPT), "--suite", str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "build_suite.py lm" in result.stderr
