"""The script that measures transforms, on tiny models: a line a case, limits that are said, and files that go on."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_transforms.py"
TINY = [
    *("--layers", "3", "--of", "2", "100", "--width", "36", "--vocabulary", "200", "--experts", "3", "--rank", "2"),
    "--json",
]


@pytest.mark.slow
def test_a_line_for_each_case(tmp_path: Path):
    out, cases = tmp_path / "costs.jsonl", ("truncate", "core_space of adapters", "doge")
    held = {"case": "truncate", "seconds": 1.0, "error": None}
    out.write_text(json.dumps(held) + "\n")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *TINY, "--out", str(out), "--limit", "0.001", "--cases", *cases],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    rows = {row["case"]: row for row in map(json.loads, out.read_text().splitlines())}
    assert set(rows) == set(cases)
    assert rows["truncate"] == held  # it was there
    assert rows["core_space of adapters"]["experts"] == 3
    for name in cases[1:]:
        assert rows[name]["seconds"] > 0
        assert 0 < rows[name]["measured"] < 1  # of three blocks, two were there
    assert rows["doge"]["kept_bytes"] is None  # it ran out of time
