"""Random numbers by place: known values, uniform, uncorrelated, and the same however they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor

from evomerge.merging.kernels.compiled import function
from evomerge.merging.kernels.draw import draw, uniform
from evomerge.merging.kernels.lanes import WORD, Code, Variable
from evomerge.task_vectors.draws import Keys, folded, keys, uniforms

N = 1 << 20
WORDS = st.integers(0, (1 << 32) - 1)
SOME = [keys(0, "math", "model.layers.0.mlp.up_proj.weight"), keys(17, "code", "lm_head.weight"), (0, 0), (1, 0)]


def correlation(a: Tensor, b: Tensor) -> float:
    """In units of its standard error."""
    return float(torch.corrcoef(torch.stack([a.double(), b.double()]))[0, 1]) * math.sqrt(len(a))


def likely(counts: np.ndarray) -> bool:
    """Whether counts of equally likely cells are neither too uneven for chance nor too even."""
    return 1e-5 < stats.chisquare(counts.reshape(-1)).pvalue < 1 - 1e-5


def test_known_values() -> None:
    """Runs that were scored with these numbers are rebuilt from them: they must never change."""
    assert keys(0, "math", "w") == (4121657968, 1849033067)
    assert (uniforms(keys(0, "math", "w"), 0, 5) * 2**24).tolist() == [1503153, 11948404, 11124940, 14334699, 10251234]
    assert (uniforms(keys(0, "math", "w"), (1 << 32) - 2, 4) * 2**24).tolist() == [720793, 4093295, 16153099, 14113854]


def test_names_are_told_apart_wherever_their_ends_are() -> None:
    assert keys(0, "a/b", "c") != keys(0, "a", "b/c")


@pytest.mark.parametrize("key", SOME)
def test_uniform(key: Keys) -> None:
    found = uniforms(key, 0, N)
    assert 0 <= float(found.min()) <= float(found.max()) < 1
    assert likely(np.histogram(found, 256, (0, 1))[0])
    assert likely(torch.bincount((found * 2**24).long() & 255, minlength=256).numpy())
    assert likely(np.histogram2d(found[::2].numpy(), found[1::2].numpy(), 16, ((0, 1), (0, 1)))[0])
    assert abs(float(found.double().mean()) - 0.5) < 5 * math.sqrt(1 / 12 / N)
    assert abs(float(found.double().var()) - 1 / 12) < 5 * math.sqrt(1 / 180 / N)


@pytest.mark.parametrize("lag", [1, 2, 64, 4096])
@pytest.mark.parametrize("key", SOME)
def test_no_element_tells_of_another(key: Keys, lag: int) -> None:
    found = uniforms(key, 0, N)
    assert abs(correlation(found[lag:], found[:-lag])) < 5


def test_rows_seeds_and_parameters_are_independent() -> None:
    named = [keys(seed, row, name) for seed in (0, 1) for row in ("a", "b") for name in ("layers.0.w", "layers.1.w")]
    all_keys = [*named, (0, 0), (0, 1), (1, 0), (1, 1), (1 << 31, 0)]
    found = [uniforms(key, 0, N) for key in all_keys]
    pairs = [(a, b) for i, a in enumerate(found) for b in found[:i]]
    assert max(abs(correlation(a, b)) for a, b in pairs) < 5
    shifted = uniforms(all_keys[0], 1, N)
    assert max(abs(correlation(shifted, b)) for b in found) < 5


def test_no_row_has_the_numbers_of_another_in_another_order() -> None:
    """Places that the first keys make equal still have other numbers, by the second ones."""
    first, second = keys(0, "a", "w"), keys(0, "b", "w")
    swapped = torch.arange(N) ^ ((first[0] ^ second[0]) & (N - 1))
    high = (first[0] ^ second[0]) & ~(N - 1)
    other = uniforms(second, high, N)[swapped]
    assert abs(correlation(uniforms(first, 0, N), other)) < 5


@given(WORDS, WORDS, st.integers(0, 1 << 34), st.integers(0, 300), st.integers(0, 300))
def test_the_same_in_pieces(key: int, other: int, start: int, size: int, more: int) -> None:
    whole = uniforms((key, other), start, size + more)
    parts = uniforms((key, other), start, size), uniforms((key, other), start + size, more)
    assert torch.equal(whole, torch.cat(parts))


def test_beyond_32_bits_the_numbers_do_not_repeat() -> None:
    key = keys(0, "a", "w")
    assert abs(correlation(uniforms(key, 0, N), uniforms(key, 1 << 32, N))) < 5
    over = uniforms(key, (1 << 32) - 3, 6)
    assert torch.equal(over[3:], uniforms(key, 1 << 32, 3))


def test_dropping_and_rescaling_keeps_the_expectation() -> None:
    """Of every element, over seeds: within 4 standard errors of τ; σ² = τ² (1 − p) / p."""
    tau, density, seeds = torch.tensor([1.0, -2, 0.5, 3, -0.25, 8, 0.01, -1]).double(), 0.3, 4000
    draws = torch.stack([uniforms(keys(seed, "a", "w"), 0, len(tau)) for seed in range(seeds)])
    kept = torch.where(draws < density, tau / density, 0.0)
    error = tau.abs() * math.sqrt((1 - density) / density)
    assert ((kept.mean(0) - tau).abs() < 4 * error / math.sqrt(seeds)).all()
    assert (kept.std(0) / error - 1).abs().max() < 0.05


@pytest.fixture(scope="module")
def fill() -> Callable[..., int]:
    """Writes the numbers of some elements, in groups of 8 and then one by one."""
    code = Code("fill", 5)
    start, key, other, size, out = code.arguments
    element = Variable(code.number(0))
    for lanes, stop in ((8, size - (size & 7)), (1, size)):
        with code.loop(element, stop) as i:
            bits = draw((start + i).to(WORD).spread(lanes).numbered(), key.to(WORD), other.to(WORD))
            code.store(uniform(bits), out + i * 4)
            element.set(i + lanes)
    return function(code.returned(element.get()), "fill", 5, "a test")


@settings(deadline=None)
@given(WORDS, WORDS, st.integers(0, 1 << 34), st.integers(1, 300))
def test_compiled_equals_plain(fill: Callable[..., int], key: int, other: int, start: int, size: int) -> None:
    size = min(size, (1 << 32) - start % (1 << 32))
    out = torch.empty(size)
    assert fill(start % (1 << 32), *folded((key, other), start), size, out.data_ptr()) == size
    assert torch.equal(out, uniforms((key, other), start, size))
