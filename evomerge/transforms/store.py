"""Transformed task vectors, computed once and kept on disk beside the plain ones.

In: `TaskVectors` and a chain of transforms. Out: `TaskVectors` of the same base and parameters with other rows, mapped
from a file per row (`task_vectors/files.py`), all of them written in one pass over the parameters. A file is named by
everything that its numbers depend on: a transform may look at all rows at once, and their order is that of its sums.
"""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from evomerge.common.code import called, code_of
from evomerge.common.progress import Steps
from evomerge.task_vectors.files import Computed, cached_rows
from evomerge.task_vectors.store import TaskVectors, describe
from evomerge.transforms.chain import Chain, Stage, Step, row_names

FORMAT = "evomerge transformed task vector 2"


def transformed(vectors: TaskVectors, chain: Chain, cache: Path, progress: Steps | None = None) -> TaskVectors:
    """Read the transformed task vectors from the cache, and compute those that it lacks.

    A step of a chain is computed only if a file of it is missing. In memory there are the rows of one parameter at a
    time, and what the transforms themselves hold.

    Args:
        vectors: what to transform; memory-mapped.
        chain: what to do; nothing leaves the vectors as they are.
        cache: directory of the task vectors; it may be deleted at any time.
        progress: told what is done, in elements or bytes.

    Raises:
        CheckpointError: the cache cannot be written.
        ConfigError: a step is for parameters that are not there, or makes no rows.
        MergeError: a transform made something else than it says.
    """
    if not chain:
        return vectors
    *before, step = chain
    contents = _contents(vectors, chain)
    rows = row_names(chain, vectors.rows, vectors.parameters)

    def compute() -> Computed:
        return _pass(transformed(vectors, before, cache, progress), step, progress)

    named = {row: [*contents, place] for place, row in enumerate(rows)}
    deltas = cached_rows(named, vectors.parameters, compute, cache, progress)
    return replace(vectors, deltas=deltas, contents=named, cache=cache)


def _contents(vectors: TaskVectors, chain: Chain) -> list[Any]:
    """Return all that the rows of a chain depend on, but for the place of each."""
    if not chain:
        return [describe(vectors.base, expert, vectors.parameters) for expert in vectors.experts.values()]
    *before, step = chain
    transform, restriction = step.transform, {"only": step.chosen(vectors.parameters)} if step.only else {}
    code = {"code": code} if (code := code_of(type(transform))) else {}
    own = {**transform.settings, **restriction, **code}
    return [
        FORMAT,
        called(transform.name, type(transform)),
        own,
        list(vectors.parameters.items()),
        _contents(vectors, before),
    ]


def _pass(vectors: TaskVectors, step: Step, progress: Steps | None) -> Computed:
    """Yield the rows of each parameter."""
    stage, done = Stage(step, vectors), 0
    total = sum(math.prod(shape) for shape in vectors.parameters.values())
    for name, shape in vectors.parameters.items():
        yield name, stage(name)
        done += math.prod(shape)
        if progress:
            progress(f"transform {step.transform.name}", done, total)
