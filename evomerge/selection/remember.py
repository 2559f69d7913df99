"""Outcomes remembered on disk: base, experts and constants are the same for every run of a sweep, and are scored once.

In: a description of all that an outcome depends on (contents of sources, heads and items, settings, versions, kind of
machine) and a way to compute it. Out: the outcome, from `cache/outcomes/<hash>.json` where it is there. The cache may
be deleted at any time; a damaged entry is computed again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from evomerge.common.files import write_atomically
from evomerge.fitness.base import Outcome


def recalled(cache: Path, description: Mapping[str, Any]) -> Outcome | None:
    """Return the outcome that the description stands for, or None where it is not remembered, or damaged."""
    key, file = _place(cache, description)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        if content["description"] == json.loads(key):
            results = {
                task: {name: np.array(v) for name, v in metrics.items()} for task, metrics in content["results"].items()
            }
            return Outcome(content["items"], results)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return None


def remembered(cache: Path, description: Mapping[str, Any], compute: Callable[[], Outcome]) -> Outcome:
    """Return the outcome that the description stands for, computed only when it is not remembered.

    Args:
        cache: the directory of the cache.
        description: JSON-serialisable; everything that the outcome depends on.
        compute: scores the model.
    """
    if (known := recalled(cache, description)) is not None:
        return known
    key, file = _place(cache, description)
    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(file.parent / f".{file.stem}.lock"):  # a second run of a sweep waits, and reads what is there
        if (known := recalled(cache, description)) is None:
            known = compute()
            results = {task: {n: v.tolist() for n, v in metrics.items()} for task, metrics in known.results.items()}
            content = {"description": json.loads(key), "items": dict(known.items), "results": results}
            write_atomically(file, json.dumps(content))
        return known


def _place(cache: Path, description: Mapping[str, Any]) -> tuple[str, Path]:
    """Return what an outcome depends on, as text, and where it is remembered."""
    key = json.dumps(description, sort_keys=True)
    return key, cache / "outcomes" / f"{hashlib.sha256(key.encode()).hexdigest()}.json"
