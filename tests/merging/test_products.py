"""Inner products of gradients with deltas: the kernel and the plain form against float64, for every kind of delta."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.merging.kernels import cpu, products
from evomerge.merging.kernels.products import Part, Products
from evomerge.models.factors import Factors
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.expert import ExpertDelta
from evomerge.task_vectors.low_rank import LowRankDelta
from evomerge.task_vectors.masked import masked
from evomerge.task_vectors.quantised import quantised
from evomerge.task_vectors.spans import Span
from tests.kit.methods import plainly

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
KINDS: dict[str, Callable[[Tensor, Tensor], Delta]] = {
    **{f"dense {dtype}": lambda base, tuned, dtype=dtype: DenseDelta((tuned - base).to(dtype)) for dtype in DTYPES},
    **{f"expert {dtype}": lambda base, tuned, dtype=dtype: ExpertDelta(base, tuned.to(dtype)) for dtype in DTYPES},
    "int8": lambda base, tuned: quantised(tuned - base, 8),
    "int4": lambda base, tuned: quantised(tuned - base, 4),
    "masked dense": lambda base, tuned: masked(DenseDelta(tuned - base), tuned > 0),
    "masked expert": lambda base, tuned: masked(ExpertDelta(base, tuned.bfloat16()), tuned > 0),
    "low_rank": lambda base, tuned: factored(len(base)),
    "masked low_rank": lambda base, tuned: masked(factored(len(base)), tuned > 0),
    "masked int4": lambda base, tuned: masked(quantised(tuned - base, 4), tuned > 0),
}


def drawn(size: int, seed: int = 0) -> Tensor:
    return torch.randn(size, generator=torch.Generator().manual_seed(seed))


def factored(size: int) -> LowRankDelta:
    """Some elements of a product of factors, from the middle of a row to the middle of another."""
    width = max(1, math.isqrt(size))
    left, right = drawn(5 * (size // width + 3), 7).view(-1, 5), drawn(5 * width, 8).view(5, -1)
    return LowRankDelta(Factors(left, right, 0.01), width // 2, width // 2 + size)


def part(kinds: list[str], size: int, base: torch.dtype = torch.float32, start: int = 0) -> Part:
    below = drawn(size).to(base)
    deltas = [KINDS[kind](below, below + drawn(size, seed) / 50) for seed, kind in enumerate(kinds, 1)]
    return Part(Span("w", start, start + size), below, deltas)


def exact(gradient: Tensor, parts: list[Part]) -> tuple[Tensor, Tensor]:
    """The products in float64, and the products of the magnitudes."""
    terms = [
        gradient[part.span.start : part.span.stop].double() * delta.dense().double()
        for part in parts
        for delta in part.deltas
    ]
    return torch.stack([each.sum() for each in terms]), torch.stack([each.abs().sum() for each in terms])


def check(found: Tensor, gradient: Tensor, parts: list[Part], error: float = 1e-6) -> None:
    expected, size = exact(gradient, parts)
    assert found.dtype == torch.float64
    assert ((found - expected).abs() <= error * size).all()
    assert (expected != 0).all()


def has_kernel(taken: Products) -> bool:
    return taken._table is not None


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
@pytest.mark.parametrize("base", DTYPES, ids=str)
@pytest.mark.parametrize("dtype", [*DTYPES, torch.float64], ids=str)
def test_all_kinds_at_once(dtype: torch.dtype, base: torch.dtype, kernel: bool, monkeypatch) -> None:
    size = 64 * 300
    parts = [part([*KINDS], size, base), part(["int8", "dense torch.bfloat16"], size, base, start=size)]
    gradient = drawn(2 * size, 99).to(dtype)
    if not kernel:
        plainly(monkeypatch)
    taken = Products(parts)
    assert has_kernel(taken) == kernel
    check(taken(gradient), gradient, parts, 1e-12 if dtype == torch.float64 else 1e-6)


@pytest.mark.parametrize("size", [1, 31, 65, 1023, 1025, 3_000_001])
def test_any_length_in_any_number_of_threads(size: int, monkeypatch) -> None:
    parts, gradient = [part([*KINDS], size)], drawn(size, 99).abs() + 0.1
    monkeypatch.setattr(cpu, "SHARE", cpu.PIECE)
    found = []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        found.append(Products(parts)(gradient))
    assert all(torch.equal(one, found[0]) for one in found)
    if size > 31:  # of one element, the masked ones may be 0
        check(found[0], gradient, parts)


def test_eleven_million_elements() -> None:
    """Of one sign: nothing cancels, so the relative error means something."""
    size = 11_000_000
    delta, gradient = DenseDelta(1e-3 * drawn(size).abs()), drawn(size, 1).abs()
    found = Products([Part(Span("w", 0, size), delta.values, [delta])])(gradient)
    check(found, gradient, [Part(Span("w", 0, size), delta.values, [delta])], 1e-6)


@settings(max_examples=30, deadline=None)
@given(start=st.integers(0, 40), other=st.integers(0, 40), size=st.integers(1, 3000))
def test_addresses_and_other_rows_do_not_matter(start: int, other: int, size: int) -> None:
    values, gradient, more = drawn(size, 1), drawn(size, 2), DenseDelta(drawn(size, 3))

    def at(by: int, tensor: Tensor) -> Tensor:
        return torch.empty(len(tensor) + 64)[by : by + len(tensor)].copy_(tensor)

    def found(by: int, rows: int) -> Tensor:
        deltas = [*[more] * rows, DenseDelta(at(by, values))]
        return Products([Part(Span("w", 0, size), values, deltas)])(at(other, gradient))[-1]

    assert torch.equal(found(0, 0), found(start, 2))


def test_a_kept_expert_has_the_product_of_its_task_vector() -> None:
    """To the bit, so a search does not depend on how experts are kept."""
    size = 5000
    base = drawn(size).bfloat16()
    experts = [ExpertDelta(base, (base.float() + drawn(size, k) / 50).bfloat16()) for k in (1, 2)]
    forms = [experts, [DenseDelta(each.dense()) for each in experts], [masked(each, base > -99) for each in experts]]
    found = [Products([Part(Span("w", 0, size), base, deltas)])(drawn(size, 9)) for deltas in forms]
    assert all(torch.equal(one, found[0]) for one in found)


def test_spans_that_begin_anywhere() -> None:
    """Within a quantised group the plain form serves."""
    whole = part(["int8", "masked dense"], 300)
    gradient = drawn(300, 9)
    for start, kernel in ((64, True), (50, False)):
        some = Part(
            Span("w", start, 290),
            whole.base[start:290],
            [d[start:290].over(whole.base[start:290]) for d in whole.deltas],
        )
        taken = Products([some])
        assert taken._by_kernel.tolist() == [kernel, True]
        check(taken(gradient), gradient, [some])


@pytest.mark.parametrize("kernel", [True, False], ids=["kernel", "plain"])
def test_what_is_not_finite_is_seen_under_a_mask(kernel: bool, monkeypatch) -> None:
    gradient, values = torch.ones(100), torch.ones(100)
    gradient[3] = np.inf
    if not kernel:
        plainly(monkeypatch)
    delta = masked(DenseDelta(values), torch.arange(100) != 3)
    assert Products([Part(Span("w", 0, 100), values, [delta])])(gradient).isnan().all()


def test_no_copies_are_made(monkeypatch) -> None:
    """The kernel reads what is kept: nothing is decoded by a delta, and a gradient in rows is read in its place."""
    some = part([kind for kind in KINDS if "low_rank" not in kind], 6400)  # of which some rows are multiplied out
    for kind in {type(delta) for delta in some.deltas}:
        monkeypatch.setattr(kind, "dense", lambda self: pytest.fail("decoded"))
    given, seen = drawn(6400, 9).view(80, 80), []
    taken = Products([some])
    monkeypatch.setattr(products, "share", lambda work, pieces, elements: seen.append(work(0, pieces)))
    taken(given)
    assert seen
