"""Task vectors τ_k = θ_k − θ₀ (Ilharco et al. 2023, arXiv 2212.04089), computed once and kept on disk.

In: the base and the experts as `Checkpoint`s. Out: `TaskVectors`, a delta for each row and parameter: float32,
memory-mapped from a file per expert (`dense.py`); or, of an expert of 16 bits, the expert itself, of which it is made
where it is needed (`expert.py`). Both sides are cast to float32 before they are subtracted.
"""

import math
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.common.names import listed
from evomerge.common.progress import Steps
from evomerge.models.buffers import BASE
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.completeness import check_base, check_expert
from evomerge.models.matching import is_pooler
from evomerge.models.vocabulary import row_notes
from evomerge.models.weights import dtype_name, same
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta, ExpertDeltas, find_changed, is_narrow, refuse_non_finite
from evomerge.task_vectors.files import Computed, cached_rows
from evomerge.task_vectors.low_rank import AdapterDeltas
from evomerge.task_vectors.stores import AUTO, FLOAT32

FORMAT = "evomerge task vector 2"
RELATED = 0.5  # cosine of the weights: fine-tuning leaves it above .9, independent training near 0
SAMPLE = 1 << 18  # elements per tensor that the cosine looks at


@dataclass(frozen=True, eq=False)
class TaskVectors:
    """The rows that candidates are combined from: the task vectors of all experts, or what a transform made of them.

    Attributes:
        base: θ₀.
        experts: θ_k by expert.
        parameters: name -> shape, in the order of the live model.
        deltas: row -> parameter -> delta; those that are exactly zero are left out. Each expert is a row, under its
            name, unless a transform says otherwise.
        contents: row -> all that its deltas depend on, as plain data, where that is known: it names what is derived
            from them on disk.
        cache: directory of what is derived; it may be deleted at any time. None: temporary files.
    """

    base: Checkpoint
    experts: dict[str, Checkpoint]
    parameters: dict[str, tuple[int, ...]]
    deltas: Mapping[str, Mapping[str, Delta]] = field(repr=False)
    contents: Mapping[str, Any] = field(default_factory=dict, repr=False)
    cache: Path | None = None

    @property
    def rows(self) -> tuple[str, ...]:
        """Names of the rows, in the order of the coefficients and of all sums."""
        return tuple(self.deltas)

    @cached_property
    def zero(self) -> frozenset[tuple[str, str]]:
        """(row, parameter) whose delta is exactly zero, as where base or expert hold nothing."""
        pairs = ((row, name) for row in self.rows for name in self.parameters)
        return frozenset((row, name) for row, name in pairs if name not in self.deltas[row])

    def delta(self, row: str, parameter: str) -> Delta | None:
        """Return the delta of one parameter; None where it is zero."""
        return self.deltas[row].get(parameter)

    def dense(self, row: str, parameter: str) -> Tensor | None:
        """Return the same in float32 and of the parameter's shape, for reading only: memory-mapped, or computed by this
        call.
        """
        return None if (delta := self.delta(row, parameter)) is None else delta.dense().view(self.parameters[parameter])

    def added(self, row: str) -> Iterator[tuple[str, Tensor]]:
        """Yield θ₀ + τ by parameter, where τ is not zero: an expert as it came, to a rounding in float32."""
        for name in self.parameters:
            if (delta := self.dense(row, name)) is not None:
                yield name, self.base.tensor(name).float() + delta

    @property
    def nbytes(self) -> int:
        """Bytes of all deltas in the form in which they are kept."""
        return sum(delta.nbytes for held in self.deltas.values() for delta in held.values())


def task_vectors(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    parameters: Mapping[str, tuple[int, ...]],
    cache: Path,
    progress: Steps | None = None,
    store: str = FLOAT32,
) -> TaskVectors:
    """Reads the task vectors from the cache and computes those that it lacks, with one parameter in memory at a time.

    Args:
        base: θ₀.
        experts: θ_k by expert.
        parameters: name -> shape of the live model.
        cache: directory of the task vectors; it may be deleted at any time.
        progress: told what is done, in elements or bytes.
        store: which form they have (`packing.py`), of those that lose nothing: float32; `auto`, experts of 16 bits as
            they are, of half the bytes; any other one, all experts as they are.

    Raises:
        CheckpointError: a weight is not finite.
    """

    def one(name: str, expert: Checkpoint) -> Mapping[str, Delta]:
        common = [each for each in _common(base, expert, parameters) if each not in expert.factors]
        if not expert.adapted:
            return whole(name, expert, common)
        return AdapterDeltas(expert, shapes, whole(name, expert, common) if common else {})

    def whole(name: str, expert: Checkpoint, common: Sequence[str]) -> Mapping[str, Delta]:
        if store not in (AUTO, FLOAT32) or (store == AUTO and is_narrow(expert, common)):
            changed = find_changed(contents[name], base, expert, name, common, cache, progress)
            return ExpertDeltas(base, expert, common, changed)
        computed = partial(_subtract, base, expert, name, common, progress)
        return cached_rows({name: contents[name]}, shapes, computed, cache, progress)[name]

    shapes = {name: tuple(shape) for name, shape in parameters.items()}
    contents = {name: describe(base, expert, parameters) for name, expert in experts.items()}
    deltas = {name: one(name, expert) for name, expert in experts.items()}
    return TaskVectors(base, dict(experts), shapes, deltas, contents, cache)


