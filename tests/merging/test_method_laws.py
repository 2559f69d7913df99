"""Every method × every property, and numbers that were worked out from the papers, compiled and plain."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from evomerge.common.errors import MergeError, SpaceError
from evomerge.merging.builder import Builder
from evomerge.merging.methods import Average, Breadcrumbs, Dare, DareTies, Della, Linear, NuSlerp, Slerp, Ties
from evomerge.space.coefficients import make_space
from evomerge.task_vectors.dense import DenseDelta
from tests.kit.methods import merged, plainly, site_of

SUMS: dict[str, Any] = {
    "linear": Linear(),
    "ties": Ties(),
    "ties by count": Ties(elect="count"),
    "ties over groups": Ties(over="group"),
    "dare": Dare(seed=3),
    "dare_ties": DareTies(seed=3),
    "della": Della(seed=3),
    "della summed": Della(seed=3, elect=None),
    "breadcrumbs": Breadcrumbs(gamma=0.1),
    "breadcrumbs elected": Breadcrumbs(gamma=0.1, elect="sum", over="group"),
}
DRAWN = [name for name, method in SUMS.items() if method.form.keep in ("drawn", "ranked")]
DENSE = [name for name in SUMS if name != "linear"]
laws = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this is asked of both forms."""
    if request.param == "plain":
        plainly(monkeypatch)


def drawn(seed: int, rows: int = 3, size: int = 60) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, generator=generator), torch.randn(rows, size, generator=generator)


@pytest.mark.parametrize("name", SUMS)
@laws
@given(seed=st.integers(0, 10_000), density=st.floats(0, 1))
def test_weight_zero_is_the_base(name: str, seed: int, density: float) -> None:
    base, deltas = drawn(seed)
    assert torch.equal(merged(SUMS[name], deltas, [0.0] * 3, [density] * 3, base), base)


@pytest.mark.parametrize("name", SUMS)
@laws
@given(seed=st.integers(0, 10_000))
def test_one_alone_with_all_of_it_is_the_expert(name: str, seed: int) -> None:
    base, deltas = drawn(seed)
    assert torch.equal(merged(SUMS[name], deltas, [0.0, 1.0, 0.0], [1.0] * 3, base), base + deltas[1])


@pytest.mark.parametrize("name", SUMS)
@laws
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_homogeneous_and_odd(name: str, seed: int, scale: float) -> None:
    """A power of two changes no rounding. Equal counts of both signs are a plus, which is not odd."""
    _, deltas = drawn(seed)
    given = [1.0, 0.5, 0.7], [0.5, 0.6, 0.7]
    found = merged(SUMS[name], deltas, *given)
    assert torch.equal(merged(SUMS[name], deltas * scale, *given), found * scale)
    if name != "ties by count":
        assert torch.equal(merged(SUMS[name], -deltas, *given), -found)


@pytest.mark.parametrize("name", DENSE)
@laws
@given(seed=st.integers(0, 10_000), density=st.tuples(st.floats(0, 1), st.floats(0, 1)).map(sorted))
def test_nested_in_the_density(name: str, seed: int, density: list[float]) -> None:
    _, deltas = drawn(seed, 1)
    few, many = (merged(SUMS[name], deltas, [1.0], [each]) != 0 for each in density)
    if name.startswith("breadcrumbs"):
        assert few.sum() <= many.sum()  # with many, fewer of the largest are left out
    else:
        assert torch.all(few <= many)


@pytest.mark.parametrize(("name", "kept"), [("ties", 1.0), ("breadcrumbs", 1.0), ("breadcrumbs elected", 1.0)])
@laws
@given(count=st.integers(0, 60), seed=st.integers(0, 10_000), equal=st.booleans())
def test_exactly_so_many_are_kept(name: str, kept: float, count: int, seed: int, equal: bool) -> None:
    """floor(density · n), also where all elements are equal; of the largest, floor(gamma · n) are left out if that many
    are not kept.
    """
    _, deltas = drawn(seed, 1)
    deltas = torch.ones_like(deltas) if equal else deltas
    found = merged(SUMS[name], deltas, [kept], [count / 60])[:]
    assert int((found != 0).sum()) == count
    top = min(6, 60 - count) if name.startswith("breadcrumbs") and count < 60 else 0
    order = torch.argsort(deltas[0].abs(), descending=True, stable=True)
    assert torch.all(found[order[top : top + count]] != 0)


