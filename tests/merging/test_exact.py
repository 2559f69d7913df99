"""The sum with mergekit's bits beside the plain order: row by row, each product rounded before it is added."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.kernels.exact import INTERLEAVED, PARTIAL, VECTOR, sum_weighted
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta


def plain(rows: Tensor, weights: list[float]) -> Tensor:
    """Σ λ_k τ_k with (K, n) rows, one row after the other."""
    total = torch.zeros(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        total = total + row * weight
    return total


def exact(rows: Tensor, weights: list[float]) -> Tensor:
    out = torch.empty(rows.shape[1])
    sum_weighted([DenseDelta(row) for row in rows], weights, out)
    return out


def drawn(rows: int, size: int, seed: int) -> tuple[Tensor, list[float]]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator), torch.randn(rows, generator=generator).tolist()


@settings(max_examples=60, deadline=None)
@given(rows=st.integers(1, PARTIAL), size=st.integers(1, 300), seed=st.integers(0, 999))
def test_few_rows_or_whole_vectors_go_in_the_plain_order(rows: int, size: int, seed: int) -> None:
    size = size if rows <= INTERLEAVED else VECTOR * (1 + size // VECTOR)
    values, weights = drawn(rows, size, seed)
    assert torch.equal(exact(values, weights), plain(values, weights))


@pytest.mark.parametrize(("rows", "size"), [(40, 4096), (9, 65), (17, 1)])
def test_more_rows_and_odd_ends_are_the_same_sum_in_another_order(rows: int, size: int) -> None:
    values, weights = drawn(rows, size, 0)
    found = exact(values, weights)
    assert torch.equal(found, torch.stack([row * weight for row, weight in zip(values, weights, strict=True)]).sum(0))
    torch.testing.assert_close(found, plain(values, weights), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 20), size=st.integers(1, 300), seed=st.integers(0, 999))
def test_kinds_sum_to_the_same_bits(rows: int, size: int, seed: int) -> None:
    values, weights = drawn(1 + rows, size, seed)
    base, experts = values[0].bfloat16(), values[1:].bfloat16()
    kept, out = [ExpertDelta(base, expert) for expert in experts], torch.empty(size)
    sum_weighted(kept, weights[1:], out)
    assert torch.equal(out, exact(torch.stack([delta.dense() for delta in kept]), weights[1:]))
