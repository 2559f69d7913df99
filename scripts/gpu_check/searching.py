"""A search and a gradient on pico models on a card, by evomerge's own command; and a search over all cards."""

from __future__ import annotations

import hashlib
import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

NEEDED = ("hydra", "cma", "optuna", "scipy", "filelock", "rich")
ROOT = Path(__file__).parents[2]
RUNS = {
    "search": ["experiment=smoke", "model.device=cuda"],
    "gradient": ["experiment=smoke", "searcher=gradient", "model.device=cuda"],
}
SPREAD = ["experiment=smoke", "model.device_map=auto"]
LIMIT = 120
"""Seconds that one run may take."""


def search() -> dict[str, Any]:
    """Return how each run ended; or which requirements are missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        return {"skipped": f"not installed: {', '.join(missing)}"}
    found = {name: _run(settings) for name, settings in RUNS.items()}
    return {**found, "spread": _spread(found["search"].get("trials"))}


def _spread(trials: str | None) -> dict[str, Any]:
    """Return how a search over all cards ended, and whether its trials are those of one card."""
    import torch

    if torch.cuda.device_count() < 2 or importlib.util.find_spec("accelerate") is None:
        return {"skipped": "it needs two cards or more, and accelerate"}
    found = _run(SPREAD)
    return {**found, "same": trials is not None and found.get("trials") == trials}


def _run(settings: list[str]) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as directory:
        command = [sys.executable, "-m", "evomerge", "search", *settings]
        command += [f"hydra.run.dir={directory}/run"]
        try:
            ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"command": command[2:-1], "status": f"took more than {LIMIT} seconds"}
        lines = Path(directory, "run", "trials.jsonl").read_bytes().splitlines() if not ended.returncode else []
    trials = hashlib.sha256(b"\n".join(line for line in lines if b'"trial"' in line)).hexdigest()
    end = (ended.stdout + ended.stderr)[-2000:]
    return {"command": command[2:-1], "status": ended.returncode, "trials": trials, "end": end}
