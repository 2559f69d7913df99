"""Other models in the place of a candidate: whatever is written into the live model is undone by the merger."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear
from evomerge.space.groups import make_groups
from evomerge.task_vectors.store import TaskVectors
from tests.kit.exact import EXPERTS, tiny, vectors_of
from tests.kit.tiny import state, weights

UNTOUCHED = "layers.0.bias"
"""In which all experts are the base, so that candidates never write there."""


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=str)
def parts(request) -> tuple[torch.nn.Module, TaskVectors, Merger, int]:
    model = tiny(request.param)
    vectors = vectors_of(model, tuple((expert, UNTOUCHED) for expert in EXPERTS))
    groups = make_groups("layer", vectors.parameters)
    return model, vectors, Merger(model, vectors, groups, Linear()), len(groups)


def other(vectors: TaskVectors, names: list[str]) -> list[tuple[str, Tensor]]:
    return [(name, torch.full(vectors.parameters[name], 7.0)) for name in names]


def equal(one: dict[str, Tensor], two: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], tensor) for name, tensor in two.items())


def test_restore_undoes_what_was_loaded(parts) -> None:
    model, vectors, merger, _ = parts
    before = state(model)
    merger.load(other(vectors, list(vectors.parameters)))
    assert all(bool((parameter == 7).all()) for parameter in state(model).values())
    merger.restore()
    assert equal(state(model), before)


def test_a_candidate_does_not_see_what_was_loaded(parts) -> None:
    model, vectors, merger, groups = parts
    merger.apply(weights(groups, 0.5, 0.25, -0.5))
    expected = state(model)
    merger.load(other(vectors, [UNTOUCHED, "layers.1.weight"]))
    merger.apply(weights(groups, 0.5, 0.25, -0.5))
    assert equal(state(model), expected)


def test_where_another_model_has_nothing_the_base_stands(parts) -> None:
    model, vectors, merger, groups = parts
    base = state(model)
    merger.apply(weights(groups, 1.0, 1.0, 1.0))
    merger.load(other(vectors, ["layers.1.weight"]))
    found = state(model)
    assert bool((found.pop("layers.1.weight") == 7).all())
    assert equal(found, {name: tensor for name, tensor in base.items() if name in found})
    merger.load(other(vectors, [UNTOUCHED]))  # the next one does not see the one before either
    assert equal(state(model) | {UNTOUCHED: base[UNTOUCHED]}, base)
    assert bool((state(model)[UNTOUCHED] == 7).all())


def test_a_load_that_fails_is_undone_as_well(parts) -> None:
    model, vectors, merger, _ = parts
    before = state(model)

    def broken() -> Iterator[tuple[str, Tensor]]:
        yield from other(vectors, [UNTOUCHED])
        raise RuntimeError("a file is damaged")

    with pytest.raises(RuntimeError, match="damaged"):
        merger.load(broken())
    assert not equal(state(model), before)
    merger.restore()
    assert equal(state(model), before)


def test_an_expert_as_it_came(parts) -> None:
    model, vectors, merger, groups = parts
    merger.load(vectors.added("b"))
    loaded = state(model)
    merger.apply(weights(groups, 0.0, 1.0, 0.0))
    assert equal(state(model), loaded)
