"""How task vectors are kept: the numbers of the paper's equations, a bound that none breaks, and what is a mask."""

from __future__ import annotations

import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from evomerge.common.errors import CheckpointError
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.packing import mask_of, pack
from evomerge.task_vectors.quantised import LARGEST, encoded, quantised
from evomerge.task_vectors.stores import LOSSY

VALUES = [-0.3, -0.1, 0.0, 0.05, 0.2, 0.5]
CODES = {2: [0, 1, 1, 1, 2, 3], 3: [0, 2, 3, 3, 5, 7], 4: [0, 4, 6, 7, 10, 15], 8: [0, 64, 96, 112, 160, 255]}
DECODED = {
    2: [-0.266667, 0, 0, 0, 0.266667, 0.533333],
    3: [-0.342857, -0.114286, 0, 0, 0.228571, 0.457143],
    4: [-0.32, -0.106667, 0, 0.053333, 0.213333, 0.48],
}
BOUNDS = {2: 0.133333, 3: 0.057143, 4: 0.026667, 8: 0.001569}
magnitudes = st.one_of(st.floats(-LARGEST, LARGEST, width=32), st.floats(-1, 1, width=32), st.just(0.0))


@pytest.mark.parametrize("bits", CODES)
def test_numbers_of_the_equations(bits: int) -> None:
    """By hand: scale = (2^b − 1) / (max − min), zero = −round(min · scale), code = round(x · scale) + zero."""
    codes, steps, zeros = encoded(torch.tensor([VALUES]), 2**bits - 1)
    assert codes.tolist() == [CODES[bits]]
    assert float(steps / 2) == pytest.approx(BOUNDS[bits], abs=1e-6)
    if bits in DECODED:
        assert ((codes.float() - zeros) * steps).flatten().tolist() == pytest.approx(DECODED[bits], abs=1e-6)


@pytest.mark.parametrize("store", LOSSY)
@settings(max_examples=100, deadline=None)
@given(values=st.lists(magnitudes, min_size=1, max_size=130), scale=st.sampled_from([1.0, 1e-3, 1e-30, 1e-38, 1e-44]))
@example(values=[1.5, -253.5, 100.5], scale=1.0)
@example(values=[LARGEST, -LARGEST, LARGEST / 3], scale=1.0)
@example(values=[1e-45], scale=1.0)
def test_no_element_is_farther_off_than_the_bound(store: str, values: list[float], scale: float) -> None:
    exact = torch.tensor(values) * scale
    delta = pack(exact, store)
    found = delta.dense()
    assert torch.isfinite(found).all()
    assert (found.double() - exact.double()).abs().max() <= delta.bound
    for start in range(0, len(values), 64):
        part = delta[start : start + 64]
        error = (part.dense().double() - exact[start : start + 64].double()).abs().max()
        assert error <= part.bound <= delta.bound
    assert not found[exact == 0].any()  # zeros stay zeros


@pytest.mark.parametrize("bits", [8, 4])
def test_bytes_of_a_parameter(bits: int) -> None:
    assert quantised(torch.randn(6400), bits).nbytes == 6400 * bits / 8 + 500
    assert quantised(torch.randn(1), bits).nbytes == 64 * bits / 8 + 5


def test_the_bound_is_half_a_step() -> None:
    values = torch.linspace(-1, 1, 64)
    assert quantised(values, 8).bound == pytest.approx(1 / 255, rel=1e-3)
    assert quantised(values, 4).bound == pytest.approx(1 / 15, rel=1e-3)
    assert quantised(torch.zeros(64), 8).bound == 0
    assert quantised(torch.zeros(0), 8).bound == 0
    assert pack(torch.tensor([1.0, -1.5]), "bfloat16").bound == 2.0**-8
    assert pack(torch.zeros(64), "bfloat16").bound < 1e-40


def test_a_parameter_of_many_chunks_is_quantised_group_by_group() -> None:
    values = torch.randn((1 << 19) + 77, generator=torch.Generator().manual_seed(0))
    for bits in (8, 4):
        whole, part = quantised(values, bits), quantised(values[1 << 18 : 1 << 19], bits)
        assert torch.equal(whole[1 << 18 : 1 << 19].dense(), part.dense())
        assert (whole.dense() - values).abs().max() <= whole.bound


@pytest.mark.parametrize("store", LOSSY)
def test_what_cannot_be_kept_is_refused(store: str) -> None:
    with pytest.raises(CheckpointError, match=f"which model.store={store} cannot keep: write model.store=float32"):
        pack(torch.tensor([1.0, 3e38]), store)


def test_a_row_is_a_mask_only_if_every_element_is_that_of_the_task_vector_or_zero() -> None:
    exact = torch.randn(1 << 19, generator=torch.Generator().manual_seed(0))
    kept = torch.arange(len(exact)) % 3 > 0
    row = torch.where(kept, exact, 0.0)
    mask = mask_of(row, DenseDelta(exact))
    assert mask is not None
    assert torch.equal(mask, kept)
    assert mask_of(row, None) is None
    row[-1] = exact[-1].nextafter(torch.tensor(9.0))
    assert mask_of(row, DenseDelta(exact)) is None
