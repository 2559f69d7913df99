"""A search and a gradient on pico models on a card, by evomerge's own command."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NEEDED = ("hydra", "cma", "optuna", "scipy", "filelock", "rich")
ROOT = Path(__file__).parents[2]
RUNS = {"search": ["experiment=smoke"], "gradient": ["experiment=smoke", "searcher=gradient"]}
LIMIT = 120
"""Seconds that one run may take."""


def search() -> dict[str, Any]:
    """Return how each run ended; or which requirements are missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return {"skipped": f"not installed: {', '.join(missing)}"}
    return {name: _run(settings) for name, settings in RUNS.items()}


def _run(settings: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "evomerge", "search", *settings]
        command += ["model.device=cuda", f"hydra.run.dir={directory}/run"]
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"command": command[2:-1], "status": f"took more than {LIMIT} seconds"}
    return {"command": command[2:-1], "status": ended.returncode, "end": (ended.stdout + ended.stderr)[-2000:]}
