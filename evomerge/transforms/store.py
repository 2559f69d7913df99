"""Transformed and packed task vectors, computed once and kept on disk beside the plain ones.

In: `TaskVectors`, a chain of transforms, and how rows are kept. Out: `TaskVectors` of the same base and parameters with
other rows, mapped from a file per row (`task_vectors/files.py`), all of them written in one pass over the parameters. A
file is named by everything that its numbers depend on: a transform may look at all rows at once, and their order is
that of its sums.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from evomerge.common.code import called, code_of
from evomerge.common.progress import Steps
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.files import Computed, Rows, cached_rows
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.packing import mask_of, pack
from evomerge.task_vectors.store import TaskVectors, describe
from evomerge.task_vectors.stores import AUTO, LOSSY
from evomerge.transforms.chain import KEEP, Chain, Stage, Step, row_names

FORMAT = "evomerge transformed task vector 3"
KEPT = "evomerge kept task vector 1"


def transformed(
    vectors: TaskVectors, chain: Chain, cache: Path, progress: Steps | None = None, store: str = AUTO
) -> TaskVectors:
    """Read the transformed task vectors from the cache, and compute those that it lacks.

    A step of a chain is computed only if a file of it is missing. In memory there are the rows of one parameter at a
    time, and what the transforms themselves hold.

    Args:
        vectors: what to transform, exact; memory-mapped.
        chain: what to do; nothing leaves the vectors as they are.
        cache: directory of the task vectors; it may be deleted at any time.
        progress: told what is done, in elements or bytes.
        store: how the rows are kept (`model.store`). A row that is the vector of its name where it is not zero is kept
            as a mask over that, whatever the choice. Transforms see exact task vectors.

    Raises:
        CheckpointError: the cache cannot be written.
        ConfigError: a step is for parameters that are not there, or makes no rows.
        MergeError: a transform made something else than it says.
    """
    if not chain and store not in LOSSY:
        return vectors
    before, step = (chain[:-1], chain[-1]) if chain else ((), None)
    contents = _contents(vectors, chain)
    rows = row_names(chain, vectors.rows, vectors.parameters)

    def compute() -> Computed:
        if step is None:
            yield from _packed(vectors, store, progress)
            return
        for name, found in _pass(transformed(vectors, before, cache, progress), step, progress):
            exact = {row: vectors.deltas[row].get(name) for row in vectors.rows}
            yield name, {row: kept_row(values, store, exact.get(row)) for row, values in found.items()}

    @functools.cache
    def below() -> Rows:
        return transformed(vectors, (), cache, progress, store).deltas

    kept = [KEPT, store] if store in LOSSY else []
    named = {row: [*kept, *contents, place] for place, row in enumerate(rows)}
    deltas = cached_rows(named, vectors.parameters, compute, cache, progress, below)
    return replace(vectors, deltas=deltas, contents=named, cache=cache)


def _contents(vectors: TaskVectors, chain: Chain) -> list[Any]:
    """Return all that the rows of a chain depend on, but for the place of each."""
    if not chain:
        return [describe(vectors.base, expert, vectors.parameters) for expert in vectors.experts.values()]
    *before, step = chain
    transform, restriction = step.transform, {"only": step.chosen(vectors.parameters)} if step.only else {}
    restriction |= {"rest": step.rest} if step.rest != KEEP else {}
    code = {"code": code} if (code := code_of(type(transform))) else {}
    own = {**transform.settings, **restriction, **code}
    return [
        FORMAT,
        called(transform.name, type(transform)),
        own,
        list(vectors.parameters.items()),
        _contents(vectors, before),
    ]


def _pass(vectors: TaskVectors, step: Step, progress: Steps | None) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield the rows of each parameter."""
    stage, done = Stage(step, vectors, progress), 0
    total = sum(math.prod(shape) for shape in vectors.parameters.values())
    for name, shape in vectors.parameters.items():
        yield name, stage(name)
        done += math.prod(shape)
        if progress:
            progress(f"transform {step.transform.name}", done, total)


def _packed(vectors: TaskVectors, store: str, progress: Steps | None) -> Computed:
    """Yield the rows of each parameter as they are kept, where nothing is done to them; one is in float32 at a time."""
    done, total = 0, sum(math.prod(shape) for shape in vectors.parameters.values())
    for name, shape in vectors.parameters.items():
        deltas = {row: delta for row in vectors.rows if (delta := vectors.delta(row, name)) is not None}
        yield name, {row: pack(delta.dense(), store) for row, delta in deltas.items()}
        done += math.prod(shape)
        if progress:
            progress("packing task vectors", done, total)


def kept_row(values: Tensor, store: str, exact: Delta | None = None, below: Callable[[], Delta] | None = None) -> Delta:
    """Return a row of a parameter as it is kept.

    Args:
        values: the row, float32, of any shape.
        store: how it is kept (`model.store`).
        exact: the task vector of its name, over which it may be a mask.
        below: returns that task vector as it is kept; None where it is kept as it is given.
    """
    flat = values.reshape(-1)
    if exact is None or (mask := mask_of(flat, exact)) is None:
        return pack(flat, store)
    return masked(below() if below else exact, mask)
