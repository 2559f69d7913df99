"""Directories of PEFT adapters, beside those of whole models: which is which, and which files they must have.

In: a directory that a user named as an expert. Out: whether it is an adapter, and the file of its weights.
"""

from __future__ import annotations

from pathlib import Path

from evomerge.common.errors import CheckpointError
from evomerge.models.weight_files import ADAPTER, WEIGHTS, check_readable, weight_files

FILES = ("adapter_model.safetensors", "adapter_model.bin")
"""Where the weights of an adapter are, in the order in which PEFT prefers them."""


def is_adapter(path: Path) -> bool:
    """Whether a directory holds an adapter, and no model."""
    return (path / ADAPTER).is_file() and not any(WEIGHTS.fullmatch(file.name) for file in path.iterdir())


def adapter_file(path: Path) -> Path:
    """Return the file of an adapter's weights.

    Raises:
        CheckpointError: there is none.
    """
    found = next((path / name for name in FILES if (path / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"{path} holds no {' or '.join(FILES)}: download or copy the adapter again.")
    return found


def check_expert_files(path: Path) -> None:
    """Refuse a directory whose weights or settings are not there, or not those of a model or an adapter.

    Raises:
        CheckpointError: they are not.
    """
    if path.is_dir() and is_adapter(path):
        adapter_file(path)
        return
    weight_files(path)
    check_readable(path)
