"""Measures a transform: its seconds, the memory that it takes, and the rows that it makes.

In: the directories that `models.py` writes. Out: a row. A transform is looked at parameter by parameter: one that runs
out of time is stopped between two of them, and scaled by the shapes of those that are left.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch import Tensor

from evomerge.models.live import load_skeleton
from evomerge.runs.targets import choices_of
from evomerge.runs.transforms import NONE, make_chain, resolved
from evomerge.task_vectors.store import TaskVectors, task_vectors
from evomerge.task_vectors.stores import AUTO
from evomerge.transforms.base import Transform
from evomerge.transforms.chain import Step
from evomerge.transforms.store import transformed
from merge_bench.memory import watched
from merge_bench.models import ADAPTER, BASE

NEEDS_ADAPTERS = "core_space"
"""It refuses whole experts with its usual settings."""
LARGE = "ranks"
"""It keeps each part of each expert as a whole matrix."""
OF_ADAPTERS = ("knots", NEEDS_ADAPTERS)


@dataclass(frozen=True)
class Case:
    """A transform of whole experts, or of adapters."""

    transform: str
    adapters: bool = False

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self.transform} of adapters" if self.adapters else self.transform


def chosen(patterns: Sequence[str]) -> list[Case]:
    """Return the cases whose names fit one of some patterns; all without patterns, but for what keeps tens of GB."""
    whole = [Case(name) for name in choices_of("transform") if name not in (NONE, NEEDS_ADAPTERS)]
    every = [*whole, *(Case(name, adapters=True) for name in OF_ADAPTERS)]
    if not patterns:
        return [case for case in every if case.transform != LARGE]
    return [case for case in every if any(fnmatch(case.name, pattern) for pattern in patterns)]


def measure(directory: Path, case: Case, experts: int, limit: float) -> dict[str, Any]:
    """Return the row of a case, measured in this process.

    Args:
        directory: of the models.
        case: which.
        experts: how many are taken.
        limit: seconds of processor time after which no further parameter is begun.
    """
    live, hashes = load_skeleton(directory / BASE, "AutoModelForCausalLM"), directory / "hashes"
    base = live.open(directory / BASE, cache=hashes)
    more = {"base": base} if case.adapters else {}
    paths = {f"e{k}": directory / (f"{ADAPTER}{k}" if case.adapters else str(k)) for k in range(experts)}
    found = {name: live.open(path, cache=hashes, **more) for name, path in paths.items()}
    vectors = task_vectors(base, found, live.parameters, hashes, store=AUTO)
    (step,) = make_chain(resolved(case.transform))
    clock = _Clocked(step.transform, vectors.parameters, limit)
    kept: int | None = None
    with TemporaryDirectory(dir=directory) as cache:
        wall, processor = time.perf_counter(), time.process_time()
        with watched() as peak, suppress(_OutOfTimeError):
            kept = transformed(vectors, (Step(clock),), Path(cache)).nbytes
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    factor, share = clock.scaled(processor)
    return {
        "case": case.name,
        "experts": experts,
        "seconds": round(processor * factor, 2),
        "wall_seconds": round(wall * factor, 2),
        "extra_memory": peak.growth,
        "kept_bytes": kept,
        "measured": round(share, 3),
        "error": None,
    }


class _OutOfTimeError(Exception):
    """The limit was reached between two parameters."""


class _Clocked(Transform):
    """A transform whose processor time is noted by parameter, and limited.

    Args:
        inner: the transform.
        shapes: of all parameters.
        limit: seconds, after which no parameter is begun whose shape was seen.
    """

    name, title, paper = "clocked", "what is measured", "nobody, never"

    def __init__(self, inner: Transform, shapes: Mapping[str, tuple[int, ...]], limit: float) -> None:
        self._inner, self._shapes, self._limit = inner, shapes, limit
        self._prepared = 0.0
        self._seconds: dict[str, float] = {}

    @property
    def settings(self) -> dict[str, Any]:
        """Return those of the transform."""
        return self._inner.settings

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return its rows."""
        return self._inner.rows(experts)

    def prepare(self, store: TaskVectors, statistics: Any) -> Any:
        """Prepare it."""
        started = time.process_time()
        state = self._inner.prepare(store, statistics)
        self._prepared = time.process_time() - started
        return state

    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        """Return its rows of a parameter, if there is time for that."""
        shapes = {self._shapes[each] for each in self._seconds}
        if self._prepared + sum(self._seconds.values()) > self._limit and self._shapes[name] in shapes:
            raise _OutOfTimeError
        started = time.process_time()
        rows = self._inner.apply(name, deltas, state)
        self._seconds[name] = time.process_time() - started
        return rows

    def scaled(self, seconds: float) -> tuple[float, float]:
        """Return how many times as long all parameters take, and which share of the elements was made.

        Args:
            seconds: what was taken, reading and writing included, which go by elements.
        """
        sizes = {name: math.prod(shape) for name, shape in self._shapes.items()}
        share = sum(sizes[name] for name in self._seconds) / sum(sizes.values())
        if len(self._seconds) == len(sizes):
            return 1.0, 1.0
        by_shape: dict[tuple[int, ...], list[float]] = {}
        for name, taken in self._seconds.items():
            by_shape.setdefault(self._shapes[name], []).append(taken)
        own = sum(self._seconds.values())
        every = sum(sum(alike) / len(alike) for alike in (by_shape[shape] for shape in self._shapes.values()))
        around = max(seconds - self._prepared - own, 0.0)
        return (self._prepared + every + around / share) / seconds, share
