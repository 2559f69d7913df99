from __future__ import annotations

import math
from functools import reduce
from operator import add

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from evomerge.inspection import geometry
from evomerge.inspection.geometry import Geometry, measure
from evomerge.models.checkpoint import open_checkpoint
from tests.kit.models import SHAPES, Family, drawn, saved, tuned
from tests.kit.vectors import anonymous_memory

NUMBERS = st.integers(-3, 3).map(float)
"""Few values, so that zeros, ties and equal signs are common."""


def of(rows: np.ndarray, cutoff: float = 0.0) -> Geometry:
    return geometry.geometry(torch.from_numpy(rows), torch.full((len(rows) - 1,), cutoff))


def measured(family: Family, **kwargs) -> dict[str, Geometry]:
    base, *experts = family.open()
    return measure(base, experts, SHAPES, **kwargs)


def stacked(family: Family) -> np.ndarray:
    """The base and all task vectors, written out: float32 (1 + K, n)."""
    base = np.concatenate([family.base[name].float().numpy().ravel() for name in SHAPES])
    deltas = [
        np.concatenate(
            [
                ((held[name] if held[name] is not None else family.base[name]).float() - family.base[name])
                .numpy()
                .ravel()
                for name in SHAPES
            ]
        )
        for held in family.experts.values()
    ]
    return np.stack([base, *deltas])


@settings(max_examples=50, deadline=None)
@given(rows=arrays("float32", (4, 6), elements=NUMBERS), cutoff=st.sampled_from([0.0, 2.0, 9.0]))
def test_everything_as_counted_by_hand(rows, cutoff):
    found, deltas = of(rows, cutoff), rows[1:].astype(float)
    assert found.elements == 6
    assert np.array_equal(found.gram, rows.astype(float) @ rows.T.astype(float))
    assert found.norms == pytest.approx(np.linalg.norm(deltas, axis=1))
    assert found.changed == pytest.approx((deltas != 0).mean(1))
    for signs, kept in ((found.signs, deltas), (found.top, np.where(abs(deltas) >= cutoff, deltas, 0))):
        for j, a in enumerate(kept):
            for k, b in enumerate(kept):
                assert signs.shared[j, k] == sum((a != 0) & (b != 0))
                assert signs.opposite[j, k] == sum(a * b < 0)
        held = [column[column != 0] for column in kept.T]
        several = [column for column in held if len(column) > 1]
        assert signs.several == len(several)
        assert signs.conflicts == sum(column.min() < 0 < column.max() for column in several)
        assert signs.chance == pytest.approx(sum(1 - 2.0 ** (1 - len(column)) for column in several))


@settings(max_examples=50, deadline=None)
@given(rows=arrays("float32", (3, 5), elements=NUMBERS), split=st.integers(0, 5))
def test_parts_add_up(rows, split):
    whole, parts = of(rows), of(rows[:, :split]) + of(rows[:, split:])
    assert whole.elements == parts.elements
    assert np.array_equal(whole.gram, parts.gram)
    for one, other in ((whole.signs, parts.signs), (whole.top, parts.top)):
        assert np.array_equal(one.shared, other.shared)
        assert np.array_equal(one.opposite, other.opposite)
        assert (one.several, one.conflicts, one.chance) == (other.several, other.conflicts, other.chance)


def test_kinship_by_hand():
    rows = np.array([[0, 0, 0, 0, 0, 0], [3, -1, 2, 0, -4, 1], [-1, -2, -2, 5, 4, 1]], dtype=np.float32)
    found = of(rows)
    assert (found.pearson[0, 1], found.distances[0, 1]) == pytest.approx((-0.54824, 11.045361), abs=1e-5)
    expected = np.corrcoef(rows[1:].astype(float))
    assert found.pearson == pytest.approx(expected)
    assert found.distances[0, 1] == pytest.approx(np.linalg.norm(rows[1] - rows[2]))
    halves = of(rows[:, :2]) + of(rows[:, 2:])
    assert halves.pearson == pytest.approx(expected)
    constant = of(np.array([[0, 0, 0], [1, 1, 1], [1, 2, 3]], dtype=np.float32))
    assert np.isnan(constant.pearson[0, 1])


def test_cosines_ratios_and_shares():
    found = of(np.array([[3, 4], [1, 0], [1, 1], [-2, 0], [0, 0]], dtype=np.float32))
    assert found.ratios == pytest.approx([0.2, math.sqrt(2) / 5, 0.4, 0])
    half = math.sqrt(0.5)
    expected = [[1, half, -1, math.nan], [half, 1, -half, math.nan], [-1, -half, 1, math.nan], [math.nan] * 4]
    assert found.cosines == pytest.approx(np.array(expected), nan_ok=True)
    assert found.signs.pairs[0] == pytest.approx([0, 0, 1, math.nan], nan_ok=True)
    assert found.signs.shares == (1, 0.75)  # one element, three experts: two signs in three of four draws


