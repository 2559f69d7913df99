"""Methods against the checked numbers of their papers and of mergekit, and against their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.common.errors import MergeError
from evomerge.merging.methods import DareTies, Linear, Method, Ties, elect
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.spans import Span

T3 = torch.tensor([[3.0, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1], [2, 1, 0, -1, -3, 1]])


def merge(
    method: Method, deltas: Tensor, weight: list[float], density: list[float] | None = None, base: Tensor | None = None
) -> Tensor:
    base = torch.zeros(deltas.shape[1]) if base is None else base
    span = Span("p", 0, deltas.shape[1])
    prepared = [method.prepare(f"expert{k}", span, DenseDelta(delta)) for k, delta in enumerate(deltas)]
    coefficients = {"weight": np.array(weight), "density": np.array(density or [1.0] * len(weight))}
    out = torch.empty_like(base)
    method.merge(base, prepared, coefficients, out)
    return out


@pytest.mark.parametrize(
    ("weight", "normalize", "expected"),
    [
        ([1, 1, 1], False, [5, -3, 2, 5, -7, 3]),
        ([1, 1, 1], True, [2.5, -1.5, 2, 5, -3.5, 1]),
        ([2, 0.5, 1], False, [8, -3, 4, 2.5, -11, 3.5]),
        ([2, 0.5, 1], True, [2.666667, -1.2, 2, 5, -3.666667, 1]),
        ([4, 1, 2], True, [2.666667, -1.2, 2, 5, -3.666667, 1]),
        ([0.2, 0.05, 0.1], True, [2.666667, -1.2, 2, 5, -3.666667, 1]),
    ],
)
def test_election_as_in_mergekit(weight: list[float], normalize: bool, expected: list[float]) -> None:
    """Weights before the election; normalised, the overall scale of the weights means nothing."""
    torch.testing.assert_close(
        elect(list(T3), np.array(weight), normalize), torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
    )


@given(st.integers(1, 40), st.sampled_from([1, 2, 7, 63, 64, 65, 527, 4096, 40_001]), st.integers(0, 9))
@settings(max_examples=60, deadline=None)
def test_linear_is_bit_for_bit_the_sum_of_mergekit(experts: int, size: int, seed: int) -> None:
    """As its generalized_task_arithmetic.py has it: stacked deltas times weights, summed over the experts, plus base;
    sizes behind a vector's length and more than 16 experts have orders of their own."""
    generator = torch.Generator().manual_seed(seed)
    base, deltas = torch.randn(size, generator=generator), torch.randn((experts, size), generator=generator)
    weight = np.random.default_rng(seed).uniform(-0.5, 1.5, experts)
    theirs = base + (deltas * torch.tensor(weight, dtype=torch.float32)[:, None]).sum(dim=0)
    assert torch.equal(merge(Linear(), deltas, weight.tolist(), base=base).view(torch.int32), theirs.view(torch.int32))


def test_ties_by_hand() -> None:
    """Density .4 keeps exactly two of five."""
    deltas = torch.tensor([[0.5, 0.1, -0.2, -0.4, 0.05], [-0.1, -0.6, 0.3, 0.2, -0.02]])
    torch.testing.assert_close(merge(Ties(), deltas, [1, 1], [0.4, 0.4]), torch.tensor([0.5, -0.6, 0.3, -0.4, 0.0]))


@pytest.mark.parametrize(
    ("delta", "density", "kept"),
    [
        ([10.0, -9, 8, 7], 0.5, [10, -9, 0, 0]),
        ([0.4, -0.3, 0.2, 0.1], 0.5, [0.4, -0.3, 0, 0]),
        ([1.0, 1, 1, 1], 0.5, [1, 1, 0, 0]),  # of equal magnitudes the lower index is kept
        ([3.0, 2], 0.0, [0, 0]),
        ([3.0, 2], 1.0, [3, 2]),
    ],
)
def test_trim_keeps_exactly_k(delta: list[float], density: float, kept: list[float]) -> None:
    """Of each tensor by itself."""
    torch.testing.assert_close(
        merge(Ties(), torch.tensor([delta]), [1.0], [density]), torch.tensor(kept, dtype=torch.float32)
    )


