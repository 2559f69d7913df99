"""Sorted magnitudes: orders, cuts of one delta and of several, and ranks in rows, against torch's stable sorts."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors import sorting
from evomerge.task_vectors.cuts import Cut
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta
from evomerge.task_vectors.orders import cuts_over, order_of, row_ranks
from evomerge.task_vectors.quantised import quantised
from evomerge.task_vectors.reading import bits_of, reader

DENORMAL = 1e-45
few = st.sampled_from([0.0, -0.0, 1.0, -1.0, 2.0, DENORMAL, -DENORMAL, 2 * DENORMAL, 3.4028234663852886e38, 0.5])
anything = st.floats(width=32, allow_nan=False, allow_infinity=False)
values = st.one_of(
    arrays.arrays(np.float32, st.integers(1, 200), elements=few),
    arrays.arrays(np.float32, st.integers(1, 200), elements=anything),
).map(torch.from_numpy)


def expert(seed: int, size: int) -> Delta:
    """With many equal magnitudes, as kept experts have them."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(size, generator=generator).bfloat16()
    return ExpertDelta(base, (base.float() + 0.003 * torch.randn(size, generator=generator)).bfloat16())


def kept(delta: Delta, cut: Cut) -> Tensor:
    """Which elements a cut keeps, as its definition has it."""
    bits = delta.dense().abs().view(torch.int32)
    return (bits > cut.bits) | ((bits == cut.bits) & (torch.arange(len(delta)) < cut.stop))


def largest(magnitudes: Tensor, count: int) -> Tensor:
    """Which elements are the largest, by a stable sort of all of them."""
    found = torch.zeros(len(magnitudes), dtype=torch.bool)
    found[torch.argsort(magnitudes, descending=True, stable=True)[:count]] = True
    return found


@contextmanager
def few_together(size: int) -> Iterator[None]:
    """Let ranges of magnitudes be as small as those of very long deltas, and pieces as well."""
    with patch.object(sorting, "TOGETHER", size), patch.object(sorting, "PIECE", 7):
        yield


@settings(max_examples=40, deadline=None)
@given(values, st.sampled_from([1, 10, 50, 1000]))
def test_orders_are_stable_sorts(delta: Tensor, together: int) -> None:
    expected = torch.argsort(delta.abs(), descending=True, stable=True)
    with few_together(together):
        assert order_of(DenseDelta(delta)).places.tolist() == expected.tolist()
    with patch.object(sorting, "_radix", lambda: None):
        assert order_of(DenseDelta(delta)).places.tolist() == expected.tolist()


@pytest.mark.parametrize("together", [1 << 10, 1 << 23])
def test_equal_magnitudes_of_bfloat16_experts(together: int) -> None:
    delta = expert(0, 100_003)
    magnitudes = delta.dense().abs()
    assert len(magnitudes.unique()) < len(delta) / 10
    with patch.object(sorting, "TOGETHER", together):
        found = order_of(delta)
    assert found.places.tolist() == torch.argsort(magnitudes, descending=True, stable=True).tolist()


@settings(max_examples=50, deadline=None)
@given(values, st.data())
def test_a_cut_keeps_the_largest(delta: Tensor, data: st.DataObject) -> None:
    rank = data.draw(st.integers(0, len(delta)))
    assert torch.equal(kept(DenseDelta(delta), order_of(DenseDelta(delta)).cut(rank)), largest(delta.abs(), rank))


@pytest.mark.parametrize("density", [0.0, 0.29, 0.57, 0.58, 1.0])
def test_exactly_as_many_as_the_density_says(density: float) -> None:
    delta = expert(1, 100)
    order = order_of(delta)
    assert int(kept(delta, order.cut(math.floor(density * 100 + 1e-9))).sum()) == round(100 * density)


