"""The script that measures what a candidate costs in each dtype, on a pico family: what it times is the same model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.language import save_language_family

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_compute.py"


@pytest.mark.slow
def test_a_row_for_each_set_of_instructions(tmp_path):
    family = save_language_family(tmp_path / "suite")
    (family / "experts").mkdir()
    for name in ("left", "right"):
        (family / name).rename(family / "experts" / name)
    limits = ["--isa", "all", "--isa", "AVX2"]
    command = [sys.executable, str(SCRIPT), "--suite", str(family), "--rounds", "2", *limits, "--json"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    rows = [json.loads(line) for line in printed.splitlines()]
    assert [row["isa"] for row in rows] == ["all", "AVX2"]
    for row in rows:
        assert row["chosen"] in ("bfloat16", "float32")
        assert row["chosen"] != "bfloat16" or row["ratio"] == 1
        for name in ("bfloat16", "float32"):
            assert row["seconds"][name] > row["forward"][name] > 0


def test_a_suite_that_is_not_there(tmp_path):
    command = [sys.executable, str(SCRIPT), "--suite", str(tmp_path)]
    result = subprocess.run(command, check=False, capture_output=True, text=True)
    assert result.returncode == 2
    assert "build_suite.py lm" in result.stderr
