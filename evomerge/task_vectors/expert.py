"""The delta `expert`: θ_k itself in its own dtype, from which θ₀ is subtracted where its task vector is needed.

In: base and expert as `Checkpoint`s. Out: τ_k = θ_k − θ₀ by parameter, or by any part of one, float32: to the bit what
the cached task vector holds, since that is the same difference of the same casts. An expert of 16 bits takes two bytes
a parameter so, mapped from its own file, instead of four and a copy on disk; what it costs is a cast and a subtraction
for every candidate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.common.files import write_atomically
from evomerge.common.progress import Steps
from evomerge.models.checkpoint import Checkpoint
from evomerge.task_vectors.spans import Span

PIECE = 1 << 18
"""Elements that are merged together where each can be merged by itself, 1 MiB of float32 for each expert; a multiple of
all that a sum over vectors depends on (`methods.VECTOR`).
"""


@dataclass(frozen=True, eq=False)
class ExpertDelta:
    """The task vector of a span, not computed yet.

    Attributes:
        base: θ₀ there, flat, of any floating dtype.
        expert: θ_k there, (n,) like the base, on the same device.
    """

    base: Tensor
    expert: Tensor

    def __len__(self) -> int:
        return len(self.expert)

    def __getitem__(self, part: slice) -> ExpertDelta:
        return ExpertDelta(self.base[part], self.expert[part])

    def dense(self) -> Tensor:
        """Return the task vector, float32 (n,)."""
        return self.minus(self.base.float())

    def minus(self, base: Tensor) -> Tensor:
        """Return the task vector, float32 (n,), where the base is there in float32 already."""
        return self.expert.to(torch.float32, copy=True).sub_(base)


class ExpertDeltas(Mapping[str, Tensor]):
    """The task vector of one expert, computed anew by every access; parameters in which it is zero are absent.

    Args:
        base: θ₀.
        expert: θ_k.
        parameters: the names, in the order of the live model.
        changed: those in which it is not zero, where that is known (`find_changed`).
    """

    def __init__(
        self,
        base: Checkpoint,
        expert: Checkpoint,
        parameters: Collection[str],
        changed: Collection[str] | None = None,
    ) -> None:
        self._models = (base, expert)
        self._last: tuple[str, list[Tensor]] = ("", [])
        both = [name for name in parameters if name in base.keys and name in expert.keys]
        self._whole = {name: Span(name, 0, base.tensor(name).numel()) for name in both}
        if changed is None:
            changed = {name for name, span in self._whole.items() if any(map(torch.any, map(self.span, cut(span))))}
        self._whole = {name: span for name, span in self._whole.items() if name in changed}

    def __getitem__(self, name: str) -> Tensor:
        return self.span(self._whole[name]).view(self._models[0].tensor(name).shape)

    def __contains__(self, name: object) -> bool:
        return name in self._whole

    def __iter__(self) -> Iterator[str]:
        return iter(self._whole)

    def __len__(self) -> int:
        return len(self._whole)

    def span(self, span: Span) -> Tensor:
        """Return a part of the task vector of a parameter, float32 (n,)."""
        if self._last[0] != span.parameter:  # what lies in strides in a file is copied to be flat: once, not every time
            self._last = (span.parameter, [model.tensor(span.parameter).reshape(-1) for model in self._models])
        return ExpertDelta(*self._last[1])[span.start : span.stop].dense()

    def kept(self, name: str) -> ExpertDelta:
        """Return the task vector of a parameter, flat, without computing it."""
        return ExpertDelta(*(model.tensor(name).reshape(-1) for model in self._models))

    @property
    def nbytes(self) -> int:
        """Bytes of what is kept of the expert where its task vector is not zero."""
        return sum(self._models[1].tensor(name).nbytes for name in self._whole)


def cut(span: Span, size: int | None = None) -> Iterator[Span]:
    """Yield a span in pieces of at most `size` elements (`PIECE`), or one more: a single element is never left over,
    since sums over many experts add it up in another order (`methods.sum_weighted`).
    """
    size, start = size or PIECE, span.start
    while start < span.stop:
        stop = start + size if start + size + 1 < span.stop else span.stop
        yield Span(span.parameter, start, stop)
        start = stop


def is_narrow(expert: Checkpoint, parameters: Collection[str]) -> bool:
    """Whether all parameters of an expert take two bytes or less, so that it is smaller than its task vector."""
    return all(expert.dtype(name).itemsize <= 2 for name in parameters if name in expert.keys)


def find_changed(
    contents: list[Any],
    base: Checkpoint,
    expert: Checkpoint,
    name: str,
    parameters: Collection[str],
    cache: Path,
    progress: Steps | None = None,
) -> frozenset[str]:
    """Return the parameters in which a task vector is not zero; read from the cache where they were found before.

    Args:
        contents: all that the task vector depends on, as plain data: it names the file.
        base: θ₀.
        expert: θ_k.
        name: of the expert, for messages.
        parameters: the names of those that both hold.
        cache: directory of task vectors; it may be deleted at any time.
        progress: told what is done, in elements.

    Raises:
        CheckpointError: a weight is not finite.
    """
    file = cache / f"{hashlib.sha256(json.dumps(['changed', contents]).encode()).hexdigest()}.json"
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8"))["changed"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or damaged
    done, total, changed = 0, sum(base.tensor(each).numel() for each in parameters), []
    for parameter in parameters:
        whole = ExpertDelta(base.tensor(parameter).reshape(-1), expert.tensor(parameter).reshape(-1))
        differs = False
        for part in cut(Span(parameter, 0, len(whole))):
            piece = whole[part.start : part.stop]
            largest = float(torch.linalg.vector_norm(piece.dense(), torch.inf))
            check_finite(largest, piece.base, parameter, name, base, expert)
            differs |= largest > 0
        changed += [parameter] if differs else []
        done += len(whole)
        if progress:
            progress(f"looking at {name}", done, total)
    cache.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps({"changed": changed}))
    return frozenset(changed)


def check_finite(
    largest: float, before: Tensor, parameter: str, name: str, base: Checkpoint, expert: Checkpoint
) -> None:
    """Refuse a task vector that is not finite.

    Args:
        largest: its largest magnitude; NaN if any element is.
        before: θ₀ there.
        parameter: where.
        name: of the expert.
        base: θ₀.
        expert: θ_k.

    Raises:
        CheckpointError: it is not finite.
    """
    if largest < float("inf"):
        return
    who, at = (f"expert {name}", expert) if torch.isfinite(before.float()).all() else ("the base", base)
    raise CheckpointError(not_finite(who, at, parameter))


def not_finite(who: str, checkpoint: Checkpoint, parameter: str) -> str:
    """Say that a parameter is not finite in float32, and what is left to do."""
    return (
        f"{checkpoint.path}: {checkpoint.keys[parameter]} of {who} is not finite in float32 (inf or NaN), so nothing"
        " can be merged from it. Its training diverged or its file is damaged: take an earlier checkpoint."
    )
