"""The merger's laws, on real pico models and on small ones with tied, frozen and low-precision parameters."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError
from evomerge.merging.merger import Merger
from evomerge.merging.method import Method
from evomerge.merging.methods import DareTies, Linear, Ties
from evomerge.space.groups import make_groups
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors
from tests.kit.tiny import Tiny, checkpoint, state, weights


def vectors_of(model: nn.Module, experts: int = 3, zero: tuple[str, ...] = ()) -> TaskVectors:
    base = {name: parameter.clone() for name, parameter in model.named_parameters()}
    generator = torch.Generator().manual_seed(1)
    names = [f"e{k}" for k in range(experts)]
    deltas = {
        expert: {name: 0.1 * torch.randn(p.shape, generator=generator) for name, p in base.items() if name not in zero}
        for expert in names
    }
    shapes = {name: tuple(p.shape) for name, p in base.items()}
    rows = {name: flattened(held) for name, held in deltas.items()}
    return TaskVectors(checkpoint(base), {name: checkpoint({}) for name in names}, shapes, rows)


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


METHODS: list[Method] = [Linear(), Ties(), DareTies()]


@pytest.mark.parametrize("method", METHODS, ids=lambda m: m.name)
@pytest.mark.parametrize("granularity", ["model", "blocks:2", "layer", "tensor", "chunk:3", "line"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_restore_is_bitwise_and_zero_is_the_base(method: Method, granularity: str, dtype: torch.dtype) -> None:
    model = Tiny(dtype)
    vectors = vectors_of(model)
    groups = make_groups(granularity, vectors.parameters)
    merger, before = Merger(model, vectors, groups, method), state(model)
    merger.apply(weights(len(groups), 0.3, 0.7, 1.1))
    assert not same(before, state(model))
    merger.restore()
    assert same(before, state(model))
    merger.apply(weights(len(groups), 0.0, 0.0, 0.0))
    assert same(before, state(model))


@pytest.mark.parametrize("granularity", ["model", "layer", "tensor", "chunk:3"])
def test_linear_is_the_sum_of_the_formula(granularity: str) -> None:
    model = Tiny()
    vectors = vectors_of(model)
    groups = make_groups(granularity, vectors.parameters)
    coefficients = np.random.default_rng(0).uniform(0, 1, (len(groups), 3))
    Merger(model, vectors, groups, Linear()).apply({"weight": coefficients})
    for g, group in enumerate(groups):
        for span in group.spans:
            theta = vectors.base.tensor(span.parameter).flatten()[span.start : span.stop].double()
            for k, row in enumerate(vectors.rows):
                delta = vectors.deltas[row][span.parameter][span.start : span.stop]
                theta = theta + coefficients[g, k] * delta.dense().double()
            torch.testing.assert_close(
                state(model)[span.parameter].flatten()[span.start : span.stop].double(), theta, atol=1e-6, rtol=0
            )


@settings(max_examples=25, deadline=None)
@given(a=st.lists(st.floats(-1, 1), min_size=3, max_size=3), b=st.lists(st.floats(-1, 1), min_size=3, max_size=3))
def test_linearity(a: list[float], b: list[float]) -> None:
    model = Tiny()
    vectors = vectors_of(model)
    groups = make_groups("layer", vectors.parameters)
    merger, zero = Merger(model, vectors, groups, Linear()), state(model)

    def at(values: list[float]) -> dict[str, Tensor]:
        merger.apply(weights(len(groups), *values))
        return state(model)

    one, two, both = at(a), at(b), at([x + y for x, y in zip(a, b, strict=True)])
    for name in zero:
        torch.testing.assert_close(
            both[name] - one[name] - two[name] + zero[name], torch.zeros_like(zero[name]), atol=2e-6, rtol=0
        )


def test_five_hundred_candidates_leave_no_trace() -> None:
    """Every candidate is rebuilt from the base: the last one is what a fresh merger builds, also in bfloat16."""
    model, fresh = Tiny(torch.bfloat16), Tiny(torch.bfloat16)
    vectors = vectors_of(model)
    groups = make_groups("layer", vectors.parameters)
    merger = Merger(model, vectors, groups, Linear())
    rng = np.random.default_rng(0)
    for _ in range(500):
        last = {"weight": rng.uniform(0, 1, (len(groups), 3))}
        merger.apply(last)
    Merger(fresh, vectors, groups, Linear()).apply(last)
    assert same(state(model), state(fresh))


def test_bfloat16_is_accumulated_in_float32() -> None:
    """1 + 4/512 is lost when it is added in bfloat16 step by step."""
    model = nn.ParameterDict({"p": nn.Parameter(torch.ones(1, dtype=torch.bfloat16), requires_grad=False)})
    vectors = TaskVectors(
        checkpoint({"p": torch.ones(1, dtype=torch.bfloat16)}),
        {f"e{k}": checkpoint({}) for k in range(4)},
        {"p": (1,)},
        {f"e{k}": flattened({"p": torch.full((1,), 1 / 512)}) for k in range(4)},
    )
    Merger(model, vectors, make_groups("model", {"p": (1,)}), Linear()).apply(weights(1, 1.0, 1.0, 1.0, 1.0))
    assert float(model["p"]) == 1.0078125


def test_tied_parameters_are_merged_once() -> None:
    model = Tiny()
    vectors = vectors_of(model)
    groups = make_groups("layer", vectors.parameters)
    before = model.embed.weight.clone()
    Merger(model, vectors, groups, Linear()).apply(weights(len(groups), 1.0, 0.0, 0.0))
    assert model.head.weight is model.embed.weight
    assert torch.equal(model.head.weight, before + vectors.dense("e0", "embed.weight"))


def test_what_no_expert_changed_is_never_touched() -> None:
    model = Tiny()
    vectors = vectors_of(model, zero=("embed.weight",))
    groups = make_groups("layer", vectors.parameters)
    merger = Merger(model, vectors, groups, Linear())
    model.embed.weight.data.fill_(7.0)  # whatever happens to it outside
    merger.apply(weights(len(groups), 1.0, 1.0, 1.0))
    merger.restore()
    assert bool((model.embed.weight == 7.0).all())


def test_a_model_that_is_not_its_files_is_refused() -> None:
    model = Tiny()
    vectors = vectors_of(model)
    model.layers[0].bias.data += 1e-3
    with pytest.raises(CheckpointError, match=r"layers\.0\.bias"):
        Merger(model, vectors, make_groups("layer", vectors.parameters), Linear())


@pytest.fixture
def restored(problem) -> Iterator:
    yield problem
    problem.merger.restore()


def test_one_hot_is_the_expert(restored) -> None:
    """On the real pico experts: weight 1 for one expert is that expert within one rounding."""
    live = dict(restored.live.model.named_parameters())
    for k, expert in enumerate(restored.space.rows):
        restored.merger.apply({"weight": np.eye(3)[k][None].repeat(len(restored.space.groups), 0)})
        for name in restored.vectors.parameters:
            torch.testing.assert_close(
                live[name].detach(), restored.vectors.experts[expert].tensor(name), rtol=1.2e-7, atol=1e-8
            )
