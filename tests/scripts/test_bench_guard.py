"""The benchmark of the guard, on a pico model."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel

from evomerge.runs.suite import Suite
from tests.kit.models import BERT, pico

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_guard.py"
KEYS = {"case", "parameters", "elements", "calls", "check_seconds", "candidate_seconds", "ratio"}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    specification = importlib.util.spec_from_file_location("bench_guard", SCRIPT)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    monkeypatch.setattr(module, "ITEMS", 8)
    monkeypatch.setattr(module, "TOKENS", 6)
    return module


def test_a_check_a_candidate_and_their_ratio(bench: Any) -> None:
    model = pico(BertModel, BERT).eval().requires_grad_(False)
    row = bench.measure(model, 10, 5)
    assert row.keys() == KEYS - {"case"}
    assert (row["calls"], row["parameters"]) == (10, len(list(model.parameters())))
    assert row["elements"] == sum(parameter.numel() for parameter in model.parameters())
    assert min(row["check_seconds"], row["candidate_seconds"], row["ratio"]) > 0


@pytest.mark.parametrize("built", [True, False])
def test_the_command(
    bench: Any, built: bool, pico_suite: Suite, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(bench, "MINI", BERT)
    suite = pico_suite.path if built else pico_suite.path / "none"
    given = ["--suite", str(suite), "--calls", "4", "--candidates", "2", "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", ["bench_guard.py", *given, "--json"])
    bench.main()
    row = json.loads(capsys.readouterr().out)
    assert row.keys() == KEYS
    assert row["case"] == ("pico" if built else "random MiniLM")
    monkeypatch.setattr(sys, "argv", ["bench_guard.py", *given])
    bench.main()
    assert "the check takes" in capsys.readouterr().out
