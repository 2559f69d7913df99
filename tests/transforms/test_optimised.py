"""The transforms that minimise a loss, against the code of their authors and against automatic differentiation."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.transforms.base import Transform
from evomerge.transforms.optimised import Doge, OptMerge, Wudi, _distance, _disturbance
from tests.kit.published import W1, W2, close, made, total
from tests.kit.vectors import vectors_of

SMALL = [W1 / 1000, W2 / 1000]
"""Of the size of task vectors, which steps of one size are made for."""


def test_wudi() -> None:
    """As FusionBench's code does it."""
    found = 1000 * made(Wudi(), SMALL)["merged"]
    close(found[0], [3.874625, -0.115842, -0.031561, -0.526534])
    close(found[3], [0.044892, 0.388465, 1.091134, 1.281987])


def test_optmerge() -> None:
    """As the authors' code does it; of a rectangle as well, where the rank is that of the shorter side."""
    close(made(OptMerge(), [W1, W2])["merged"][0], [3.018796, 0.218779, 0.147548, 0.299144])
    close(made(OptMerge(), [W1[:, :3], W2[:, :3]])["merged"][3], [0.258682, 0.576037, 0.772128])


def test_doge() -> None:
    """As FusionBench's code does it, which keeps one element more than its share."""
    one = torch.tensor([[16.0, -3, 2, 13], [5, 10, -11, 8], [9, 6, -7, 12], [4, -15, 14, 1]])
    other = torch.tensor([[1.0, -7, 14, -12], [4, 9, 6, -15], [-13, 2, 11, 8], [3, 16, -10, 5]])
    found = total(Doge(9 / 16, subspace=2), [one / 4000, other / 4000])
    close(found[0], [0.022694, 0, 0.008698, -0.011893])
    close(found[3], [0, 0.045514, 0.050002, 0])


@pytest.mark.parametrize("transform", [Wudi(3), OptMerge(3)])
def test_what_is_no_matrix_is_averaged(transform: Transform) -> None:
    assert made(transform, [torch.tensor([1.0, 2]), torch.tensor([3.0, 2])])["merged"].tolist() == [2, 2]


@pytest.mark.parametrize("transform", [Wudi(), OptMerge()])
def test_one_expert_disturbs_none(transform: Transform) -> None:
    torch.testing.assert_close(made(transform, [W2])["merged"], W2)


def test_gradients_are_those_of_the_losses() -> None:
    generator = torch.Generator().manual_seed(5)
    tasks, x = torch.randn(3, 5, 4, generator=generator), torch.randn(5, 4, generator=generator)
    parts, scales = 0.5 * tasks, torch.tensor([0.3, 0.1, 0.2])

    def disturbance(merged: Tensor) -> Tensor:
        return sum(((merged - p) @ p.T).square().sum() / t.square().sum() for t, p in zip(tasks, parts, strict=True))

    def distance(delta: Tensor) -> Tensor:
        rest = tasks - torch.einsum("k,kmn->mn", scales, tasks + delta)
        return (tasks * rest).sum(2).square().sum()

    for loss, gradient in ((disturbance, _disturbance([*tasks], [*parts])), (distance, _distance(tasks, scales))):
        (expected,) = torch.autograd.grad(loss(leaf := x.clone().requires_grad_()), leaf)
        torch.testing.assert_close(gradient(x), expected)


def test_steps_lower_the_loss() -> None:
    merged = made(Wudi(rate=1e-2), [W1, W2])["merged"]
    gradient = _disturbance([W1, W2], [W1, W2])
    assert gradient(merged).norm() < 0.5 * gradient(W1 + W2).norm()


def test_doge_takes_no_step_in_common_directions() -> None:
    tasks = torch.tensor([[[1.0, 0], [0, 2]], [[0.0, 1], [1, 1]]])
    shared = Doge(subspace=2)._shared(tasks, 1)
    gradient = _distance(tasks, torch.tensor([0.031305, 0.040415]))(torch.zeros(2, 2))
    close(gradient, [[-0.138949, -0.137642], [-0.266303, -1.354704]])
    close(shared @ shared.T, [[0.074675, 0.262866], [0.262866, 0.925325]])
    close(gradient - shared @ (shared.T @ gradient), [[-0.058571, 0.228741], [0.016639, -0.064981]])
    assert Doge()._shared(tasks, 0).shape == (2, 0)


def test_doge_leaves_the_base_where_there_is_no_matrix() -> None:
    assert made(Doge(), [torch.tensor([1.0, 2]), torch.tensor([3.0, 2])]) == {}


def test_settings_that_mean_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match="wudi has rate=0: write a number above 0, such as 1e-05"):
        Wudi(rate=0)
    with pytest.raises(ConfigError, match="doge has subspace=0: write a whole number from 1 on"):
        Doge(subspace=0)


@pytest.mark.parametrize("transform", [Wudi(steps=3), OptMerge(steps=3), Doge(steps=3)], ids=lambda one: one.name)
def test_a_delta_of_zeros_is_none(transform: Transform) -> None:
    generator = torch.Generator().manual_seed(0)
    deltas = {row: torch.randn(6, 4, generator=generator) for row in "ab"}
    state = transform.prepare(vectors_of({row: {"w": delta} for row, delta in deltas.items()}), None)
    found = transform.apply("w", {**deltas, "c": torch.zeros(6, 4)}, state)
    for row, delta in transform.apply("w", deltas, state).items():
        assert torch.equal(found[row], delta)
