"""Inner products of gradients with deltas: against float64, and wherever they lie."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.kernels import products
from evomerge.merging.kernels.products import inner_products, stack
from evomerge.task_vectors.dense import ALIGNMENT, DenseDelta


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stacked(deltas: list[Tensor]) -> Tensor:
    return stack([DenseDelta(delta) for delta in deltas], torch.device("cpu"))


def expected(gradient: Tensor, deltas: list[Tensor]) -> Tensor:
    return torch.stack([(gradient.double() * delta.double()).sum() for delta in deltas])


def total(found) -> Tensor:
    return sum((each.double() for each in found), torch.zeros((), dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [1, 384, 3_000_001])
def test_the_error_is_that_of_float32(dtype: torch.dtype, size: int) -> None:
    gradient = drawn(size).abs().to(dtype)  # of one sign: nothing cancels, so the relative error means something
    deltas = [1e-3 * drawn(size, seed=k).abs() for k in (1, 2)]
    found = total(inner_products(gradient, [DenseDelta(delta) for delta in deltas]))
    torch.testing.assert_close(
        found, expected(gradient, deltas), rtol=1e-12 if dtype == torch.float64 else 5e-6, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("size", [1, 15, 384, 1_500_001])
def test_deltas_below_each_other_are_taken_in_one_pass(dtype: torch.dtype, size: int) -> None:
    gradient = drawn(size).abs().to(dtype)
    deltas = [1e-3 * drawn(size, seed=k).abs() for k in (1, 2, 3)]
    rows = stacked(deltas)
    assert all(torch.equal(row, delta) for row, delta in zip(rows, deltas, strict=True))
    assert all(row.data_ptr() % ALIGNMENT == 0 for row in rows)
    found = total(inner_products(gradient, rows))
    torch.testing.assert_close(
        found, expected(gradient, deltas), rtol=1e-12 if dtype == torch.float64 else 5e-6, atol=0
    )


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 40), other=st.integers(0, 40), size=st.integers(1, 3000), block=st.sampled_from([16, 1024]))
def test_blas_sees_only_what_begins_at_a_multiple_of_64_bytes(start: int, other: int, size: int, block: int) -> None:
    gradient, delta = drawn(4000), drawn(4000, seed=1)
    seen: list[int] = []
    mv = torch.mv

    def multiplied(rows: Tensor, one: Tensor) -> Tensor:
        seen.extend(each.data_ptr() % ALIGNMENT for each in (one, *rows))
        return mv(rows, one)

    part, deltas = gradient[start : start + size], [delta[other : other + size], delta[:size]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "mv", multiplied)
        patch.setattr(products, "CHUNK", block)
        found = (
            total(inner_products(part, [DenseDelta(delta) for delta in deltas])),
            total(inner_products(part, stacked(deltas))),
        )
    assert set(seen) == {0}
    assert len(seen) >= 2 * 3  # gradient and two deltas, in both forms
    assert torch.equal(*found)
    for each in found:
        torch.testing.assert_close(each, expected(part, deltas), rtol=1e-5, atol=1e-4)
