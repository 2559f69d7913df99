"""The merger's walk backward: its laws, and what it holds meanwhile and leaves behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from evomerge.common.errors import ConfigError
from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear, Ties
from evomerge.space.groups import make_groups
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.files import cached_rows
from evomerge.task_vectors.store import TaskVectors
from tests.kit.exact import EXPERTS, llama, tiny, vectors_of
from tests.kit.tiny import checkpoint

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])


@pytest.fixture
def small() -> tuple[Any, Merger, int]:
    model = tiny()
    vectors = vectors_of(model)
    groups = make_groups("tensor", vectors.parameters)
    merger = Merger(model, vectors, groups, Linear())
    merger.apply({"weight": np.full((len(groups), 3), 0.5)})
    return model, merger, len(groups)


def says(model: Any, scale: float = 1.0) -> Tensor:
    hidden = model.embed(torch.tensor([1, 2, 3]))
    for layer in model.layers:
        hidden = torch.tanh(layer(hidden))
    return scale * model.head(hidden).square().sum()


def is_clean(model: Any) -> bool:
    return not any(p.requires_grad or p.grad is not None or p._post_accumulate_grad_hooks for p in model.parameters())


def test_several_losses_accumulate(small) -> None:
    model, merger, _ = small
    one, two = (merger.gradient(says(model, scale) for _ in range(1))["weight"] for scale in (1.0, -3.0))
    both = merger.gradient(says(model, scale) for scale in (1.0, -3.0))["weight"]
    assert np.array_equal(both, one + two)
    assert is_clean(model)


@settings(max_examples=20, deadline=None)
@given(a=st.floats(-2, 2), b=st.floats(-2, 2))
def test_it_is_linear_in_the_loss(a: float, b: float) -> None:
    model = tiny(torch.float64)
    vectors = vectors_of(model)
    merger = Merger(model, vectors, make_groups("layer", vectors.parameters), Linear())

    def other() -> Tensor:
        return model.layers[0](model.embed.weight).sin().sum()

    def gradient(make: Callable[[], Tensor]) -> np.ndarray:
        return merger.gradient(make() for _ in range(1))["weight"]

    both = gradient(lambda: a * says(model) + b * other())
    np.testing.assert_allclose(both, a * gradient(lambda: says(model)) + b * gradient(other), rtol=1e-9, atol=1e-9)


@settings(max_examples=6, deadline=None)
@given(order=st.permutations(range(3)))
def test_experts_in_another_order(order: list[int]) -> None:
    """Each has its own products, to the bit where the candidate is the same: its sums are exact here."""
    values = np.random.default_rng(0).integers(0, 8, (4, 3)) / 8
    found = []
    for places in ([0, 1, 2], order):
        model = tiny()
        vectors = vectors_of(model)
        names = [EXPERTS[k] for k in places]
        vectors = replace(vectors, deltas={name: vectors.deltas[name] for name in names})
        groups = make_groups("layer", vectors.parameters)
        merger = Merger(model, vectors, groups, Linear())
        merger.apply({"weight": values[: len(groups), places]})
        found.append(merger.gradient(says(model) for _ in range(1))["weight"])
    assert np.array_equal(found[0][:, order], found[1])


class Broken(torch.autograd.Function):
    """A backward pass that fails on its way to the parameters before it."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> Tensor:
        raise RuntimeError("no way back")


@pytest.mark.parametrize("where", ["before", "backward", "between"])
def test_a_loss_that_fails_leaves_nothing_behind(small, where: str) -> None:
    model, merger, _ = small

    def losses() -> Iterator[Tensor]:
        if where == "before":
            raise RuntimeError("no way in")
        if where == "backward":
            hidden = torch.tanh(model.layers[1](Broken.apply(model.layers[0](model.embed.weight))))
            yield hidden.sum()
        yield says(model)
        raise RuntimeError("no way on")

    before = merger.gradient(says(model) for _ in range(1))["weight"]
    with pytest.raises(RuntimeError, match="no way"):
        merger.gradient(losses())
    assert is_clean(model)
    assert np.array_equal(merger.gradient(says(model) for _ in range(1))["weight"], before)
    merger.apply({"weight": np.zeros_like(before)})  # in-place writes are allowed again


def test_only_parameters_with_a_wanted_entry_take_part(small) -> None:
    model, merger, groups = small
    everything = merger.gradient(says(model) for _ in range(1))["weight"]
    names = [group.name for group in make_groups("tensor", {n: tuple(p.shape) for n, p in model.named_parameters()})]
    wanted = np.zeros((groups, 3), dtype=bool)
    wanted[names.index("layers.0.weight"), 1] = wanted[names.index("layers.1.bias")] = True
    seen: list[set[str]] = []

    def losses() -> Iterator[Tensor]:
        seen.append({name for name, p in model.named_parameters() if p.requires_grad})
        yield says(model)
        seen.append({name for name, p in model.named_parameters() if p.grad is not None})

    found = merger.gradient(losses(), wanted)["weight"]
    assert seen == [{"layers.0.weight", "layers.1.bias"}, set()]
    assert np.array_equal(found, np.where(wanted, everything, 0.0))
    assert is_clean(model)


