"""Weights that sum to a number, or lie between -1 and 1: made of amounts, with a gradient back to these."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evomerge.common.errors import SpaceError
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable

SHAPES = {"emb.weight": (5, 2), **{f"h.{i}.attn.weight": (3, 2) for i in range(3)}}
WEIGHT, DENSITY = Variable("weight", 0.0, 1.5, 0.4), Variable("density", 0.1, 1.0, 0.5, share=True)


def space_of(granularity: str = "layer", total: float | None = 1.0, **more: Any) -> CoefficientSpace:
    return make_space(granularity, SHAPES, ["a", "b", "c"], [WEIGHT, DENSITY], total=total, **more)


@given(
    st.integers(0, 1000),
    st.sampled_from(["model", "layer", "line"]),
    st.sampled_from([1.0, 0.3, 2.0]),
    st.sampled_from([0.0, -0.5]),
)
@settings(max_examples=30, deadline=None)
def test_weights_sum_and_come_back(seed: int, granularity: str, total: float, low: float) -> None:
    space = space_of(granularity, total, bounds={"weight": (low, 1.5)})
    x = np.random.default_rng(seed).uniform(space.low, space.high)
    found = space.decode(x)
    np.testing.assert_allclose(found["weight"].sum(axis=1), total)
    if granularity != "line":
        again = space.decode(space.start(found))
        np.testing.assert_allclose(again["weight"], found["weight"])
        np.testing.assert_allclose(again["density"], found["density"])


def test_a_constant_is_the_same_share_for_all() -> None:
    space = space_of(zero=frozenset({("c", "emb.weight")}))
    for weight in (0.2, 1.2):
        found = space.decode(space.start({"weight": weight}))["weight"]
        np.testing.assert_allclose(found, [[0.5, 0.5, 0], *[[1 / 3] * 3] * 3])
    np.testing.assert_allclose(space.decode(np.zeros(space.dim))["weight"], found)  # amounts that sum to nothing


def test_amounts_stay_in_their_bounds() -> None:
    """One of many experts alone would need a larger amount than there is."""
    space = make_space("model", SHAPES, list("abcdefgh"), [WEIGHT], total=1.0)
    wanted = np.array([[0.9, 0.1, 0, 0, 0, 0, 0, 0]])
    x = space.start({"weight": wanted})
    assert x.max() <= 1.5
    np.testing.assert_allclose(space.decode(x)["weight"], wanted)


@given(st.integers(0, 1000), st.sampled_from([{}, {"bounds": {"weight": (-1, 1.5)}}, {"total": None, "onto": "tanh"}]))
@settings(max_examples=30, deadline=None)
def test_the_gradient_is_that_of_the_weights(seed: int, more: dict[str, Any]) -> None:
    zero = frozenset({("c", "emb.weight")})
    space, rng = space_of(tied=["weight/*/a"], zero=zero, **more), np.random.default_rng(seed)
    x, slopes = rng.uniform(0.2, 0.9, space.dim), {name: rng.normal(size=(4, 3)) for name in ("weight", "density")}

    def loss(point: np.ndarray) -> float:
        return sum(float((slopes[name] * values).sum()) for name, values in space.decode(point).items())

    steps = 1e-6 * np.eye(space.dim)
    numeric = [(loss(x + step) - loss(x - step)) / 2e-6 for step in steps]
    np.testing.assert_allclose(space.pullback(slopes, x), numeric, atol=1e-6)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"frozen": {"weight/emb*/a": 0.3}}, r"weight/embeddings/a is held at 0\.3: leave out space\.sum, or hold"),
        ({"only": ["*/h.0/*"]}, r"is held at 0\.4: leave out"),
        ({"sharing": "shared"}, r"all experts share one weight: leave out"),
        (
            {"bounds": {"weight": (-0.5, 1.5)}, "tied": [{"a": 1, "b": 2}]},
            r"no factor in space\.tied would hold: write names",
        ),
        ({"tied": [{"a": 1, "b": -1}]}, r"a share of amounts below 0 has no bound: .*factors above 0"),
        ({"onto": "tanh"}, r"tanh gives weights any sum, and space\.sum=1: leave one of them out"),
        ({"onto": "sinh", "total": None}, r"Unknown map 'sinh'.*tanh"),
        (
            {"onto": "tanh", "total": None, "bounds": {"weight": (0, 1)}},
            r"between -1 and 1, and their bounds are \[0, 1\]",
        ),
        ({"total": 0.0}, r"weights cannot sum to 0: write a number above 0, such as space\.sum=1"),
    ],
)
def test_what_is_refused(more: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space_of(**more)


@pytest.mark.parametrize(
    ("rows", "more"),
    [
        (["merged"], {}),  # what iso_c, wudi and unified make
        (["merged"], {"bounds": {"weight": (-0.5, 1.5)}}),
        (["a", "b"], {"tied": [{"a": 1, "b": 1}]}),
        (["a", "b"], {"frozen": {"weight/*/b": 0}}),
    ],
)
def test_a_sum_that_leaves_nothing_to_search_is_refused(rows: list[str], more: dict[str, Any]) -> None:
    with pytest.raises(SpaceError, match=r"so all points are the same model: leave out space\.sum"):
        make_space("layer", SHAPES, rows, [WEIGHT], total=1.0, **more)
    assert make_space("layer", SHAPES, rows, [WEIGHT, DENSITY], total=1.0, **more).dim > 1  # a density moves


def test_an_expert_may_be_left_out() -> None:
    space = space_of("model", frozen={"weight/*/a": 0})
    assert space.decode(np.array([1.0, 0.5, 0.5, 0.5, 0.5]))["weight"].tolist() == [[0, 1.0 / 1.5, 0.5 / 1.5]]


def test_weights_of_both_signs_are_the_nearest_with_their_sum() -> None:
    space = space_of("model", bounds={"weight": (-0.5, 1.5)}, frozen={"weight/*/c": 0})
    weight = space.decode(np.concatenate([[1.5, -0.5], np.full(3, 0.5)]))["weight"]
    np.testing.assert_allclose(weight, [[1.5, -0.5, 0]])
    weight = space.decode(np.concatenate([[0.9, -0.3], np.full(3, 0.5)]))["weight"]
    np.testing.assert_allclose(weight, [[1.1, -0.1, 0]])  # both moved by 0.2
    np.testing.assert_allclose(space.decode(space.start({"weight": 1.2}))["weight"], [[0.5, 0.5, 0]])
    assert space.onto is not None
    whole = space_of("model", bounds={"weight": (-0.5, 1.5)})
    corner = whole.decode(np.concatenate([[1.5, -0.5, -0.5], np.full(3, 0.5)]))["weight"]
    assert corner.max() == pytest.approx(space.onto.largest(whole.weight, 3)) == 1 / 3 + 2 * 2 / 3
    near = Variable("weight", -0.1, 0.1, 0.0)
    assert space.onto.largest(near, 3) == 1  # where all others have no task vector, one alone has the whole sum
    with pytest.raises(SpaceError, match=r"which is outside of the bounds of weight, \[-0\.5, 1\.5\]"):
        whole.start({"weight": np.array([[2.0, -1.0, 0.0]])})


def test_tanh_keeps_weights_below_one_and_holds_them() -> None:
    space = space_of("model", None, onto="tanh", frozen={"weight/*/c": 0.2})
    assert space.weight.high == 0.99
    x = space.start({"weight": 0.3})
    assert x[:2] == pytest.approx([0.309520, 0.309520], abs=1e-6)
    assert space.decode(x)["weight"][0] == pytest.approx([0.3, 0.3, 0.2])
    assert space.decode(space.high)["weight"][0, 0] == pytest.approx(0.99)
    assert space.decode(space.nearest({"weight": 1.2}))["weight"][0, 0] == pytest.approx(0.99)
    with pytest.raises(SpaceError, match=r"start at 0\.995 for weight/model/a, .* \[0, 0\.99\]"):
        space.start({"weight": 0.995})