def test_nothing_to_compare():
    found = of(np.zeros((3, 4), dtype=np.float32))
    assert np.isnan(found.ratios).all()
    assert np.isnan(found.cosines).all()
    assert all(math.isnan(share) for share in found.signs.shares)
    assert of(np.ones((1, 4), dtype=np.float32)).cosines.shape == (0, 0)


@pytest.mark.parametrize("block", [7, 1 << 15])
def test_parameters_as_numpy_has_them(tmp_path, monkeypatch, block):
    monkeypatch.setattr(geometry, "CHUNK", block)
    family = Family(tmp_path, a={}, b=tuned(drawn(0), 2), c={"layers.0.bias": None, "extra": torch.ones(3)})
    tensors, rows = measured(family), stacked(family)
    assert list(tensors) == list(SHAPES)
    whole = reduce(add, tensors.values())
    assert whole.elements == rows.shape[1]
    assert whole.gram == pytest.approx(rows.astype(float) @ rows.T.astype(float))
    assert tensors["layers.0.bias"].norms[2] == 0
    assert whole.cosines[0, 1] == pytest.approx(np.corrcoef(rows[1:3])[0, 1], abs=0.02)


@pytest.mark.parametrize("density", [0.2, 0.5, 1.0])
def test_the_largest_are_those_of_the_whole_task_vector(tmp_path, density):
    family = Family(tmp_path, a=tuned(drawn(0), 5) | {"norm.weight": drawn(0)["norm.weight"] + 50}, b={})
    tensors, rows = measured(family, density=density), stacked(family)
    kept = np.diag(reduce(add, tensors.values()).top.shared)
    assert kept == pytest.approx([density * rows.shape[1]] * 2, rel=0.03)
    assert tensors["norm.weight"].top.shared[0, 0] == 8  # its eight are the largest of all


def test_few_changes_are_all_among_the_largest(tmp_path):
    base = drawn(0)
    family = Family(tmp_path, a=base | {"norm.weight": base["norm.weight"] + torch.eye(8)[0]})
    whole = reduce(add, measured(family).values())
    assert whole.signs.shared.item() == whole.top.shared.item() == 1


def test_equal_magnitudes_are_kept_together(tmp_path):
    base = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    saved(tmp_path / "base", base)
    saved(tmp_path / "a", {name: torch.ones(shape) for name, shape in SHAPES.items()})
    opened = [open_checkpoint(tmp_path / name, SHAPES) for name in ("base", "a")]
    (one,) = {int(one.top.shared.item()) / one.elements for one in measure(opened[0], opened[1:], SHAPES).values()}
    assert one in (0, 1)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_subtraction_in_float32(tmp_path, dtype):
    family = Family(tmp_path, a={name: tensor.to(dtype) for name, tensor in tuned(drawn(0), 1).items()})
    whole, rows = reduce(add, measured(family).values()), stacked(family)
    assert whole.norms[0] == pytest.approx(float(np.linalg.norm(rows[1].astype(float))), rel=1e-12)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_stays_with_its_expert(tmp_path, value):
    broken = drawn(0)["layers.0.weight"].index_fill(0, torch.tensor([1]), value)
    family = Family(tmp_path, a={}, b={"layers.0.weight": broken})
    whole = reduce(add, measured(family).values())
    assert np.isfinite(whole.norms).tolist() == [True, False]
    assert np.isfinite(whole.gram[:2, :2]).all()
    assert np.isnan(whole.cosines[0, 1])
    assert whole.signs.shared[1, 1] == whole.elements - (
        64 if math.isnan(value) else 56
    )  # the rest of that tensor is the base's


def test_progress_reaches_the_end(tmp_path):
    told = []
    measured(Family(tmp_path, a={}), progress=lambda what, done, total: told.append((done, total)))
    assert told[-1][0] == told[-1][1]
    assert sorted(told) == told


def test_memory_stays_small(tmp_path):
    """Neither a task vector nor a copy of a model is held, however large they are."""
    shapes = {f"layers.{i}.weight": (1024, 1024) for i in range(4)}
    for k, name in enumerate(("base", "a", "b")):
        saved(tmp_path / name, drawn(k, shapes=shapes))
    base, *experts = (open_checkpoint(tmp_path / name, shapes) for name in ("base", "a", "b"))
    measure(base, experts, {"layers.0.weight": (1024, 1024)})  # pays for what is set up lazily
    before, most = anonymous_memory(), 0

    def watch(what: str, done: int, total: int) -> None:
        nonlocal most
        most = max(most, anonymous_memory())

    measure(base, experts, shapes, progress=watch)
    assert most - before < 4 * 2**20  # a quarter of one model
