"""Methods against the checked numbers of their papers and of mergekit, and against their laws."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import MergeError
from evomerge.merging.method import Method
from evomerge.merging.methods import Dare, DareTies, Linear, Ties
from tests.kit.methods import merged

T3 = torch.tensor([[3.0, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1], [2, 1, 0, -1, -3, 1]])


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
        merged(Ties(normalize), T3, weight), torch.tensor(expected, dtype=torch.float32), atol=1e-5, rtol=0
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
    assert torch.equal(merged(Linear(), deltas, weight.tolist(), base=base).view(torch.int32), theirs.view(torch.int32))


def test_ties_by_hand() -> None:
    """Density .4 keeps exactly two of five."""
    deltas = torch.tensor([[0.5, 0.1, -0.2, -0.4, 0.05], [-0.1, -0.6, 0.3, 0.2, -0.02]])
    torch.testing.assert_close(merged(Ties(), deltas, [1, 1], [0.4, 0.4]), torch.tensor([0.5, -0.6, 0.3, -0.4, 0.0]))


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
        merged(Ties(), torch.tensor([delta]), [1.0], [density]), torch.tensor(kept, dtype=torch.float32)
    )


@pytest.mark.parametrize(("density", "count"), [(0.29, 29), (0.57, 57), (0.58, 58)])
def test_trim_is_not_fooled_by_binary_fractions(density: float, count: int) -> None:
    delta = torch.arange(1.0, 101.0)[None]
    assert int((merged(Ties(), delta, [1.0], [density]) != 0).sum()) == count


def test_dare_keeps_the_expectation_and_nests_its_masks() -> None:
    delta = torch.ones(1, 20_000)
    kept = {density: merged(DareTies(), delta, [1], [density]) for density in (0.2, 0.5, 0.9)}
    for density, found in kept.items():
        assert set(found.unique().tolist()) == {0.0, float(torch.tensor(1 / density))}
        assert abs(float(found.mean()) - 1) < 4 * (1 / density - 1) ** 0.5 / 20_000**0.5
    assert torch.all((kept[0.2] != 0) <= (kept[0.5] != 0))
    assert torch.all((kept[0.5] != 0) <= (kept[0.9] != 0))


def test_dare_masks_depend_on_seed_and_row_alone() -> None:
    delta = torch.ones(2, 64)
    one = merged(Dare(seed=1), delta, [1, 0], [0.5, 0.5])
    torch.manual_seed(9)
    assert torch.equal(one, merged(Dare(seed=1), delta, [1, 0], [0.5, 0.9]))
    assert not torch.equal(one, merged(Dare(seed=2), delta, [1, 0], [0.5, 0.5]))
    assert not torch.equal(one, merged(Dare(seed=1), delta, [0, 1], [0.5, 0.5]))


@pytest.mark.parametrize("method", [Linear(), Ties(), DareTies(), Ties(normalize=True)], ids=lambda m: m.name)
@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000))
def test_weight_zero_is_the_base_and_one_alone_is_the_expert(method: Method, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    base, deltas = torch.randn(40, generator=generator), torch.randn(3, 40, generator=generator)
    assert torch.equal(merged(method, deltas, [0.0, 0.0, 0.0], base=base), base)
    assert torch.equal(merged(method, deltas, [0.0, 1.0, 0.0], base=base), base + deltas[1])


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 10))
def test_ties_is_homogeneous_and_odd(seed: int, scale: float) -> None:
    deltas = torch.randn(3, 30, generator=torch.Generator().manual_seed(seed))
    found = merged(Ties(), deltas, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7])
    torch.testing.assert_close(merged(Ties(), deltas * scale, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7]), found * scale)
    torch.testing.assert_close(merged(Ties(), -deltas, [1.0, 0.5, 0.7], [0.5, 0.6, 0.7]), -found)


@pytest.mark.parametrize("method", [Ties(normalize=True), DareTies(normalize=True)], ids=["ties", "dare_ties"])
@pytest.mark.parametrize("weight", [[1.0, -0.9999999], [1.0, -1.0], [0.3, 0.3, -0.6000001]], ids=str)
def test_normalised_weights_that_nearly_cancel_make_no_model(method: Method, weight: list[float]) -> None:
    """Deltas of opposite signs agree under weights of opposite signs, whose sum is then divided by."""
    deltas = torch.tensor([[2.0, -1, 3], [1, -2, 2], [-3.0, 2, -1]])[-len(weight) :]
    with pytest.raises(MergeError, match=r"cancel in \d elements .*write method\.normalize=false"):
        merged(method, deltas, weight)
    method_as_advised = type(method)(normalize=False)
    assert merged(method_as_advised, deltas, weight).abs().max() < 10


def test_negative_weights_that_do_not_cancel_are_normalised() -> None:
    deltas = torch.tensor([[1.0, -1.0], [-1.0, -1.0]])
    assert merged(Ties(normalize=True), deltas, [1.0, -0.5]).tolist() == [3.0, -1.0]
    assert merged(Ties(normalize=True), deltas, [-1.0, -0.5]).abs().max() <= 1
