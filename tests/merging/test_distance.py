"""How far a model lies from its base: the same number as by hand, whoever wrote into it."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from evomerge.merging.distance import relative, squares
from evomerge.merging.merger import Merger
from evomerge.merging.method import Method
from evomerge.merging.methods import DareTies, Linear, Ties
from evomerge.models.live import Turn
from evomerge.space.groups import make_groups
from tests.kit.tiny import Tiny, state, weights
from tests.merging.test_merger import vectors_of


def by_hand(now: dict[str, Tensor], base: dict[str, Tensor]) -> float:
    apart = sum(float((now[name].double() - base[name].double()).square().sum()) for name in base)
    return math.sqrt(apart / sum(float(base[name].double().square().sum()) for name in base))


@pytest.mark.parametrize("method", [Linear(), Ties(), DareTies()], ids=lambda m: m.name)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_distance_is_that_of_the_merged_weights(method: Method, dtype: torch.dtype) -> None:
    model = Tiny(dtype)
    vectors, before = vectors_of(model, zero=("embed.weight",)), state(model)
    groups = make_groups("layer", vectors.parameters)
    merger = Merger(model, vectors, groups, method)
    assert merger.distance() == 0
    for weight in (0.2, 0.9):  # a second one is not the first one's
        merger.apply(weights(len(groups), weight, weight, weight))
        assert merger.distance() == pytest.approx(by_hand(state(model), before), rel=1e-8)
    merger.restore()
    assert merger.distance() == 0


def test_it_is_right_whoever_wrote_last() -> None:
    model, turn = Tiny(torch.float32), Turn()
    vectors, before = vectors_of(model), state(model)
    groups = make_groups("model", vectors.parameters)
    one, other = (Merger(model, vectors, groups, Linear(), turn) for _ in range(2))
    one.apply(weights(1, 0.5, 0.5, 0.5))
    near = one.distance()
    assert other.distance() == near
    other.apply(weights(1, 1.5, 0.5, 0.5))
    assert one.distance() == other.distance() == pytest.approx(by_hand(state(model), before), rel=1e-8)
    name = next(iter(vectors.parameters))
    one.load([(name, before[name] * 2)])
    assert one.distance() == pytest.approx(by_hand(state(model), before), rel=1e-8)


def test_what_a_model_holds_rounded_is_held_against_the_base_rounded_alike() -> None:
    model = Tiny(torch.float32)
    vectors = vectors_of(model)
    live = Tiny(torch.bfloat16)
    live.load_state_dict(model.state_dict())
    merger = Merger(live, vectors, make_groups("model", vectors.parameters), Linear())
    assert merger.distance() == 0


def test_squares_are_added_up_in_float64_by_chunks() -> None:
    large = torch.full((200_003,), 1e-4, dtype=torch.bfloat16)
    large[0] = 256.0
    assert squares(large) == pytest.approx(float(large.double().square().sum()), rel=1e-12)
    assert squares(large, torch.zeros(200_003)) == squares(large)


@pytest.mark.parametrize("share", [0.1, 0.03, 1 / 3])
def test_the_mean_of_a_distance_over_items_is_the_distance(share: float) -> None:
    found = relative([share**2], 1.0)
    assert found == pytest.approx(share, rel=1e-8)
    many = np.full(100_003, found)
    assert (many.mean(), many.std()) == (found, 0)


def test_weights_that_are_no_numbers_have_no_distance() -> None:
    assert math.isnan(relative([math.nan], 1.0))
    assert relative([math.inf], 2.0) == math.inf
    assert relative([4.0], 0.0) == 2