@pytest.mark.parametrize("name", ["dare", "dare_ties", "della", "della summed", "linear"])
def test_pieces_of_a_parameter_are_merged_as_the_whole(name: str) -> None:
    """Draws depend on the place in the parameter, ranks on the row of 12 elements."""
    base, deltas = drawn(7)

    def of(place: slice) -> Tensor:
        site = site_of(base[place], [DenseDelta(delta[place]) for delta in deltas], width=12, start=place.start)
        given = {"weight": np.full((1, 3), 0.7), "density": np.full((1, 3), 0.4)}
        Builder([site], SUMS[name]).build(given)
        return site.live

    assert torch.equal(of(slice(0, 60)), torch.cat([of(slice(0, 24)), of(slice(24, 60))]))


def test_a_density_over_a_group() -> None:
    """Half of two tensors: the larger one whole, and nothing of the other (Yadav et al. 2023 trim over all)."""
    a, b = torch.tensor([10.0, -9, 8, 7]), torch.tensor([0.4, -0.3, 0.2, 0.1])
    given = {"weight": np.ones((1, 1)), "density": np.full((1, 1), 0.5)}
    for over, wanted in (("group", [a.tolist(), [0.0] * 4]), ("tensor", [[10, -9, 0, 0], [0.4, -0.3, 0, 0]])):
        sites = [site_of(torch.zeros(4), [DenseDelta(delta)]) for delta in (a, b)]
        Builder(sites, Ties(over=over)).build(given)
        for site, expected in zip(sites, wanted, strict=True):
            torch.testing.assert_close(site.live, torch.tensor(expected, dtype=torch.float32))


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.2, [0, 0, 0, -4, 5, -6, 7, -8, 0, 0]), (0.01, [0, 0, 0, 0, 0, -6, 7, -8, 9, -10])],
)
def test_breadcrumbs_by_hand(gamma: float, expected: list[float]) -> None:
    """A share of less than one element leaves none out."""
    delta = torch.tensor([[1.0, -2, 3, -4, 5, -6, 7, -8, 9, -10]])
    assert merged(Breadcrumbs(gamma), delta, [1.0], [0.5]).tolist() == expected


def test_dare_divides_by_the_density() -> None:
    """Yu et al. 2024: 1/(1 − p) of what is kept, and what is kept as it is without a rescale."""
    delta = torch.tensor([[4.0, -1, 2, -3] * 50])
    for rescale, factor in ((True, 2.0), (False, 1.0)):
        found = merged(Dare(rescale=rescale), delta, [1.0], [0.5])
        assert torch.equal(found[found != 0], (delta[0] * factor)[found != 0])
        assert 60 < int((found != 0).sum()) < 140


def test_rows_of_dare_meet_as_often_as_chance_has_it() -> None:
    """Of three rows of which a tenth is kept, 1 − .9³ − 3 · .1 · .9² = .028 of the elements have two or more."""
    deltas = torch.tensor([1.0, 10.0, 100.0])[:, None].expand(3, 200_000).contiguous()
    found = merged(Dare(rescale=False), deltas, [1.0] * 3, [0.1] * 3)
    several = ~torch.isin(found, torch.tensor([0.0, 1.0, 10.0, 100.0]))
    assert abs(float(several.float().mean()) - 0.028) < 0.0015


def test_della_by_hand() -> None:
    """Deep et al. 2024: chances from density − epsilon to density + epsilon by rank in a row, and division by them."""
    delta = torch.tensor([1.0, -5, 3, 2, 0.4, 0.1, -0.2, 0.3])
    kept = torch.tensor([3.333333, -7.142857, 5.294118, 4.615385, 0.571429, 0.333333, -0.461538, 0.529412])
    seen, total, seeds = torch.zeros(8, dtype=torch.bool), torch.zeros(8), 400
    for seed in range(seeds):
        site = site_of(torch.zeros(8), [DenseDelta(delta)], width=4)
        given = {"weight": np.ones((1, 1)), "density": np.full((1, 1), 0.5)}
        Builder([site], Della(epsilon=0.2, seed=seed)).build(given)
        here = site.live != 0
        torch.testing.assert_close(site.live[here], kept[here], atol=1e-5, rtol=1e-5)
        seen, total = seen | here, total + site.live
    assert seen.all()
    torch.testing.assert_close(total / seeds, delta, atol=0, rtol=0.25)


@pytest.mark.parametrize(
    ("t", "expected"), [(0.0, [1, 0]), (0.25, [0.92388, 0.765367]), (0.5, [0.707107, 1.414214]), (1.0, [0, 2])]
)
def test_slerp_by_hand(t: float, expected: list[float]) -> None:
    """Between (1, 0) and (0, 2), which are not of one length (Shoemake 1985, section 3.3)."""
    base, expert = torch.tensor([1.0, 0]), torch.tensor([0.0, 2])
    found = merged(Slerp(), (expert - base)[None], [t], base=base)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=1e-6, rtol=1e-5)


