"""Transformed task vectors, computed once and kept on disk beside the plain ones.

In: `TaskVectors` and a transform. Out: `TaskVectors` of the same base, experts and parameters with other deltas, mapped
from a file per row (`task_vectors/dense.py`), named by everything that its numbers depend on: a transform may look at
all experts at once, and their order is that of its sums.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.progress import Steps
from evomerge.task_vectors.dense import cached
from evomerge.task_vectors.store import TaskVectors, describe
from evomerge.transforms.base import Transform

FORMAT = "evomerge transformed task vector 2"


def transformed(vectors: TaskVectors, transform: Transform, cache: Path, progress: Steps | None = None) -> TaskVectors:
    """Read the transformed task vectors from the cache, and compute those that it lacks.

    In memory there are one expert's result and the deltas of one parameter at a time.

    Args:
        vectors: what to transform; memory-mapped.
        transform: what to do.
        cache: directory of the task vectors; it may be deleted at any time.
        progress: told what is done, in elements or bytes.

    Raises:
        CheckpointError: the cache cannot be written.
    """
    prepare = functools.cache(lambda: transform.prepare(vectors))  # not needed where every file is there
    contents = [
        *(FORMAT, transform.name, transform.settings, list(vectors.parameters.items())),
        [describe(vectors.base, expert, vectors.parameters) for expert in vectors.experts.values()],
    ]
    deltas = {
        name: cached(
            [*contents, place],
            lambda name=name: _apply(vectors, transform, prepare(), name, progress),
            name,
            cache,
            progress,
        )
        for place, name in enumerate(vectors.experts)
    }
    return TaskVectors(vectors.base, vectors.experts, vectors.parameters, deltas)


def _apply(
    vectors: TaskVectors, transform: Transform, state: Any, expert: str, progress: Steps | None
) -> dict[str, Tensor]:
    """Return the transformed deltas of one expert, without those that are zero."""
    sizes = [math.prod(shape) for shape in vectors.parameters.values()]
    block = torch.empty(sum(sizes), dtype=torch.float32)  # one block, as in task_vectors.py
    result, done = {}, 0
    for (parameter, shape), part in zip(vectors.parameters.items(), block.split(sizes), strict=True):
        deltas = {name: vectors.dense(name, parameter) for name in vectors.experts}
        given = {name: delta for name, delta in deltas.items() if delta is not None}
        delta = transform.apply(parameter, given, state).get(expert)
        if delta is not None and torch.count_nonzero(delta):
            result[parameter] = part.view(shape).copy_(delta)
        done += len(part)
        if progress:
            progress(f"{transform.name} of {expert}", done, len(block))
    return result
