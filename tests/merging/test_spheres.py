"""Averages on a sphere: numbers worked out by hand, and the same formulas on the elements."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError, MergeError
from evomerge.merging.builder import Builder
from evomerge.merging.methods import Karcher, MultiSlerp
from evomerge.task_vectors.dense import DenseDelta
from tests.kit.methods import merged, plainly, site_of

AXES = ([1.0, 0], [0.0, 2])


@pytest.fixture(params=["compiled", "plain"], autouse=True)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of this is asked of both forms."""
    if request.param == "plain":
        plainly(monkeypatch)


def models(rows: object, base: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A base, and the differences of models to it."""
    found = torch.tensor(rows)
    base = torch.full((found.shape[1],), 0.5) if base is None else base
    return base, found - base


@pytest.mark.parametrize(
    ("rows", "weight", "expected"),
    [
        (AXES, [1.0, 1.0], [1.06066, 1.06066]),
        (AXES, [0.25, 0.75], [0.669696, 1.616789]),
        (AXES, [0.5, 1.5], [0.669696, 1.616789]),
        (AXES, [0.0, 0.7], [0, 2]),
        (([1.0, 0, 0], [0.0, 1, 0], [0.0, 0, 1]), [1.0, 1.0, 1.0], [0.57735] * 3),
        (([1.0, 0], [0.0, 0]), [1.0, 1.0], [0.5, 0]),
        (([1.0, 0], [-1.0, 0]), [1.0, 1.0], [1, 0]),
    ],
)
def test_karcher_by_hand(rows: object, weight: list[float], expected: list[float]) -> None:
    base, deltas = models(rows)
    found = merged(Karcher(), deltas, weight, base=base)
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float32), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("deltas", [False, True])
@pytest.mark.parametrize(
    ("rows", "weight", "expected"),
    [
        (AXES, [1.0, 3.0], [0.553399, 1.660196]),
        (AXES, [0.25, 0.75], [0.553399, 1.660196]),
        (AXES, [0.7, 0.0], [1, 0]),
        (([1.0, 0], [-3.0, 0]), [1.0, 1.0], [-1, 0]),
    ],
)
def test_multislerp_by_hand(rows: object, weight: list[float], expected: list[float], deltas: bool) -> None:
    """Of models, and of differences to a base, which is added again; of two that are opposite, the straight average."""
    base, own = models(rows)
    found = merged(MultiSlerp(deltas), torch.tensor(rows) if deltas else own, weight, base=base)
    wanted = torch.tensor(expected, dtype=torch.float32) + (base if deltas else 0)
    torch.testing.assert_close(found, wanted, atol=1e-6, rtol=1e-5)


def test_the_same_on_the_elements() -> None:
    """Karcher's steps on vectors, in place of what their inner products say."""
    generator = torch.Generator().manual_seed(2)
    rows, shares = torch.randn(4, 50, generator=generator).double(), torch.tensor([0.1, 0.2, 0.3, 0.4]).double()
    lengths = rows.norm(dim=1)
    units = rows / lengths[:, None]
    mean = shares @ units
    multi = mean / mean.norm() * (shares @ lengths)
    mean = mean / mean.norm()
    for _ in range(10):
        near = units @ mean
        tangent = (shares * near.acos() / (1 - near**2).sqrt()) @ (units - near[:, None] * mean)
        mean = tangent.norm().cos() * mean + tangent.norm().sin() * tangent / tangent.norm()
    base, deltas = torch.zeros(50), rows.float()
    torch.testing.assert_close(merged(Karcher(), deltas, [1, 2, 3, 4], base=base), (shares @ lengths * mean).float())
    torch.testing.assert_close(merged(MultiSlerp(), deltas, [1, 2, 3, 4], base=base), multi.float())


def test_a_row_without_a_delta_is_the_base() -> None:
    base, expert = torch.tensor([0.0, 2]), torch.tensor([1.0, 0])
    site = site_of(base, [DenseDelta(expert - base)])
    for method, expected in ((Karcher(), [0.669696, 1.616789]), (MultiSlerp(False), [0.553399, 1.660196])):
        Builder([site], method).build({"weight": np.array([[0.25, 0.75]])})
        torch.testing.assert_close(site.live, torch.tensor(expected), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("method", [Karcher(), MultiSlerp()])
def test_weights_that_sum_to_nothing_give_no_model(method: Karcher | MultiSlerp) -> None:
    base, deltas = models(AXES)
    with pytest.raises(MergeError, match="sum to 0, and shares are of their sum"):
        merged(method, deltas, [1.0, -1.0], base=base)
    assert method.counts_zero


def test_what_has_no_average_is_refused() -> None:
    three = torch.tensor([[1.0, 0], [-2.0, 0], [0.0, 0]])
    with pytest.raises(MergeError, match="directions of a tensor cancel"):
        merged(MultiSlerp(), three, [1.0, 1.0, 1.0])
    with pytest.raises(ConfigError, match="karcher has steps=0 and tolerance=1e-05: write a whole number from 1 on"):
        Karcher(steps=0)