def test_one_gradient_at_a_time() -> None:
    model = llama(dtype=torch.float32)
    vectors = vectors_of(model)
    merger = Merger(model, vectors, make_groups("tensor", vectors.parameters), Linear())
    held: list[int] = []

    def count(parameter: Tensor) -> None:
        held.append(sum(other.grad is not None for other in model.parameters()))

    model.requires_grad_(True)  # so that these hooks come before the merger's
    hooks = [parameter.register_post_accumulate_grad_hook(count) for parameter in model.parameters()]
    merger.gradient(model(IDS + i).logits.logsumexp(-1).sum() for i in range(2))
    for hook in hooks:
        hook.remove()
    assert held == [1] * 2 * len(vectors.parameters)
    assert is_clean(model)


class Given(torch.autograd.Function):
    """A loss whose gradient is this very tensor, wherever it lies."""

    @staticmethod
    def forward(ctx, parameter: Tensor, gradient: Tensor) -> Tensor:
        ctx.gradient = gradient
        return parameter.sum()

    @staticmethod
    def backward(ctx, *gradients: Tensor) -> tuple[Tensor, None]:
        return ctx.gradient, None


def shifted(tensor: Tensor, by: int) -> Tensor:
    """The same values at an address that is so many elements further."""
    place = torch.empty(tensor.numel() + 64)
    start = (-place.data_ptr() // 4) % 16 + by
    return place[start : start + tensor.numel()].copy_(tensor.flatten()).view(tensor.shape)


def test_inner_products_do_not_depend_on_addresses() -> None:
    generator = torch.Generator().manual_seed(0)
    base, delta, gradient = (torch.randn(1003, generator=generator) for _ in range(3))
    found = set()
    for by in range(16):
        for other in (0, 3, 8):
            model = nn.ParameterDict({"w": nn.Parameter(shifted(base, other), requires_grad=False)})
            vectors = TaskVectors(
                checkpoint({"w": base}),
                {"e": checkpoint({})},
                {"w": (1003,)},
                {"e": flattened({"w": shifted(delta, by)})},
            )
            merger = Merger(model, vectors, make_groups("chunk:3", {"w": (1003,)}), Linear())
            place = shifted(gradient, other)
            losses = (Given.apply(model["w"], place) for _ in range(1))
            found.add(tuple(merger.gradient(losses)["weight"].ravel()))  # pyright: ignore[reportArgumentType]
    assert len(found) == 1
    chunks = (gradient.double() * delta.double()).tensor_split(3)
    assert next(iter(found)) == pytest.approx([float(chunk.sum()) for chunk in chunks], rel=1e-4)


def test_deltas_read_anew_give_the_same_bits(tmp_path: Path) -> None:
    """Files are mapped elsewhere each time, and what is allocated in between moves all else."""
    model = llama(dtype=torch.float32)
    vectors = vectors_of(model, (("b", "model.norm.weight"),))
    found = set()
    for shift in range(4):
        kept = [torch.empty(100 + 33 * i * shift) for i in range(20)]
        every = (
            (each, {name: held[each] for name, held in vectors.deltas.items() if each in held})
            for each in vectors.parameters
        )
        deltas = cached_rows(
            {name: name for name in vectors.rows}, vectors.parameters, lambda every=every: every, tmp_path
        )
        for granularity in ("tensor", "chunk:3"):
            fresh = llama(dtype=torch.float32)
            groups = make_groups(granularity, vectors.parameters)
            merger = Merger(fresh, replace(vectors, deltas=deltas), groups, Linear())
            merger.apply({"weight": np.full((len(groups), 3), 0.5)})
            gradient = merger.gradient(fresh(IDS).logits.logsumexp(-1).sum() for _ in range(1))["weight"]
            found.add((granularity, gradient.tobytes()))
        del kept
    assert len(found) == 2


def test_a_gradient_changes_no_candidate(small) -> None:
    model, merger, groups = small
    mixed = {"weight": np.random.default_rng(0).uniform(-1, 2, (groups, 3))}
    states = []
    for _ in range(2):
        merger.apply(mixed)
        states.append({name: parameter.clone() for name, parameter in model.named_parameters()})
        merger.gradient(says(model) for _ in range(1))
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_some_experts_after_all_of_them(small) -> None:
    model, merger, groups = small
    whole = merger.gradient(says(model) for _ in range(1))["weight"]
    wanted = np.zeros((groups, 3), dtype=bool)
    wanted[:, 1] = True
    some = merger.gradient((says(model) for _ in range(1)), wanted)["weight"]
    assert np.array_equal(some, np.where(wanted, whole, 0))
    assert (some[:, 1] != 0).any()


def test_a_loss_that_depends_on_nothing_wanted(small) -> None:
    model, merger, groups = small
    wanted = np.zeros((groups, 3), dtype=bool)
    wanted[0] = True
    with pytest.raises(ConfigError, match="its gradient is 0 everywhere"):
        merger.gradient((model.layers[0].bias.sum() for _ in range(1)), wanted)
    assert is_clean(model)
    both = merger.gradient((make() for make in (lambda: torch.zeros(()), lambda: says(model))), wanted)["weight"]
    assert np.array_equal(both, merger.gradient((says(model) for _ in range(1)), wanted)["weight"])


def test_a_method_that_elects_anew_is_refused() -> None:
    model = tiny()
    vectors = vectors_of(model)
    merger = Merger(model, vectors, make_groups("layer", vectors.parameters), Ties())
    with pytest.raises(ConfigError, match=r"ties is no weighted sum.*method=ties_frozen"):
        merger.gradient([])