def exact_deltas(base: Checkpoint, expert: Checkpoint, parameters: Iterable[str]) -> Mapping[str, Delta]:
    """Return the deltas of an expert by parameter, exact and without a cache: an expert as it is, or an adapter."""
    names = [*parameters]
    whole = ExpertDeltas(base, expert, [name for name in names if name not in expert.factors])
    return AdapterDeltas(expert, names, whole) if expert.adapted else whole


def describe(base: Checkpoint, expert: Checkpoint, parameters: Iterable[str]) -> list[Any]:
    """All that the task vector of an expert depends on, as plain data."""
    keys = [
        [parameter, base.keys[parameter], expert.keys[parameter]] for parameter in _common(base, expert, parameters)
    ]
    rows = {parameter: expert.rows[parameter].merged for parameter in parameters if parameter in expert.rows}
    cut = [*([["rows", rows]] if rows else []), *([["union", expert.union]] if expert.union else [])]
    return [FORMAT, base.sha256, expert.sha256, keys, *cut]


def check_family(
    base: Checkpoint,
    experts: Mapping[str, Checkpoint],
    parameters: Mapping[str, tuple[int, ...]],
    allowed: Collection[str] = (),
    buffers: str = BASE,
) -> list[str]:
    """Refuses what cannot be merged, before anything expensive starts (shapes were compared at opening).

    Args:
        base: θ₀.
        experts: θ_k by expert.
        parameters: name -> shape of what is merged.
        allowed: names and patterns of tensors that experts may lack and that may be left over (`model.allow_missing`).
        buffers: what a merge has of floating buffers (`model.buffers`).

    Returns:
        Warnings, each a sentence that begins with whom it concerns.

    Raises:
        CheckpointError: the base or an expert lacks parameters or holds unknown ones, or an expert was not tuned from
            the base.
    """
    check_base(base, allowed)
    warnings = [f"base {note}" for note in base.notes]
    for name, expert in experts.items():
        common = _common(base, expert, parameters)
        if not common:
            raise CheckpointError(
                f"expert {name} ({expert.path}) holds none of the live model's parameters; its tensors are"
                f" {listed(expert.extra)}. Its architecture is not the base's: take experts tuned from this base."
            )
        check_expert(f"expert {name}", expert, base, allowed)
        if not expert.adapted and (cosine := weight_cosine(base, expert, common)) < RELATED:
            raise CheckpointError(
                f"expert {name} ({expert.path}) was not tuned from base {base.path}: the cosine of their weights is"
                f" {cosine:.3f}, and fine-tuning leaves it near 1. A task vector is the difference to the base that an"
                " expert was tuned from: name that one."
            )
        warnings += [f"expert {name} {text}" for text in _differences(base, expert, common, buffers)]
    return warnings


