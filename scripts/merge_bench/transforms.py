"""Measures a transform: its seconds, the memory that it takes, and the rows that it makes.

In: the directories that `models.py` writes. Out: a row. A transform is looked at parameter by parameter: one that runs
out of time is stopped between two of them, and scaled by the shapes of those that are left.
"""

from __future__ import annotations

import math
import multiprocessing
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from fnmatch import fnmatch
from multiprocessing.connection import Connection
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


@dataclass(frozen=True)
class Plan:
    """What is measured, and how long.

    Attributes:
        directory: of the models.
        experts: how many are taken.
        layers: of the model that figures are for.
        vocabulary: the tokens of that model.
        limit: seconds of processor time after which a transform stops as soon as it has seen all shapes.
    """

    directory: Path
    experts: int
    layers: int
    vocabulary: int
    limit: float


def measure_apart(plan: Plan, case: Case) -> dict[str, Any]:
    """Return the row of a case, measured in a process of its own: what an earlier one left in memory would be used
    unseen. It is forked where the system can, since what it imports takes seconds.
    """
    ways = multiprocessing.get_all_start_methods()
    context = multiprocessing.get_context("fork") if "fork" in ways else multiprocessing.get_context("spawn")
    found, sender = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sender, plan, case))
    process.start()
    sender.close()
    try:
        row = found.recv()
    except EOFError:
        row = {"error": "its process ended: out of memory?"}
    process.join()
    return {"case": case.name, "experts": plan.experts, "error": None, **row}


def _send(sender: Connection, plan: Plan, case: Case) -> None:
    try:
        row = measure(plan, case)
    except Exception as error:  # whatever a transform raises costs its line
        row = {"error": f"{type(error).__name__}: {error}"}
    sender.send(row)


def measure(plan: Plan, case: Case) -> dict[str, Any]:
    """Return the row of a case, measured in this process."""
    directory, hashes = plan.directory, plan.directory / "hashes"
    live = load_skeleton(directory / BASE, "AutoModelForCausalLM")
    base = live.open(directory / BASE, cache=hashes)
    more = {"base": base} if case.adapters else {}
    paths = {f"e{k}": directory / (f"{ADAPTER}{k}" if case.adapters else str(k)) for k in range(plan.experts)}
    found = {name: live.open(path, cache=hashes, **more) for name, path in paths.items()}
    vectors = task_vectors(base, found, live.parameters, hashes, store=AUTO)
    (step,) = make_chain(resolved(case.transform))
    clock = _Clocked(step.transform, vectors.parameters, plan.limit)
    kept: int | None = None
    with TemporaryDirectory(dir=directory) as cache:
        wall, processor = time.perf_counter(), time.process_time()
        with watched() as peak, suppress(_OutOfTimeError):
            kept = transformed(vectors, (Step(clock),), Path(cache)).nbytes
        wall, processor = time.perf_counter() - wall, time.process_time() - processor
    larger = _larger(vectors.parameters, plan)
    factor, share = clock.scaled(processor, larger)
    changed = {
        name: shape
        for name, shape in vectors.parameters.items()
        if any(name in held for held in vectors.deltas.values())
    }
    wide = _larger(changed, plan)
    return {
        "seconds": round(processor * factor, 2),
        "wall_seconds": round(wall * factor, 2),
        "extra_memory": peak.growth and round(peak.growth * _largest(wide) / _largest(changed)),
        "kept_bytes": kept and round(kept * _elements(wide) / _elements(changed)),
        "measured": round(share, 3),
    }


def _larger(shapes: Mapping[str, tuple[int, ...]], plan: Plan) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the model that figures are for: its blocks are like the first one, and its embeddings are as
    wide.
    """
    blocks = re.compile(r"(.*\.layers\.)(\d+)(\..*)")
    found: dict[str, tuple[int, ...]] = {}
    for name, shape in shapes.items():
        if (block := blocks.fullmatch(name)) is None:
            found[name] = (plan.vocabulary, *shape[1:]) if "embed" in name else shape
        elif block[2] == "0":
            found |= {f"{block[1]}{k}{block[3]}": shape for k in range(plan.layers)}
    return found


def _elements(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return sum(math.prod(shape) for shape in shapes.values())


def _largest(shapes: Mapping[str, tuple[int, ...]]) -> int:
    return max(math.prod(shape) for shape in shapes.values())


class _OutOfTimeError(Exception):
    """The limit was reached between two parameters."""


class _Clocked(Transform):
    """A transform whose processor time is noted by parameter, and limited.

    Args:
        inner: the transform.
        shapes: of all parameters.
        limit: seconds, after which it stops as soon as all shapes were seen.
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
        unseen = set(self._shapes.values()) - {self._shapes[each] for each in self._seconds}
        if self._prepared + sum(self._seconds.values()) > self._limit and not unseen:
            raise _OutOfTimeError
        started = time.process_time()
        rows = self._inner.apply(name, deltas, state)
        self._seconds[name] = time.process_time() - started
        return rows

    def scaled(self, seconds: float, larger: Mapping[str, tuple[int, ...]]) -> tuple[float, float]:
        """Return how many times as long a whole model takes, and which share of its elements was made.

        Args:
            seconds: what was taken, reading and writing included.
            larger: the shapes of that model.
        """
        made, own = {name: self._shapes[name] for name in self._seconds}, sum(self._seconds.values())
        every = 0.0
        for name, shape in larger.items():
            alike = [one for one, other in made.items() if other == shape] or [name]
            pace = sum(self._seconds[one] for one in alike) / sum(math.prod(made[one]) for one in alike)
            every += pace * math.prod(shape)
        prepared = self._prepared * _elements(larger) / _elements(self._shapes)
        around = max(seconds - self._prepared - own, 0.0) * _elements(larger) / _elements(made)
        share = _elements(made) / _elements(larger)
        return (1.0, 1.0) if share == 1 else ((prepared + every + around) / seconds, share)