@pytest.mark.parametrize(("density", "count"), [(0.29, 29), (0.57, 57), (0.58, 58)])
def test_trim_is_not_fooled_by_binary_fractions(density: float, count: int) -> None:
    delta = torch.arange(1.0, 101.0)[None]
    assert int((merge(Ties(), delta, [1.0], [density]) != 0).sum()) == count


def test_dare_keeps_the_expectation_and_nests_its_masks() -> None:
    delta = torch.ones(1, 20_000)
    half, third = (merge(DareTies(seed=3), delta, [1.0], [density])[None] for density in (0.5, 0.3))
    assert set(half.unique().tolist()) == {0.0, 2.0}
    assert abs(float(half.mean()) - 1) < 4 * (1 / 20_000) ** 0.5
    assert bool(((third != 0) <= (half != 0)).all())  # whatever a lower density keeps, a higher one keeps


def test_dare_masks_depend_on_seed_expert_and_parameter_alone() -> None:
    delta = DenseDelta(torch.ones(50))
    torch.manual_seed(0)
    one = DareTies(seed=1).prepare("a", Span("p", 0, 50), delta)[1]
    torch.manual_seed(9)
    assert torch.equal(one, DareTies(seed=1).prepare("a", Span("p", 0, 50), delta)[1])
    for seed, expert, parameter in ((2, "a", "p"), (1, "b", "p"), (1, "a", "q")):
        assert not torch.equal(one, DareTies(seed=seed).prepare(expert, Span(parameter, 0, 50), delta)[1])


@pytest.mark.parametrize("method", [Linear(), Ties(), DareTies(), Ties(normalize=True)], ids=lambda m: m.name)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weight_zero_is_the_base_and_one_alone_is_the_expert(method: Method, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, deltas = torch.randn(40, generator=generator), torch.randn(3, 40, generator=generator)
    assert torch.equal(merge(method, deltas, [0.0, 0.0, 0.0], base=base), base)
    assert torch.equal(merge(method, deltas, [0.0, 1.0, 0.0], base=base), base + deltas[1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_ties_is_homogeneous_and_odd(seed: int, scale: float) -> None:
    deltas = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed))
    merged = merge(Ties(), deltas, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7])
    torch.testing.assert_close(merge(Ties(), deltas * scale, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7]), merged * scale)
    torch.testing.assert_close(merge(Ties(), -deltas, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7]), -merged)


@pytest.mark.parametrize("method", [Ties(normalize=True), DareTies(normalize=True)], ids=["ties", "dare_ties"])
@pytest.mark.parametrize("weight", [[1.0, -0.9999999], [1.0, -1.0], [0.3, 0.3, -0.6000001]], ids=str)
def test_normalised_weights_that_nearly_cancel_make_no_model(method: Method, weight: list[float]) -> None:
    """Deltas of opposite signs agree under weights of opposite signs, whose sum is then divided by."""
    deltas = torch.tensor([[2.0, -1, 3], [1, -2, 2], [-3.0, 2, -1]])[-len(weight) :]
    with pytest.raises(MergeError, match=r"cancel in \d elements .*write method\.normalize=false"):
        merge(method, deltas, weight)
    method_as_advised = type(method)(normalize=False)
    assert merge(method_as_advised, deltas, weight).abs().max() < 10


def test_negative_weights_that_do_not_cancel_are_normalised() -> None:
    deltas = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    assert merge(Ties(normalize=True), deltas, [1.0, -0.5]).tolist() == [3.0, -1.0]
    assert merge(Ties(normalize=True), deltas, [-1.0, -0.5]).abs().max() <= 1
