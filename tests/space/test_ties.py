"""Coordinates that move several coefficients, with signs and factors; and searches of some coefficients alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.common.errors import SpaceError
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.entries import tied_to
from evomerge.space.variable import Variable

SHAPES = {
    "emb.weight": (5, 2),
    **{f"h.{i}.{part}.weight": (3, 2) for i in range(2) for part in ("attn", "mlp")},
}
WEIGHT, DENSITY = Variable("weight", 0.0, 1.5, 0.4), Variable("density", 0.1, 1.0, 0.5, share=True)


def space_of(granularity: str = "layer", **settings: Any) -> CoefficientSpace:
    return make_space(granularity, SHAPES, ["a", "b", "c"], [WEIGHT], **settings)


@pytest.mark.parametrize("tie", [{"b": 1, "c": 1, "a": -1}, {"weight/*/b": 1, "weight/*/c": 1, "weight/*/a": -1}])
def test_an_analogy_is_one_weight(tie: dict[str, float]) -> None:
    """θ₀ + λ (τ_c + τ_b - τ_a), with one λ in the model, or in each group."""
    space = space_of("model", tied=[tie])
    assert len(space.names) == 1
    assert space.decode(np.array([0.5]))["weight"].tolist() == [[-0.5, 0.5, 0.5]]
    assert (space.low, space.high) == (0.0, 1.5)
    each = space_of("layer", tied=[tie])
    assert each.names == (("weight/embeddings/b", "weight/h.0/b", "weight/h.1/b") if "b" in tie else ("weight/*/b",))


def test_a_constant_is_that_of_the_coordinates() -> None:
    space = space_of(tied=[{"b": 1, "a": -0.5}])
    x = space.start({"weight": 0.4})
    np.testing.assert_allclose(x, 0.4)
    np.testing.assert_allclose(space.start(space.decode(x)), x)
    np.testing.assert_allclose(space.decode(x)["weight"], [[-0.2, 0.4, 0.4]] * 3)
    with pytest.raises(
        SpaceError, match=r"start at 0\.3 for weight/embeddings/a, .*\[0, 1\.5\].*weight: \[-0\.6, 1\.5\]"
    ):
        space.start({"weight": np.full((3, 3), 0.3)})


def test_a_gradient_comes_back_through_the_factors() -> None:
    space = space_of("model", tied=[{"b": 1, "c": 2, "a": -1}])
    assert space.pullback({"weight": np.array([[1.0, 10, 100]])}, np.zeros(1)).tolist() == [209]


def test_a_line_may_be_tied_with_signs() -> None:
    space = space_of("line", tied=[{"b": 1, "a": -1}])
    assert space.names == ("weight/shallow/b", "weight/shallow/c", "weight/deep/b", "weight/deep/c")
    np.testing.assert_allclose(space.start({"weight": 0.4}), 0.4)
    found = space.decode(np.array([0.2, 0, 0.6, 0]))["weight"]
    np.testing.assert_allclose(found, [[-0.2, 0.2, 0], [-0.2, 0.2, 0], [-0.6, 0.6, 0]])


def test_a_search_of_some_coefficients_alone() -> None:
    space = space_of("module", only=["*attention/*"], frozen={"weight/embeddings/*": 0.7})
    assert space.names == tuple(f"weight/h.{i}.attention/{row}" for i in range(2) for row in "abc")
    assert {name: value for name, value in space.frozen.items() if name.endswith("/a")} == {
        "weight/embeddings/a": 0.7,
        "weight/h.0.mlp/a": 0.4,
        "weight/h.1.mlp/a": 0.4,
    }
    some = make_space("layer", SHAPES, ["a", "b"], [WEIGHT, DENSITY], only=["*/h.1/*"])
    assert {name.split("/")[0] for name in some.names} == {"weight", "density"}
    assert some.frozen["density/h.0/a"] == 0.5


def test_which_coordinate_moves_an_entry() -> None:
    ties = ["weight/*/d", {"b": 1, "a": -1}, {"weight/h.0/e": 1, "weight/*/f": 2}]
    assert tied_to("weight/h.0/d", ties) == "weight/*/d"
    assert tied_to("weight/h.0/a", ties) == "weight/h.0/b"
    assert tied_to("weight/h.1/f", ties) == "weight/h.0/e"
    assert tied_to("weight/h.1/e", ties) is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tied": [{"a": 1, "b": 0}]}, r"tied: 'weight/embeddings/b' has the factor 0, and nothing would move it"),
        ({"tied": [{"a": 1, "d": 1}]}, r"tied: 'weight/embeddings/d' matches no entry"),
        ({"tied": [{"a": 1, "b": -1}, "weight/*/b"]}, r"tied: weight/embeddings/b is in 'weight/embeddings/a' and in"),
        ({"only": ["*attn*"]}, r"only: '\*attn\*' matches no entry"),
    ],
)
def test_what_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        space_of(**settings)


def test_a_share_has_no_sign() -> None:
    with pytest.raises(SpaceError, match="has the factor -1, and density is a share, so write one above 0, up to 1"):
        make_space("model", SHAPES, ["a", "b"], [DENSITY], tied=[{"density/*/a": 1, "density/*/b": -1}])
