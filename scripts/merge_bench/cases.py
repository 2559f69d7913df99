"""The cases: a method, a number of rows, and the form in which they are kept; what one moves, and how it is made ready.

A candidate reads θ₀ and each row at its stored size, and writes the model once: that is what `Ready.bytes` counts.
Masks, codes and second passes are not counted, so a method that needs them reaches less of the bandwidth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from tempfile import mkdtemp

import numpy as np

from evomerge.merging import methods
from evomerge.merging.builder import Builder
from evomerge.merging.kernels.compiled import function, lanes
from evomerge.merging.kernels.cpu import PIECE, share
from evomerge.merging.kernels.draw import mixed, uniform, with_high
from evomerge.merging.kernels.lanes import WORD, Code, Variable, counted
from evomerge.merging.kernels.source import HIGH
from evomerge.merging.merger import Merger
from evomerge.merging.method import Formed
from evomerge.merging.sites import find_site
from evomerge.models.live import LiveModel
from evomerge.space.groups import make_groups
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.quantised import quantised
from evomerge.task_vectors.store import TaskVectors, task_vectors
from merge_bench.memory import watched
from merge_bench.models import BASE


@dataclass(frozen=True)
class Case:
    """One kind of candidate.

    Attributes:
        method: how it is merged.
        rows: number of experts.
        store: `bfloat16` (experts as they are), `float32` (task vectors from a cache), `int8` or `int4`.
        variant: what else the name says.
    """

    method: Formed
    rows: int = 3
    store: str = "bfloat16"
    variant: str = ""

    @property
    def name(self) -> str:
        """What it is called."""
        return " ".join(filter(None, (self.method.name, self.variant, self.store, str(self.rows))))


CASES = (
    Case(methods.Linear(), store="float32"),
    Case(methods.Linear()),
    Case(methods.Linear(), 8, "float32"),
    Case(methods.Linear(), 8),
    Case(methods.Linear(), 8, "int8"),
    Case(methods.Linear(), 8, "int4"),
    Case(methods.Ties()),
    Case(methods.Ties(normalize=True), variant="normalized"),
    Case(methods.Dare()),
    Case(methods.DareTies()),
    Case(methods.Della()),
    Case(methods.Breadcrumbs()),
    Case(methods.Slerp(), 1),
    Case(methods.NuSlerp(), 2),
)


def chosen(patterns: list[str]) -> list[Case]:
    """Return the cases whose names fit one of some patterns, such as `linear*`; all if there are none."""
    return [case for case in CASES if not patterns or any(fnmatch(case.name, pattern) for pattern in patterns)]


class Ready:
    """A case that can be merged.

    Args:
        case: which.
        directory: of the models.
        live: the base in memory, which is overwritten.

    Attributes:
        bytes: that a candidate reads and writes at least.
        prepare_seconds: what making the merger took, without compiling.
        prepare_memory: the largest growth of anonymous memory meanwhile, in bytes.
    """

    def __init__(self, case: Case, directory: Path, live: LiveModel) -> None:
        self.case, self._live = case, live
        self._vectors = _vectors(case, directory, live)
        self._groups = make_groups("layer", self._vectors.parameters)
        model = sum(parameter.nbytes for parameter in live.model.parameters())
        self.bytes = 2 * model + self._vectors.nbytes
        self._compile()
        started = time.perf_counter()
        with watched() as peak:
            self._merger = Merger(live.model, self._vectors, self._groups, case.method)
        self.prepare_seconds, self.prepare_memory = time.perf_counter() - started, peak.growth

    def _compile(self) -> None:
        """Make the smallest parameter alone, and put it back."""
        live = dict(self._live.model.named_parameters())
        index, span = min(
            ((index, span) for index, group in enumerate(self._groups) for span in group.spans),
            key=lambda each: each[1].stop - each[1].start,
        )
        if (site := find_site(index, span, live[span.parameter], self._vectors)) is None:
            raise ValueError(f"no row has {span.parameter}")
        Builder([site], self.case.method).build(self._draw(0))
        site.live.copy_(site.base)

    def merge(self, number: int) -> float:
        """Make a candidate, and return its seconds.

        Args:
            number: which one: all have coefficients of their own.
        """
        coefficients = self._draw(number)
        started = time.perf_counter()
        self._merger.apply(coefficients)
        return time.perf_counter() - started

    def extra_memory(self) -> int | None:
        """Return the largest growth of anonymous memory, in bytes, while a candidate is made."""
        coefficients = self._draw(0)
        self._merger.apply(coefficients)  # the first one writes into the model's pages
        with watched() as peak:
            self._merger.apply(coefficients)
        return peak.growth

    def restore(self) -> None:
        """Put the base back."""
        self._merger.restore()

    def _draw(self, number: int) -> Mapping[str, np.ndarray]:
        rng, shape = np.random.default_rng(number), (len(self._groups), self.case.rows)
        return {variable.name: rng.uniform(0.2, 0.8, shape) for variable in self.case.method.variables}


def _vectors(case: Case, directory: Path, live: LiveModel) -> TaskVectors:
    cache = Path(mkdtemp(dir=directory))
    base = live.open(directory / BASE, cache=directory / "hashes")
    experts = {f"e{k}": live.open(directory / str(k), cache=directory / "hashes") for k in range(case.rows)}
    vectors = task_vectors(
        base, experts, live.parameters, cache, store="float32" if case.store == "float32" else "auto"
    )
    if not case.store.startswith("int"):
        return vectors
    bits = int(case.store.removeprefix("int"))
    packed: dict[str, dict[str, Delta]] = {
        row: {name: quantised(delta.dense(), bits) for name, delta in held.items()}
        for row, held in vectors.deltas.items()
    }
    return TaskVectors(base, experts, vectors.parameters, packed)


def draws_alone(rows: int, elements: int) -> Callable[[int], float]:
    """Return what draws the random numbers of a candidate of `dare` and only counts those that are kept; its seconds.

    Args:
        rows: how many numbers each element has.
        elements: of the model.
    """

    count = function(_drawing(), "drawn", 4, "the draws alone")

    def run(number: int) -> float:
        keys = np.random.default_rng(number).integers(0, 1 << 32, (rows, 2))
        started = time.perf_counter()
        for one, other in keys.tolist():

            def some(first: int, last: int, one: int = one, other: int = other) -> int:
                return count(one, other, first * PIECE, min(last * PIECE, elements))

            share(some, -(-elements // PIECE), elements)
        return time.perf_counter() - started

    return run


def _drawing() -> str:
    """Return the text of what counts the draws below a half of some elements, in tiles as merges have them."""
    code, wide = Code("drawn", 4), lanes()
    one, other, first, last = code.arguments
    place, found = Variable(first), Variable(code.number(0))
    with code.loop(place, last) as start:
        key, end = with_high(start.to(WORD), one.to(WORD)), ((start | (HIGH - 1)) + 1).at_most(last)
        with code.loop(place, end) as i:
            bits = mixed(i.to(WORD).spread(wide).numbered() ^ key, other.to(WORD))
            found.set(found.get() + counted(uniform(bits) < 0.5))
            place.set(i + wide)
    return code.returned(found.get())
