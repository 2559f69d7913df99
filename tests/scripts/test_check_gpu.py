"""The check of a GPU: its kernels under Triton's interpreter; and all of it where there is a card."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

SCRIPT = Path(__file__).parents[2] / "scripts" / "check_gpu.py"
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
WITHOUT = """
import runpy, sys
sys.modules |= dict.fromkeys(sys.argv[1].split(","))
sys.argv[:] = sys.argv[2:]
sys.path.insert(0, sys.argv[0].rpartition("/")[0])
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""Runs a script where some packages cannot be imported."""
OTHERS = ("numba", "scipy", "hydra", "omegaconf", "optuna", "cma", "rich", "threadpoolctl", "lm_eval", "datasets")


def run(*options: Any, without: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", WITHOUT, ",".join(without), SCRIPT] if without else [sys.executable, SCRIPT]
    return subprocess.run([*command, *options], capture_output=True, text=True)


def check(directory: Path, *options: str, **more: Any) -> dict[str, Any]:
    out = directory / "found.json"
    ended = run("--out", out, *options, **more)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return json.loads(out.read_text(encoding="utf-8"))


@needs_triton
def test_kernels_agree_under_the_interpreter_without_other_packages(tmp_path: Path) -> None:
    found = check(tmp_path, "--interpret", without=OTHERS)
    assert {case["kind"] for case in found["kernels"]} == {"expert", "dense", "int8", "int4", "masked"}
    assert all(case["agrees"] for case in found["kernels"])
    assert "skipped" in found["search"]


def test_what_is_missing_is_said() -> None:
    ended = run("--interpret", without=["triton"])
    assert ended.returncode == 2
    assert "the part of the kernels needs torch, triton, numpy, safetensors and transformers" in ended.stderr


@pytest.mark.gpu
@needs_triton
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_a_card_passes(tmp_path: Path) -> None:
    found = check(tmp_path)
    assert all(case["agrees"] for case in found["kernels"])
    assert found["bandwidth"][0]["case"] == "copy"
