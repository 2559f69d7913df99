"""Masks over weights: on or off, with a gradient as if they were shares; and the parts that AdaRank puts them on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from evomerge.common.errors import SpaceError
from evomerge.merging.merger import Merger
from evomerge.merging.methods import Linear
from evomerge.space.coefficients import CoefficientSpace, make_space
from evomerge.space.variable import Variable
from evomerge.transforms.chain import Stage, Step, streamed
from evomerge.transforms.spectral import Ranks
from tests.kit.vectors import vectors_of

WEIGHT = Variable("weight", 0.0, 1.5, 0.4)


def space_of(rows: list[str], **more: Any) -> CoefficientSpace:
    return make_space("model", {"w": (3, 3)}, rows, [WEIGHT], **more)


def test_adarank_by_hand() -> None:
    """diag(3, 1, .2) with probabilities (.9, .4, .6), one weight of 1: diag(3, 0, .2), and [3, 1, .2] as the gradient
    of its sum, as in the paper's code.
    """
    vectors = vectors_of({"e": {"w": torch.diag(torch.tensor([3.0, 1, 0.2]))}})
    rows = streamed(vectors, Stage(Step(Ranks(3)), vectors))
    space = space_of(list(rows.rows), zero=rows.zero, masked=["*.*"], frozen={"weight/model/e.*": 1.0})
    assert space.names == ("mask/model/e.1", "mask/model/e.2", "mask/model/e.3")
    model = nn.ParameterDict({"w": nn.Parameter(vectors.base.tensor("w").clone(), requires_grad=False)})
    before = model["w"].clone()
    merger, x = Merger(model, rows, space.groups, Linear()), np.array([0.9, 0.4, 0.6])
    merger.apply(space.decode(x))
    torch.testing.assert_close(model["w"] - before, torch.diag(torch.tensor([3.0, 0, 0.2])))
    gradient = merger.gradient((model["w"].diagonal().sum() for _ in range(1)), space.moves("weight"))
    np.testing.assert_allclose(space.pullback(gradient, x), [3, 1, 0.2], rtol=1e-6)


@pytest.mark.parametrize("total", [None, 1.0])
def test_weights_and_masks_have_gradients(total: float | None) -> None:
    """A weight that is off has none, its mask has; what is not masked is always on."""
    space = space_of(["a", "b", "c"], masked=["b", "c"], total=total)
    x = np.array([0.3, 0.5, 0.2, 0.7, 0.4])
    assert space.names[3:] == ("mask/model/b", "mask/model/c")
    assert space.decode(x)["weight"] == pytest.approx(np.array([[0.3, 0.5, 0]]))
    found = space.pullback({"weight": np.array([[2.0, 3.0, 4.0]])}, x)
    assert found[3:] == pytest.approx([0.5 * 3, 0.2 * 4])
    if total is None:
        assert found[:3] == pytest.approx([2, 3, 0])
        assert space.moves("weight").all()


def test_all_is_on_at_the_start_and_stays_out_of_merges() -> None:
    space = space_of(["a", "b"], masked=["*"])
    assert space.start({"weight": 0.3}).tolist() == [0.3, 0.3, 0.6, 0.6]
    for coefficients in (space.decode(space.start({"weight": 0.3})), space.constant(0.3)):
        assert coefficients.keys() == {"weight"}
        assert coefficients["weight"].tolist() == [[0.3, 0.3]]
    assert space.complete({}).keys() == {"weight"}
    with pytest.raises(SpaceError, match=r"masks: 'z\*' matches no entry"):
        space_of(["a"], masked=["z*"])
