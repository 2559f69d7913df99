"""The guard: whoever scores the live model must leave it as it was, or the next candidate is not what it seems.

In: the live model, and whatever runs on it: a fitness, a loss, a function of a user's. Out: the same model afterwards.
Before a call the guard notes the version counters of all parameters and buffers and a sample of their elements; after
it, whatever way it ended, it looks for changes: of values, by counters and sample; of memory, dtype, device and shape;
of modules, methods, training mode and hooks (`anatomy.py`). What was scored on a changed model is no score: it becomes
an error that names the change, the model is put back, and the next candidate is scored as if nothing had happened.

A change of few elements that goes around the counters (`parameter.data[0] = 1`, NumPy views) and misses the sample is
not found; a large one is. The check takes about a millisecond for a hundred parameters, whatever their size.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from evomerge.common.errors import LiveModelError
from evomerge.common.limits import Shielded
from evomerge.models.anatomy import Anatomy, Finding, Hooks

logger = logging.getLogger(__name__)

SAMPLE = 64
"""How many elements of each tensor are looked at, at least."""
KINDS = 3
"""How many kinds of change an error names."""
PROCESS: tuple[tuple[Callable[[], Any], Callable[[Any], Any]], ...] = (
    (torch.is_grad_enabled, torch.set_grad_enabled),
    (torch.get_default_dtype, torch.set_default_dtype),
    (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    (torch.are_deterministic_algorithms_enabled, torch.use_deterministic_algorithms),
    (torch.get_num_threads, torch.set_num_threads),
    (lambda: torch.is_autocast_enabled("cpu"), lambda on: torch.set_autocast_enabled("cpu", on)),
    (lambda: torch.is_autocast_enabled("cuda"), lambda on: torch.set_autocast_enabled("cuda", on)),
)
"""Settings of torch that every model computes by: how they are read, and put back."""


class ModelChanged(RuntimeError):
    """The live model was changed while it was scored."""


@dataclass(frozen=True)
class _Seal:
    """The model at the beginning of a call: versions and samples of its tensors, its hooks, which parameters may have
    gradients, and the settings of the process.
    """

    versions: list[int]
    samples: list[Tensor]
    hooks: Hooks
    learning: list[bool]
    process: list[Any]


class Guard(Shielded):
    """Watches the live model while it is scored: `with guard: ...`. No time limit interrupts it at its own work.

    Args:
        model: the live model, as it was loaded.
        rewrite: writes the base into the parameters of these names. None where nothing can: then a change of values
            cannot be undone.
        names: these parameters. The guard keeps copies of the others, and of all buffers.
    """

    def __init__(
        self, model: nn.Module, rewrite: Callable[[], None] | None = None, names: Collection[str] = ()
    ) -> None:
        self._anatomy = Anatomy(model)
        self._rewrite = rewrite
        own = [] if rewrite is None else [kept for kept in self._anatomy.parameters if kept.name not in names]
        self._copies = [(kept, kept.memory.clone()) for kept in (*own, *self._anatomy.buffers)]
        written = {id(kept) for kept in self._anatomy.written}
        self._own = [(kept, values) for kept, values in self._copies if id(kept) in written]
        self._tensors = [
            *self._anatomy.parameters,
            *(kept for kept in self._anatomy.buffers if id(kept) not in written),
        ]
        self._views: dict[Any, dict[str, Tensor]] = {}  # what can be looked at together: of one dtype, on one device
        for kept in self._tensors:
            if (view := _sample(kept.memory)) is not None:
                self._views.setdefault((view.dtype, view.device), {})[kept.name] = view
        self._seal: _Seal | None = None
        self._lost: str | None = None

    def __enter__(self) -> Guard:
        """Take note of the model.

        Raises:
            LiveModelError: it could not be put back earlier.
        """
        if self._lost is not None:
            raise LiveModelError(self._lost)
        found: list[Finding] = []
        try:
            if found := self._anatomy.findings():  # values are the candidate's: they were written into our own memory
                self._anatomy.put_back(self._anatomy.hooks())
                logger.warning("The model was changed while nothing scored it, and was put back: %s", _told(found))
            self._seal = _Seal(
                [kept.tensor._version for kept in self._tensors],
                self._samples(),
                self._anatomy.hooks(),
                [kept.tensor.requires_grad for kept in self._anatomy.parameters],
                [get() for get, _ in PROCESS],
            )
        except Exception as failure:  # of whatever kind: a device may be lost
            raise self._lose(found, failure) from failure
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Put the model back.

        Raises:
            ModelChanged: it was changed, and no other error says that the call failed.
            LiveModelError: it cannot be put back.
        """
        seal, self._seal = self._seal, None
        if seal is None or isinstance(error, KeyboardInterrupt):
            return
        found: list[Finding] = []
        try:
            found = self._findings(seal)
            if found:
                self._put_back(seal, found)
            self._put_settings_back(seal)
        except Exception as failure:
            raise self._lose(found, failure) from failure
        if found and error is None:
            raise ModelChanged(_changed(found))

    def check(self) -> None:
        """Look at the model in the middle of a call, as between two tasks.

        Raises:
            ModelChanged: it was changed.
        """
        if self._seal is not None and (found := self._findings(self._seal)):
            raise ModelChanged(_changed(found))

    def _lose(self, found: list[Finding], failure: Exception) -> LiveModelError:
        """Return the error that says why nothing more can be scored."""
        what = f"was changed while it was scored ({_told(found)})" if found else "was changed while it was scored"
        self._lost = (
            f"The live model {what}, and evomerge cannot put it back ({type(failure).__name__}: "
            f"{(str(failure) or 'no message').splitlines()[0]}), so no later score could be trusted. The trial log "
            f"is whole. Let the fitness work on a copy of the model (copy.deepcopy(model)), and search again."
        )
        return LiveModelError(self._lost)

    def _findings(self, seal: _Seal) -> list[Finding]:
        found = self._anatomy.findings() + self._anatomy.hook_findings(seal.hooks)
        return found + [("values changed", name) for name in self._written(seal)]

    def _written(self, seal: _Seal) -> list[str]:
        """Return the tensors that were written to."""
        zipped = zip(self._tensors, seal.versions, strict=True)
        names = [kept.name for kept, version in zipped if kept.tensor._version != version]
        for views, before, now in zip(self._views.values(), seal.samples, self._samples(), strict=True):
            if not torch.equal(before, now):
                sizes = [view.nbytes for view in views.values()]
                pairs = zip(before.split(sizes), now.split(sizes), strict=True)
                names += [name for name, (one, other) in zip(views, pairs, strict=True) if not torch.equal(one, other)]
        return list(dict.fromkeys(names))

    def _samples(self) -> list[Tensor]:
        """Return copies of samples of all tensors, as bytes: NaN equals itself."""
        if gone := [
            kept.name for kept in (*self._tensors, *self._anatomy.written) if kept.gone
        ]:  # to read there would end the process
            raise RuntimeError(f"the memory of {gone[0]} was given away")
        return [torch.cat(list(views.values())).view(torch.uint8) for views in self._views.values()]

    @torch.no_grad()
    def _put_back(self, seal: _Seal, found: list[Finding]) -> None:
        written = self._written(seal)
        self._anatomy.put_back(seal.hooks)
        if left := self._anatomy.findings():
            raise RuntimeError(f"it still differs: {_told(left)}")
        for kept, values in self._copies:
            if not torch.equal(kept.memory, values):  # one that was expanded cannot be written to
                kept.memory.copy_(values)
        if self._rewrite is not None:
            self._rewrite()
        elif written:
            raise RuntimeError("the values of its parameters are kept nowhere else")

    def _put_settings_back(self, seal: _Seal) -> None:
        for kept, values in self._own:
            kept.memory.copy_(values)
        for kept, learning in zip(self._anatomy.parameters, seal.learning, strict=True):
            parameter = kept.tensor
            if parameter.requires_grad != learning:
                parameter.requires_grad_(learning)
            if parameter.grad is not None:
                parameter.grad = None
            for hooks in (parameter._backward_hooks, parameter._post_accumulate_grad_hooks):
                if hooks:
                    hooks.clear()
        self._anatomy.put_settings_back()
        for (get, put), value in zip(PROCESS, seal.process, strict=True):
            if get() != value:
                put(value)


def _sample(memory: Tensor) -> Tensor | None:
    """Return a view of elements at equal distances in memory; None where there are gaps or overlaps."""
    order = sorted(range(memory.dim()), key=lambda axis: memory.stride(axis), reverse=True)
    dense = memory.permute(order)
    return dense.view(-1)[:: max(1, memory.numel() // SAMPLE)] if dense.is_contiguous() else None


def _told(found: list[Finding]) -> str:
    """Return findings as a text: each kind, with the first name that it touches."""
    kinds: dict[str, list[str]] = {}
    for kind, name in found:
        kinds.setdefault(kind, []).append(name)
    texts = [
        f"{kind}: {names[0]}{f' and {len(names) - 1} more' if len(names) > 1 else ''}" for kind, names in kinds.items()
    ]
    return "; ".join(texts[:KINDS]) + ("; and more" if len(texts) > KINDS else "")


def _changed(found: list[Finding]) -> str:
    return (
        f"the model was changed while it was scored ({_told(found)}). evomerge has put it back; change a copy "
        f"(copy.deepcopy(model)), or undo each change"
    )