def weight_cosine(base: Checkpoint, expert: Checkpoint, common: list[str]) -> float:
    """Cosine of the concatenated matrices of two checkpoints, in float64; 1 if they have none.

    Of a large tensor, evenly spaced rows stand for all of them, so that the answer takes seconds for any size of model.
    """
    dot = square = other = 0.0
    for name in common:
        a, b = base.tensor(name), expert.tensor(name)
        if a.dim() < 2:
            continue
        step = min(len(a), max(1, a.numel() // SAMPLE))
        a, b = a[::step].flatten().double(), b[::step].flatten().double()
        dot, square, other = dot + step * float(a @ b), square + step * float(a @ a), other + step * float(b @ b)
    return dot / math.sqrt(square * other) if square and other else float(square == other)


def _differences(base: Checkpoint, expert: Checkpoint, common: list[str], buffers: str) -> list[str]:
    """What a user should know about an expert beside its task vector."""
    texts = [*expert.notes, *row_notes(expert.rows)]
    if lacking := [name for name in expert.missing if name in base.keys]:
        texts.append(f"lacks {listed(lacking)}: the task vector is zero there")
    if lossy := [name for name in common if rounding(expert.dtype(name)) > rounding(base.dtype(name))]:
        theirs, ours = (dtype_name(one.dtype(lossy[0])) for one in (expert, base))
        texts.append(
            f"has {listed(lossy)} in {theirs} where the base has {ours}: the rounding is part of its task vector, and"
            " it may be as large as the tuning; take the expert in the base's dtype if there is one"
        )
    if aside := [name for name in base.missing if name in expert.keys]:
        texts.append(f"has {listed(aside)} beyond the base: kept aside, not merged")
    return texts + beside_parameters(base, expert, buffers)


def beside_parameters(base: Checkpoint, other: Checkpoint, buffers: str = BASE) -> list[str]:
    """In what the files of another model differ from the base's beside the parameters: heads, which stay the base's,
    and buffers, where these stay so too (`model.buffers`). Sentences that lack whom they are about.
    """
    ours, texts = {base.names[key]: base.tensors[key] for key in base.extra}, []
    beyond, changed = [], []
    for key in other.extra:
        if (before := ours.get(other.names[key])) is None:
            beyond += [key] if other.tensors[key].is_floating_point() else []
        elif before.is_floating_point() and not same(before, other.tensors[key]):
            changed += [key] if buffers == BASE or key not in other.buffers else []
    held = {other.names[key] for key in other.buffers}
    if not other.adapted and (lacking := [name for key in base.buffers if (name := base.names[key]) not in held]):
        texts.append(f"lacks {listed(lacking)}, no parameters of the live model: the base's stay")
    if beyond:
        texts.append(f"has {listed(beyond)} beyond the base: kept aside, not merged")
    if changed:
        hint = " unless you write model.buffers=average" if any(key in other.buffers for key in changed) else ""
        texts.append(
            f"differs from the base in {listed(changed)}, no parameters of the live model: the base's stay{hint}"
        )
    return texts


def unlike(base: Checkpoint, other: Checkpoint, buffers: str = BASE) -> str:
    """With which tensors that are not its own a model is scored here; nothing where all are, poolers aside.

    Args:
        base: θ₀, whose tensors stay where the other has none, and whose buffers always stay.
        other: an expert, or another model of the architecture.
        buffers: what a merge has of floating buffers; where these are not the base's, a model is scored with its own.
    """
    if other.adapted:
        return ""
    ours = {base.names[key]: base.tensors[key] for key in base.buffers}
    held = {other.names[key]: other.tensors[key] for key in other.buffers}
    taken = [name for name in other.missing if name in base.keys and not is_pooler(name)]
    own = [name for name in held if buffers != BASE and name in ours and held[name].is_floating_point()]
    names = [name for name in {**ours, **held} if name not in own]
    taken += [name for name in names if not (name in ours and name in held and same(ours[name], held[name]))]
    texts = [f"the base's {listed(taken)} in place of its own"] if taken else []
    return " and ".join([*texts, *([f"without its {listed(other.stray)}"] if other.stray else [])])


def rounding(dtype: torch.dtype) -> float:
    """The relative error of a dtype, or of float32 where that is larger: all arithmetic is in float32."""
    return max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)


def _common(base: Checkpoint, expert: Checkpoint, parameters: Iterable[str]) -> list[str]:
    """The parameters that both hold."""
    return [parameter for parameter in parameters if parameter in base.keys and parameter in expert.keys]


def _subtract(
    base: Checkpoint, expert: Checkpoint, name: str, parameters: Iterable[str], progress: Steps | None
) -> Computed:
    """Yield τ_k in float32, parameter by parameter, without those in which it is zero; each overwrites the last."""
    common = _common(base, expert, parameters)
    sizes = [base.tensor(parameter).numel() for parameter in common]
    # One block instead of a tensor for each parameter: those leave holes in the heap that glibc before 2.38 does not
    # use again (torch asks for aligned memory), which came to the size of an expert for every expert.
    block = torch.empty(max(sizes, default=0), dtype=torch.float32)
    done = 0
    for parameter, size in zip(common, sizes, strict=True):
        delta, before = block[:size], base.tensor(parameter)
        ExpertDelta(before.reshape(-1), expert.tensor(parameter).reshape(-1)).write(delta)
        largest = float(torch.linalg.vector_norm(delta, math.inf)) if size else 0.0
        refuse_non_finite(largest, before, parameter, name, base, expert)
        if largest > 0:
            yield parameter, {name: DenseDelta(delta)}
        done += size
        if progress:
            progress(f"task vector of {name}", done, sum(sizes))
