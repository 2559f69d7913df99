"""Singular value decompositions: what a randomised one finds beside an exact one, and who may ask for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.runs.transforms import described, resolved
from evomerge.transforms.spectral import Cart, Truncate, TsvM
from evomerge.transforms.svd import LARGE, RANDOMISED, leading, svd


def matrix(m: int, n: int, decay: float, seed: int = 0) -> Tensor:
    """A random matrix whose i-th singular value is exp(-decay i / min(m, n))."""
    generator, size = torch.Generator().manual_seed(seed), min(m, n)
    u = torch.linalg.qr(torch.randn(m, size, generator=generator)).Q
    v = torch.linalg.qr(torch.randn(n, size, generator=generator)).Q
    return u * (-decay * torch.arange(size) / size).exp() @ v.T


@settings(max_examples=15, deadline=None)
@given(st.integers(90, 160), st.integers(90, 160), st.floats(4, 12), st.integers(0, 99))
def test_a_randomised_decomposition_keeps_what_the_exact_one_keeps(m: int, n: int, decay: float, seed: int) -> None:
    given, rank = matrix(m, n, decay, seed), min(m, n) // 8
    found, exact = leading(given, rank, RANDOMISED), svd(given).first(rank)
    kept = float(found.s.double().square().sum() / exact.s.double().square().sum())
    assert 0.999 < kept < 1 + 1e-5
    assert float((found.product() - exact.product()).norm() / exact.product().norm()) < 0.08
    torch.testing.assert_close(found.u.T @ found.u, torch.eye(rank), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.v.T @ found.v, torch.eye(rank), atol=1e-4, rtol=0)


@pytest.mark.parametrize("shape", [(96, 160), (160, 96)])
def test_a_matrix_of_a_low_rank_is_found_to_rounding_and_again_to_the_bit(shape: tuple[int, int]) -> None:
    given = matrix(*shape, decay=3)
    given = svd(given).first(12).product()
    state = torch.random.get_rng_state()
    found, again = leading(given, 12, RANDOMISED), leading(given, 12, RANDOMISED)
    torch.testing.assert_close(found.product(), given, atol=1e-6, rtol=0)
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))
    assert torch.equal(torch.random.get_rng_state(), state)


def test_it_is_exact_where_much_is_kept() -> None:
    given = matrix(60, 80, decay=3)
    assert torch.equal(leading(given, 30, RANDOMISED).product(), leading(given, 30).product())


@pytest.mark.parametrize("transform", [Truncate, TsvM, Cart])
def test_transforms_make_nearly_the_same_rows(transform: type[Any]) -> None:
    deltas = {f"e{k}": matrix(260, 250, decay=8, seed=k) for k in range(8)}
    exact, other = transform(), transform(svd=RANDOMISED)
    state = tuple(deltas) if transform is Cart else len(deltas)
    rows, near = (each.apply("w", deltas, state) for each in (exact, other))
    assert rows.keys() == near.keys()
    for row in deltas:
        apart = float((near[row] - rows[row]).norm() / rows[row].norm())
        assert 0 < apart < 0.05, row
    assert "svd" not in exact.settings
    assert other.settings["svd"] == "randomised"


def test_only_what_is_not_the_usual_is_named() -> None:
    assert described(resolved([{"tsvm": {}}])) == [{"_target_": "evomerge.transforms.spectral.TsvM"}]
    (said,) = described(resolved([{"tsvm": {"svd": "randomised"}}]))
    assert said["svd"] == "randomised"
    with pytest.raises(ConfigError, match=r"The transform tsvm has svd=random: Unknown choice .* 'randomised'"):
        TsvM(svd="random")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("how", ["exact", "randomised"])
def test_a_large_matrix_is_decomposed_on_the_accelerator(how: str) -> None:
    given = matrix(LARGE // 256, 300, decay=6)
    assert given.numel() >= LARGE
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    found, here = leading(given, 40, how), torch.linalg.svd(given, full_matrices=False)
    assert torch.cuda.max_memory_allocated() >= before + given.nbytes  # it was there
    assert found.u.device.type == "cpu"
    torch.testing.assert_close(found.s, here.S[:40], atol=1e-3, rtol=1e-3)
