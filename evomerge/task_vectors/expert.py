"""The kind `expert`: θ_k itself in its own dtype, from which θ₀ is subtracted where its task vector is needed.

In: base and expert as `Checkpoint`s. Out: τ_k = θ_k − θ₀ in float32, to the bit what the cached task vector holds,
since that is the same difference of the same casts. An expert of 16 bits takes two bytes a parameter so, mapped from
its own file, instead of four and a copy on disk; what it costs is a cast and a subtraction for every candidate.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from evomerge.common.directories import make_cache
from evomerge.common.errors import CheckpointError
from evomerge.common.files import write_atomically
from evomerge.common.progress import Steps
from evomerge.models.checkpoint import Checkpoint
from evomerge.task_vectors.delta import Layout, add_product, copied
from evomerge.task_vectors.spans import CHUNK, chunks


@dataclass(frozen=True, eq=False)
class ExpertDelta:
    """A task vector that is not computed yet.

    Attributes:
        base: θ₀, (n,), of any floating dtype.
        expert: θ_k, (n,), on the same device.
    """

    base: Tensor
    expert: Tensor

    @property
    def nbytes(self) -> int:
        """Bytes of the expert: the base is there anyway."""
        return self.expert.nbytes

    @property
    def bound(self) -> float:
        """0: nothing is lost."""
        return 0.0

    def __len__(self) -> int:
        return len(self.expert)

    def __getitem__(self, span: slice) -> ExpertDelta:
        return ExpertDelta(self.base[span], self.expert[span])

    def at(self, places: Tensor) -> Tensor:
        """Return the difference in some elements."""
        return self.expert[places].float() - self.base[places].float()

    def over(self, base: Tensor) -> ExpertDelta:
        """Return it on the device of a base that is at hand: one on a device, or in float32, serves all experts."""
        return ExpertDelta(base, self.expert.to(base.device))

    def held(self, pinned: bool) -> ExpertDelta:
        """Return it copied into memory."""
        return ExpertDelta(self.base, copied(self.expert, pinned))

    def dense(self) -> Tensor:
        """Return the difference, float32 (n,), newly computed."""
        self.write(out := torch.empty(len(self), dtype=torch.float32, device=self.expert.device))
        return out

    def added(self, base: Tensor) -> Tensor:
        """Return θ_k as it is."""
        return self.expert.float()

    def layout(self) -> Layout:
        """Return the expert."""
        return Layout("expert", (self.expert,))

    def write(self, out: Tensor, weight: float = 1.0) -> None:
        """Write λ·τ."""
        size = CHUNK if out.device.type == "cpu" else len(out)  # a base of 16 bits is cast, which takes memory
        for chunk in chunks(len(out), size):
            out[chunk].copy_(self.expert[chunk]).sub_(self.base[chunk].float())
        if weight != 1:
            out.mul_(weight)

    def add_to(self, out: Tensor, weight: float) -> None:
        """Add λ·τ."""
        add_product(out, self.dense(), weight)


class ExpertDeltas(Mapping[str, ExpertDelta]):
    """The deltas of one expert by parameter; those of parameters in which its task vector is zero are absent.

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
        both = [name for name in parameters if name in base.keys and name in expert.keys]
        differ = [name for name in both if (self._differs(name) if changed is None else name in changed)]
        self._changed = dict.fromkeys(differ)

    def __getitem__(self, name: str) -> ExpertDelta:
        if name not in self._changed:
            raise KeyError(name)
        return self._delta(name)

    def __contains__(self, name: object) -> bool:
        return name in self._changed

    def __iter__(self) -> Iterator[str]:
        return iter(self._changed)

    def __len__(self) -> int:
        return len(self._changed)

    def _delta(self, name: str) -> ExpertDelta:
        return ExpertDelta(*(model.tensor(name).reshape(-1) for model in self._models))

    def _differs(self, name: str) -> bool:
        delta = self._delta(name)
        return any(bool(torch.any(delta[chunk].dense())) for chunk in chunks(len(delta), CHUNK))


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
    if (known := _known(file)) is not None:
        return known
    make_cache(cache)
    with FileLock(file.with_suffix(".lock")):  # a second process waits, and reads what is there
        if (known := _known(file)) is None:
            known = frozenset(_changed(base, expert, name, parameters, progress))
            write_atomically(file, json.dumps({"changed": sorted(known)}))
        return known


def _known(file: Path) -> frozenset[str] | None:
    try:
        return frozenset(json.loads(file.read_text(encoding="utf-8"))["changed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None  # not there, or damaged


def _changed(
    base: Checkpoint, expert: Checkpoint, name: str, parameters: Collection[str], progress: Steps | None
) -> list[str]:
    done, total, changed = 0, sum(base.tensor(each).numel() for each in parameters), []
    for parameter in parameters:
        whole = ExpertDelta(base.tensor(parameter).reshape(-1), expert.tensor(parameter).reshape(-1))
        differs = False
        for chunk in chunks(len(whole), CHUNK):
            largest = float(torch.linalg.vector_norm(whole[chunk].dense(), torch.inf))
            refuse_non_finite(largest, whole.base[chunk], parameter, name, base, expert)
            differs |= largest > 0
        changed += [parameter] if differs else []
        done += len(whole)
        if progress:
            progress(f"looking at {name}", done, total)
    return changed


def refuse_non_finite(
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
