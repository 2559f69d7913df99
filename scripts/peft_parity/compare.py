"""What PEFT and evomerge make of one adapter, element by element.

In: the directories of a base and an adapter. Out: in float32 the largest relative difference of a tensor; in 16 bits
how many elements differ, by how many units, and which of the two is nearer to the fold in float64, which is PEFT's as
well. A unit is that of the largest of the base, the change and their sum: a change that nearly cancels its base has
lost its last bits before they are added.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import load_skeleton

CAUSAL = "AutoModelForCausalLM"
SOME = 1 << 22
"""Elements that are compared at a time."""


@dataclass
class Narrow:
    """What a comparison in 16 bits found.

    Attributes:
        elements: how many there are in the tensors that the adapter changes.
        differ: how many of them are not the same number.
        units: the largest difference.
        ours: how many of ours are nearer to the fold in float64 than PEFT's.
        theirs: how many of PEFT's are nearer than ours.
    """

    elements: int = 0
    differ: int = 0
    units: float = 0.0
    ours: int = 0
    theirs: int = 0


def folded(base: Path, adapter: Path, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return the parameters of a base with an adapter folded in, as PEFT does it in a dtype."""
    from peft import PeftModel

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        warnings.simplefilter("ignore")
        loaded = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
        model: Any = PeftModel.from_pretrained(loaded, str(adapter), autocast_adapter_dtype=False)
        model = model.to(dtype).merge_and_unload()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def opened(base: Path, adapter: Path) -> tuple[Checkpoint, Checkpoint]:
    """Return a base, and an adapter of it as evomerge opens it."""
    live = load_skeleton(base, CAUSAL)
    ours = live.open(base)
    return ours, live.open(adapter, base=ours)


def compare(base: Path, adapter: Path) -> tuple[int, float, list[str]]:
    """Compare two folds in float32.

    Returns:
        How many tensors an adapter changes; the largest difference of one, as a share of its norm; and what must not
        be: tensors that one of the two changes alone.
    """
    theirs, (ours, expert) = folded(base, adapter, torch.float32), opened(base, adapter)
    changed = {name for name, tensor in theirs.items() if not torch.equal(tensor, ours.tensor(name))}
    faults = [f"{name} is changed by one of the two alone" for name in sorted(changed ^ {*expert.keys})]
    both = changed & {*expert.keys}
    return len(changed), max((_apart(expert.tensor(name), theirs[name]) for name in both), default=0.0), faults


def distances(base: Path, adapter: Path) -> tuple[float, float]:
    """Return how far our fold in float32 is from that in float64, and how far PEFT's is: the largest of a tensor."""
    theirs, exact = (folded(base, adapter, each) for each in (torch.float32, torch.float64))
    expert = opened(base, adapter)[1]
    ours = max(_apart(expert.tensor(name), exact[name]) for name in expert.keys)
    return ours, max(_apart(theirs[name], exact[name]) for name in expert.keys)


def _apart(one: Tensor, other: Tensor) -> float:
    return float((one.double() - other.double()).norm() / other.double().norm())


def compare_narrow(base: Path, adapter: Path, dtype: torch.dtype) -> Narrow:
    """Compare two folds in 16 bits.

    Args:
        base: of this dtype.
        adapter: of this dtype.
        dtype: of 16 bits.
    """
    theirs, exact = (folded(base, adapter, each) for each in (dtype, torch.float64))
    (ours, expert), found = opened(base, adapter), Narrow()
    for name in expert.keys:
        tensors = ours.tensor(name), expert.tensor(name).to(dtype), theirs[name], exact[name]
        for before, mine, other, right in _some(*tensors):
            largest = torch.stack([before, right, right - before]).abs().amax(0)
            unit = torch.ldexp(torch.ones_like(largest), largest.frexp().exponent - 1) * torch.finfo(dtype).eps
            errors = (mine - right).abs(), (other - right).abs()
            found.elements += len(right)
            found.differ += int((mine != other).sum())
            found.units = max(found.units, float(((mine - other).abs() / unit).max()))
            found.ours += int((errors[0] < errors[1]).sum())
            found.theirs += int((errors[1] < errors[0]).sum())
    return found


def _some(*tensors: Tensor) -> Iterator[list[Tensor]]:
    """Yield the same run of elements of each, float64 (n,)."""
    for run in zip(*(one.reshape(-1).split(SOME) for one in tensors), strict=True):
        yield [each.double() for each in run]
