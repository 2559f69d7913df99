"""The merger's gradient against autograd through the merge itself, for every granularity."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

from evomerge.merging.merger import Merger
from evomerge.merging.methods import WEIGHT, Linear
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.groups import GRANULARITIES, make_groups
from evomerge.task_vectors.dense import flattened
from evomerge.task_vectors.store import TaskVectors
from evomerge.transforms.ties import TrimElect
from tests.kit.exact import EXPERTS, llama, vectors_of
from tests.kit.tiny import checkpoint

IDS = torch.tensor([[3, 1, 4, 1, 5], [2, 6, 5, 3, 5]])
SPACES = [name.replace(":n", ":2") for name in GRANULARITIES]
Forward = Callable[[Tensor], Tensor]


def surprise(forward: Forward) -> Iterator[Tensor]:
    """Two tasks: the next token of two texts, and the entropy of what is said of others."""
    yield nn.functional.cross_entropy(forward(IDS)[:, :-1].flatten(0, 1), IDS[:, 1:].flatten())
    log_p = forward(IDS.flip(0) + 7).log_softmax(-1)
    yield -0.3 * (log_p.exp() * log_p).sum(-1).mean()


def textbook(model: nn.Module, vectors: TaskVectors, space: CoefficientSpace, x: np.ndarray) -> np.ndarray:
    """The gradient with respect to the point, (dim,), by a float64 graph through θ₀ + Σ λ τ."""
    point = torch.tensor(x, dtype=torch.float64, requires_grad=True)
    matrix, offset = (torch.tensor(a) for a in (space.matrices["weight"].toarray(), space.offsets["weight"]))
    weights = (matrix @ point + offset).view(len(space.groups), len(EXPERTS))
    theta = {name: vectors.base.tensor(name).double().flatten() for name in vectors.parameters}
    for g, group in enumerate(space.groups):
        for span in group.spans:
            for k, expert in enumerate(EXPERTS):
                if (delta := vectors.dense(expert, span.parameter)) is not None:
                    part = torch.zeros_like(theta[span.parameter])
                    part[span.start : span.stop] = delta.double().flatten()[span.start : span.stop]
                    theta[span.parameter] = theta[span.parameter] + weights[g, k] * part
    shaped = {name: flat.view(vectors.parameters[name]) for name, flat in theta.items()}
    total = sum(surprise(lambda ids: functional_call(model, shaped, (ids,)).logits))
    assert isinstance(total, Tensor)
    return torch.autograd.grad(total, point)[0].numpy()


def ours(model: nn.Module, vectors: TaskVectors, space: CoefficientSpace, x: np.ndarray) -> np.ndarray:
    merger = Merger(model, vectors, space.groups, Linear())
    merger.apply(space.decode(x))
    gradient = merger.gradient(surprise(lambda ids: model(ids).logits), space.moves("weight"))
    merger.restore()
    return space.pullback(gradient, x)


def drawn_point(space: CoefficientSpace) -> np.ndarray:
    return np.random.default_rng(0).integers(1, 8, space.dim) / 8


@pytest.mark.parametrize("sharing", ["separate", "shared"])
@pytest.mark.parametrize("granularity", SPACES)
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_it_is_autograd_through_the_merge(granularity: str, sharing: str, tied: bool) -> None:
    model = llama(tied)
    vectors = vectors_of(model, (("b", "model.norm.weight"), ("c", "model.layers.0.mlp.up_proj.weight")))
    space = make_space(granularity, vectors.parameters, EXPERTS, [WEIGHT], vectors.zero, sharing)
    x = drawn_point(space)
    expected = textbook(model, vectors, space, x)
    assert np.median(np.abs(expected)) > 1e-5  # of a chunk of an embedding that no token uses, it is 0
    np.testing.assert_allclose(ours(model, vectors, space, x), expected, rtol=1e-10, atol=1e-13)


def test_tied_and_frozen_coefficients() -> None:
    model = llama()
    vectors = vectors_of(model)
    frozen, tied = {"weight/embeddings/*": 0.25, "weight/*.1/a": 0.5}, ["weight/*/b"]
    space = make_space("layer", vectors.parameters, EXPERTS, [WEIGHT], vectors.zero, frozen=frozen, tied=tied)
    x = drawn_point(space)
    np.testing.assert_allclose(ours(model, vectors, space, x), textbook(model, vectors, space, x), rtol=1e-10)


def test_task_vectors_that_ties_has_trimmed_and_elected() -> None:
    model, transform = llama(), TrimElect(0.3)
    plain = vectors_of(model)
    state = transform.prepare(plain, None)
    found = {
        name: transform.apply(name, {e: plain.dense(e, name) for e in EXPERTS}, state) for name in plain.parameters
    }
    deltas = {e: flattened({name: row[e] for name, row in found.items() if e in row}) for e in EXPERTS}
    vectors = replace(plain, deltas=deltas)
    space = make_space("tensor", vectors.parameters, EXPERTS, [WEIGHT], vectors.zero)
    x = drawn_point(space)
    np.testing.assert_allclose(
        ours(model, vectors, space, x), textbook(model, vectors, space, x), rtol=1e-10, atol=1e-13
    )


def test_half_precision_is_summed_in_float32() -> None:
    """The gradients are bfloat16; what is done with them is not."""
    model = llama(dtype=torch.bfloat16)
    vectors = vectors_of(model)
    groups = make_groups("tensor", vectors.parameters)
    merger = Merger(model, vectors, groups, Linear())
    merger.apply({"weight": np.full((len(groups), 3), 0.5)})
    found = merger.gradient(surprise(lambda ids: model(ids).logits))["weight"]
    model.requires_grad_(True)
    for loss in surprise(lambda ids: model(ids).logits):
        loss.backward()
    parameters, expected = dict(model.named_parameters()), np.zeros((len(groups), 3))
    for g, group in enumerate(groups):
        gradient = parameters[group.spans[0].parameter].grad
        assert gradient is not None
        for k, expert in enumerate(EXPERTS):
            expected[g, k] = float((gradient.double() * vectors.dense(expert, group.name).double()).sum())
    # two losses are two bfloat16 gradients: the plain way rounds their sum, ours does not
    np.testing.assert_allclose(found, expected, rtol=0.02, atol=0.02 * np.abs(expected).max())


def test_a_bfloat16_sum_would_be_seen() -> None:
    model = nn.ParameterDict({"w": nn.Parameter(torch.zeros(10_000, dtype=torch.bfloat16), requires_grad=False)})
    delta = {"w": torch.full((10_000,), 1 + 2**-10)}
    vectors = TaskVectors(
        checkpoint({"w": torch.zeros(10_000, dtype=torch.bfloat16)}),
        {"e": checkpoint({})},
        {"w": (10_000,)},
        {"e": flattened(delta)},
    )
    merger = Merger(model, vectors, make_groups("model", {"w": (10_000,)}), Linear())
    found = merger.gradient(model["w"].sum() for _ in range(1))["weight"]
    assert found.item() == pytest.approx(10_000 * (1 + 2**-10), rel=1e-6)
