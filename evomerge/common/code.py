"""Classes of somebody else's package: what a recipe calls them, and a hash of their code, on which results depend."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path


def called(name: str, kind: type) -> str:
    """Return what a recipe calls a method or transform: its name, or module and class of one that is not ours."""
    return name if is_ours(kind) else f"{kind.__module__}.{kind.__qualname__}"


def is_ours(kind: type) -> bool:
    """Return whether a class is part of evomerge."""
    return kind.__module__.partition(".")[0] == "evomerge"


def code_of(kind: type) -> str | None:
    """Return a hash of the file of a class that is not ours, on which results depend as they do on its settings."""
    if is_ours(kind):
        return None
    return hashlib.sha256(Path(inspect.getfile(kind)).read_bytes()).hexdigest()[:16]
