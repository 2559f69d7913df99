"""A live model in a wider dtype than its checkpoint's: it holds what a model in the checkpoint's dtype holds."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.merging.merger import Merger
from evomerge.merging.method import Method
from evomerge.merging.methods import DareTies, Linear, Ties
from evomerge.space.groups import make_groups
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors
from tests.kit.tiny import Tiny, checkpoint, state, weights

METHODS: list[Method] = [Linear(), Ties(), DareTies()]
NARROW = (torch.bfloat16, torch.float16)
KEPT = "layers.0.weight"
"""Which the model has in float32, whatever the others are."""


def family(dtype: torch.dtype) -> tuple[Any, TaskVectors]:
    """A model in a dtype, and task vectors from a base whose files are in float32."""
    exact = state(Tiny())
    model = Tiny(dtype)
    model.get_parameter(KEPT).data = exact[KEPT].clone()
    generator = torch.Generator().manual_seed(1)
    deltas = {e: {name: torch.randn(p.shape, generator=generator) / 9 for name, p in exact.items()} for e in "abc"}
    shapes = {name: tuple(p.shape) for name, p in exact.items()}
    rows = {e: flattened(held) for e, held in deltas.items()}
    return model, TaskVectors(checkpoint(exact), {e: checkpoint({}) for e in "abc"}, shapes, rows)


def mergers(dtype: torch.dtype, method: Method) -> tuple[tuple[Any, Merger], tuple[Any, Merger], int]:
    """A model in the checkpoint's dtype and one in float32 that holds the same, each with its merger."""
    narrow, vectors = family(dtype)
    wide, _ = family(dtype)
    dtypes = {name: p.dtype for name, p in wide.named_parameters() if p.dtype != torch.float32}
    wide.float()
    groups = make_groups("chunk:3", vectors.parameters)
    return (
        (narrow, Merger(narrow, vectors, groups, method)),
        (wide, Merger(wide, vectors, groups, method, rounded=dtypes)),
        len(groups),
    )


def equal(narrow: Any, wide: Any) -> bool:
    one, other = state(narrow), state(wide)
    assert all(tensor.dtype == torch.float32 for tensor in other.values())
    return all(torch.equal(one[name].float(), tensor) for name, tensor in other.items())


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_a_candidate_is_rounded_as_it_is_written(method: Method, dtype: torch.dtype) -> None:
    (narrow, one), (wide, other), groups = mergers(dtype, method)
    for values in ((0.3, 0.7, 1.1), (0.0, 0.9, -0.2)):
        one.apply(weights(groups, *values))
        other.apply(weights(groups, *values))
        assert equal(narrow, wide)
    assert torch.equal(state(narrow)[KEPT], state(wide)[KEPT])  # not rounded: the model has it in float32


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_chunks_are_rounded_too(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evomerge.merging.builder.CHUNK", 3)
    (narrow, one), (wide, other), groups = mergers(dtype, Linear())
    one.apply(weights(groups, 0.3, 0.7, 1.1))
    other.apply(weights(groups, 0.3, 0.7, 1.1))
    assert equal(narrow, wide)


@pytest.mark.parametrize("dtype", NARROW, ids=str)
def test_the_base_and_other_models_are_rounded_alike(dtype: torch.dtype) -> None:
    (narrow, one), (wide, other), groups = mergers(dtype, Linear())
    before = state(wide)
    loaded: list[tuple[str, Tensor]] = [(name, tensor.float() * 1.37) for name, tensor in before.items()]
    for merger in (one, other):
        merger.load(loaded)
    assert equal(narrow, wide)
    for merger in (one, other):
        merger.restore()
    assert equal(narrow, wide)
    assert all(torch.equal(before[name], p) for name, p in state(wide).items())
    other.load(loaded)
    other.apply(weights(groups, 0.0, 0.0, 0.0))  # which puts the base back first
    assert all(torch.equal(before[name], p) for name, p in state(wide).items())


def test_a_model_that_does_not_hold_the_rounded_base_is_refused() -> None:
    model, vectors = family(torch.float32)  # as the files have it, and so not rounded
    dtypes = {name: torch.bfloat16 for name, _ in model.named_parameters()}
    with pytest.raises(CheckpointError, match="is not the tensor that the base's files hold"):
        Merger(model, vectors, make_groups("model", vectors.parameters), Linear(), rounded=dtypes)