def test_the_cuts_of_nothing_and_of_all() -> None:
    order = order_of(DenseDelta(torch.tensor([1.0, 0, -2])))
    assert [order.cut(rank) for rank in (-1, 0, 3, 9)] == [Cut(0x7FFFFFFF, 0), Cut(0x7FFFFFFF, 0), Cut(0, 3), Cut(0, 3)]


@settings(max_examples=60, deadline=None)
@given(st.lists(values, min_size=1, max_size=6), st.sampled_from([1, 2, 5, 128]), st.data())
def test_cuts_over_several_keep_the_largest_of_all(deltas: list[Tensor], samples: int, data: st.DataObject) -> None:
    rank = data.draw(st.integers(-1, 1 + sum(map(len, deltas))))
    orders = [order_of(DenseDelta(delta)) for delta in deltas]
    with patch("evomerge.task_vectors.orders.SAMPLES", samples):
        cuts = cuts_over(orders, rank)
    found = torch.cat([kept(DenseDelta(delta), cut) for delta, cut in zip(deltas, cuts, strict=True)])
    assert torch.equal(found, largest(torch.cat(deltas).abs(), max(rank, 0)))


@pytest.mark.parametrize("share", [0.001, 0.2, 0.5, 0.999])
def test_cuts_over_long_deltas_of_other_scales(share: float) -> None:
    deltas = [expert(0, 70_001), DenseDelta(torch.randn(5)), DenseDelta(1e-3 * torch.randn(30_000)), expert(3, 40_000)]
    everything = torch.cat([delta.dense().abs() for delta in deltas])
    rank = int(share * len(everything))
    cuts = cuts_over([order_of(delta) for delta in deltas], rank)
    found = torch.cat([kept(delta, cut) for delta, cut in zip(deltas, cuts, strict=True)])
    assert torch.equal(found, largest(everything, rank))


def test_cuts_over_read_few_elements() -> None:
    read = 0

    class Counted(DenseDelta):
        def at(self, places: Tensor) -> Tensor:
            nonlocal read
            read += len(places)
            return super().at(places)

    deltas = [Counted(torch.randn(1 << 20)) for _ in range(3)]
    cuts_over([order_of(delta) for delta in deltas], 1 << 19)
    assert 0 < read < 5000


@settings(max_examples=40, deadline=None)
@given(values, st.integers(1, 40), st.booleans())
def test_ranks_within_rows(delta: Tensor, width: int, compiled: bool) -> None:
    delta = delta.repeat(width)[: max(1, len(delta) // width) * width]
    expected = torch.argsort(torch.argsort(delta.abs().view(-1, width), dim=1, stable=True), dim=1).flatten()
    radix = sorting._radix()
    with few_together(1), patch.object(sorting, "_radix", lambda: radix if compiled else None):
        assert row_ranks(DenseDelta(delta), width).tolist() == expected.tolist()


def test_rows_may_have_65536_elements_and_no_more() -> None:
    ranks = row_ranks(DenseDelta(torch.arange(1 << 16).float()), 1 << 16)
    assert ranks.dtype == torch.uint16
    assert ranks.tolist() == list(range(1 << 16))
    with pytest.raises(ConfigError, match="rows of 65537 elements"):
        row_ranks(DenseDelta(torch.zeros(65537)), 65537)


@pytest.mark.parametrize("base", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("own", [torch.float32, torch.bfloat16, torch.float16])
def test_single_elements_are_read_to_the_bit(base: torch.dtype, own: torch.dtype) -> None:
    scales = 10.0 ** torch.randint(-9, 4, (2, 500), generator=torch.Generator().manual_seed(0))
    numbers = torch.randn(2, 500, generator=torch.Generator().manual_seed(1)) * scales
    whole = ExpertDelta(numbers[0].to(base), numbers[1].to(own))
    for delta in (whole, whole[100:], DenseDelta(whole.dense()), quantised(whole.dense(), 8)):
        read = [bits_of(abs(reader(delta)(place))) for place in range(len(delta))]
        assert read == delta.dense().abs().view(torch.int32).tolist()
