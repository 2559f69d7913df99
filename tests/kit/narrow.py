"""The pico suite in bfloat16, and processors that are slow or fast in it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from evomerge.runs.suite import Suite


def narrowed(suite: Suite, path: Path, dtype: str = "bfloat16") -> Path:
    """Copy a suite, with base and experts in another dtype."""
    shutil.copytree(suite.path, path)
    for config in path.rglob("config.json"):
        config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": dtype}))
        weights = config.parent / "model.safetensors"
        cast = {key: tensor.to(getattr(torch, dtype)) for key, tensor in load_file(weights).items()}
        save_file(cast, weights, metadata={"format": "pt"})
    return path


def processor(patch: pytest.MonkeyPatch, ratio: float) -> None:
    """Let a product in 16 bits take so many times as long as in float32."""
    patch.setattr(
        "evomerge.models.computing.product_seconds",
        lambda dtypes: {dtype: ratio if dtype.itemsize == 2 else 1.0 for dtype in dtypes},
    )
