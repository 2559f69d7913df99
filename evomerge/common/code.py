"""Classes of somebody else's package: what a recipe calls them, and a hash of their code, on which results depend."""

from __future__ import annotations

import hashlib
import inspect
import sys
from pathlib import Path
from typing import Any

from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError


def called(name: str, kind: type) -> str:
    """Return what a recipe calls a method or transform: its name, or module and class of one that is not ours."""
    return name if is_ours(kind) else f"{kind.__module__}.{kind.__qualname__}"


def target_of(kind: type) -> str:
    """Return the path by which configurations name a class: that of its package, where the package has it as well."""
    package = kind.__module__.rpartition(".")[0]
    exported = getattr(sys.modules.get(package), kind.__qualname__, None) is kind
    return f"{package if exported else kind.__module__}.{kind.__qualname__}"


def is_ours(kind: type) -> bool:
    """Return whether a class is part of evomerge."""
    return kind.__module__.partition(".")[0] == "evomerge"


def code_of(kind: type) -> str | None:
    """Return a hash of the file of a class that is not ours, on which results depend as they do on its settings.

    Raises:
        ConfigError: it has no file, as one that was typed into a notebook or a shell.
    """
    if is_ours(kind):
        return None
    try:
        content = Path(inspect.getfile(kind)).read_bytes()
    except (OSError, TypeError) as error:
        raise ConfigError(
            f"{kind.__module__}.{kind.__qualname__} has no file, so nobody could tell later with which code a "
            f"search was made: put the class into a file and import it from there."
        ) from error
    return hashlib.sha256(content).hexdigest()[:16]


def sources_of(model: Any) -> str:
    """Return a hash of the source of all classes of a module in memory that belong to neither torch nor transformers;
    a class without source counts by its name.
    """
    kinds = sorted({type(part) for part in model.modules()}, key=lambda kind: f"{kind.__module__}.{kind.__qualname__}")
    return digest(
        [source_of(kind) for kind in kinds if kind.__module__.partition(".")[0] not in ("torch", "transformers")]
    )


def source_of(thing: Any) -> str:
    """Return the source of a class or function; the name of one that has none."""
    try:
        return inspect.getsource(thing)
    except (OSError, TypeError):
        return thing.__qualname__
