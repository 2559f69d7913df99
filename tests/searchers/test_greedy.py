"""The greedy soup, on values that a table gives: which experts it takes, and which settings it refuses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from evomerge.common.errors import ConfigError
from evomerge.merging.methods import Ties
from evomerge.searchers.greedy import Greedy
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable
from tests.kit.searching import drive, points

SHAPES = {"layers.0.w": (2,), "layers.1.w": (2,)}
WEIGHT = Variable("weight", 0.0, 1.5, 0.4)


def space_of(granularity: str = "model", variables: Any = (WEIGHT,), **more: Any) -> CoefficientSpace:
    return make_space(granularity, SHAPES, ["a", "b", "c", "d"], variables, **more)


def taken(space: CoefficientSpace, x: np.ndarray) -> str:
    weights = space.decode(x)["weight"]
    return "".join(row for row, column in zip(space.rows, weights.T, strict=True) if column.any())


@pytest.mark.parametrize("granularity", ["model", "layer", "line"])
def test_experts_stay_if_the_value_does_not_fall(granularity: str) -> None:
    """c is best; then b lowers it, a leaves it as it is and stays, and d with both raises it."""
    values = {"a": 2.0, "b": 3.0, "c": 4.0, "d": 1.0, "bc": 3.9, "ac": 4.0, "acd": 5.0}
    space = space_of(granularity)
    searcher = Greedy(space, space.start({"weight": 0.4}), 0)
    asked: list[str] = []

    def value(x: np.ndarray) -> float:
        asked.append(taken(space, x))
        return values[asked[-1]]

    drive(searcher, value, 100)
    assert asked == ["a", "b", "c", "d", "bc", "ac", "acd"]
    soup = searcher.incumbents()["soup"]
    assert taken(space, soup.x) == "acd"
    assert soup.trial == (3, 0)
    assert space.decode(soup.x)["weight"][:, [0, 2, 3]] == pytest.approx(0.4)


def test_experts_that_fail_are_not_tried_again() -> None:
    space = space_of()
    searcher = Greedy(space, space.start({}), 0)
    found: list[str] = []

    def value(x: np.ndarray) -> float | None:
        found.append(taken(space, x))
        return {"a": None, "b": float("nan"), "c": 1.0, "d": 0.5}.get(found[-1])

    drive(searcher, value, 100)
    assert found == ["a", "b", "c", "d", "cd"]
    assert taken(space, searcher.incumbents()["soup"].x) == "c"


def test_other_variables_stay_as_they_are() -> None:
    space = space_of(variables=Ties().variables)
    asked = points(drive(Greedy(space, space.start({"weight": 0.4, "density": 0.3}), 0), lambda x: float(x.sum()), 100))
    for x in asked:
        assert space.decode(x)["density"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("space", "start", "message"),
    [
        (space_of(sharing="shared"), 0.4, "is a coefficient of several: leave out space.sharing=shared"),
        (space_of(bounds={"weight": (0.1, 1.0)}), 0.4, "outside of the bounds of weight/model/a: write space.bounds"),
        (space_of(), 0.0, "would take a with a weight of 0: write start=0.4"),
        (space_of(bounds={"weight": (-0.5, 1.0)}, total=1.0), 0.4, "moves all weights of a group: write space.bounds"),
    ],
)
def test_what_cannot_be_left_out_or_taken_is_refused(space: CoefficientSpace, start: float, message: str) -> None:
    with pytest.raises(ConfigError, match=message.replace(".", r"\.")):
        Greedy(space, space.start({"weight": start}), 0)