def test_slerp_is_no_straight_line() -> None:
    """Halfway over 60 degrees, where the line has (.75, .433)."""
    base, expert = torch.tensor([1.0, 0]), torch.tensor([0.5, 0.8660254])
    torch.testing.assert_close(merged(Slerp(), (expert - base)[None], [0.5], base=base), torch.tensor([0.866025, 0.5]))


@pytest.mark.parametrize(
    ("pair", "weight", "expected"),
    [
        (([1.0, 0, 0, 2], [0.0, 1, 3, 4]), [1.0, 1.0], [0.542064, 0.542064, 1.626191, 3.252382]),
        (([1.0, 0], [0.0, 2]), [1.0, 3.0], [0.382683, 1.847759]),
        (([1.0, 2], [2.0, 4]), [1.0, 3.0], [1.75, 3.5]),
        (([1.0, 0], [0.0, 2]), [0.0, 0.0], [0.707107, 1.414214]),
    ],
)
@pytest.mark.parametrize("deltas", [False, True])
def test_nuslerp_by_hand(pair: Any, weight: list[float], expected: list[float], deltas: bool) -> None:
    """Of models, and of differences to a base, which is added again."""
    models = torch.tensor(pair)
    base = torch.full((models.shape[1],), 0.5)
    rows = models if deltas else models - base
    wanted = torch.tensor(expected) + (base if deltas else 0)
    torch.testing.assert_close(merged(NuSlerp(deltas), rows, weight, base=base), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [Slerp(), NuSlerp(), NuSlerp(deltas=True)], ids=["slerp", "nuslerp", "deltas"])
@laws
@given(seed=st.integers(0, 10_000))
def test_both_ends_of_a_circle(method: Any, seed: int) -> None:
    base, deltas = drawn(seed, method.takes)
    near: Callable[..., None] = torch.testing.assert_close
    if method.takes == 1:
        near(merged(method, deltas, [0.0], base=base), base, atol=1e-5, rtol=1e-5)
        near(merged(method, deltas, [1.0], base=base), base + deltas[0], atol=1e-5, rtol=1e-5)
    else:
        near(merged(method, deltas, [0.8, 0.0], base=base), base + deltas[0], atol=1e-5, rtol=1e-5)
        near(merged(method, deltas, [0.0, 0.3], base=base), base + deltas[1], atol=1e-5, rtol=1e-5)


@laws
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([0.25, 2.0, 8.0]))
def test_an_average_is_of_the_models_and_the_scale_of_its_weights_means_nothing(seed: int, scale: float) -> None:
    base, deltas = drawn(seed, 2)
    ours = merged(Average(), deltas, [1.0, 3.0], base=base)
    torch.testing.assert_close(ours, base + (deltas[0] + 3 * deltas[1]) / 4)
    assert torch.equal(merged(Average(), deltas, [scale, 3 * scale], base=base), ours)
    torch.testing.assert_close(merged(Average(), deltas, [0.0, 0.7], base=base), base + deltas[1])


def test_an_average_counts_the_base_where_it_is_a_row() -> None:
    """A row without a difference is the base; weights that sum to nothing give no model."""
    site = site_of(torch.ones(8), [DenseDelta(torch.full((8,), 4.0))])
    Builder([site], Average()).build({"weight": np.array([[1.0, 3.0]])})
    assert site.live.tolist() == [(5.0 + 3.0) / 4] * 8
    with pytest.raises(MergeError, match="sum to 0"):
        Builder([site], Average()).build({"weight": np.array([[1.0, -1.0]])})


def test_sixteen_bits_are_summed_in_float32() -> None:
    """Four steps of 2⁻⁹ on 1 in bfloat16, each of which alone is lost in rounding."""
    site = site_of(torch.ones(8).bfloat16(), [DenseDelta(torch.full((8,), 1 / 512))] * 4, torch.bfloat16)
    Builder([site], Linear()).build({"weight": np.ones((1, 4))})
    assert site.live.float().tolist() == [1.0078125] * 8


def test_where_weights_count_without_a_task_vector() -> None:
    """A sum that is divided by all weights is another one where a row's weight is held at 0."""
    assert NuSlerp().counts_zero
    assert Average().counts_zero
    assert Dare(normalize=True).counts_zero
    assert not Linear().counts_zero
    assert not Ties(normalize=True).counts_zero


@pytest.mark.parametrize("bounds", [(0.5, 2), (-0.1, 0.5)])
def test_a_density_is_a_share(bounds: tuple[float, float]) -> None:
    with pytest.raises(SpaceError, match="it is a share: write two numbers from 0 to 1"):
        make_space("model", {"p": (4,)}, ["a"], Dare.variables, bounds={"density": bounds})
