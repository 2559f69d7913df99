"""Weights over the checkpoints of a run against their formulas, and against what they stand for."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evomerge.common.errors import ConfigError
from evomerge.merging.starts import Cocktail
from evomerge.merging.trajectories import DECAYS, Ema, Lawa, Swa, Wsm


@pytest.mark.parametrize(
    ("schedule", "number", "weights"),
    [
        (Swa(), 4, [0.25] * 4),
        (Lawa(last=2), 4, [0, 0, 0.5, 0.5]),
        (Ema(decay=0.9), 4, [0.729, 0.081, 0.09, 0.1]),
        (Wsm("linear"), 5, [0.2] * 5),
        (Wsm(), 5, [0.447214, 0.185242, 0.142141, 0.119831, 0.105573]),
        (Wsm("cosine"), 5, [0.095492, 0.25, 0.309017, 0.25, 0.095492]),
        (Wsm("cosine", last=5), 7, [0, 0, 0.095492, 0.25, 0.309017, 0.25, 0.095492]),
    ],
)
def test_weights(schedule, number, weights):
    assert schedule.weights(number) == pytest.approx(weights, abs=1e-6)


@given(st.integers(5, 12), st.floats(0.05, 0.95))
def test_all_are_means(number, decay):
    for schedule in (Swa(), Lawa(), Ema(decay), *map(Wsm, DECAYS)):
        found = schedule.weights(number)
        assert found.shape == (number,)
        assert found.sum() == pytest.approx(1)
        assert (found >= 0).all()


@given(st.lists(st.floats(-2, 2), min_size=2, max_size=8), st.floats(0.05, 0.95))
def test_ema_is_the_running_mean(values, decay):
    mean = values[0]
    for value in values[1:]:
        mean = decay * mean + (1 - decay) * value
    assert Ema(decay).weights(len(values)) @ np.array(values) == pytest.approx(mean)


@pytest.mark.parametrize("shape", DECAYS)
def test_wsm_scales_each_later_step_by_the_decay(shape):
    """A mean of θ_0 + g_1 + ... + g_j is θ_0 + Σ f(i/n) g_i: what a decayed rate would have added."""
    steps = np.random.default_rng(0).normal(size=6)
    checkpoints = np.concatenate([[1.0], 1 + np.cumsum(steps)])
    decayed = sum(DECAYS[shape]((i + 1) / 7) * step for i, step in enumerate(steps))
    assert Wsm(shape).weights(7) @ checkpoints == pytest.approx(1 + decayed)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (
            Lawa(),
            r"the last 5 checkpoints, and there are 3: write '\{lawa: \{last: 3\}\}', or another number from 1 to 3",
        ),
        (Wsm(last=0), r"wsm weighs the last 0 checkpoints, and there are 3: write '\{wsm: \{last: 3\}\}'"),
        (Ema(1.0), r"a decay of 1 is no share"),
        (Wsm("square"), r"Unknown shape 'square'.*linear, 1-sqrt, cosine"),
    ],
)
def test_what_is_refused(schedule, message):
    with pytest.raises(ConfigError, match=message):
        schedule.weights(3)


def test_cocktail_is_the_softmax_of_losses():
    losses = np.array([1.0, 2, 4])
    assert Cocktail().weights(losses) == pytest.approx([0.422379, 0.345815, 0.231806], abs=1e-6)
    assert Cocktail(temperature=1).weights(losses) == pytest.approx([0.705385, 0.259496, 0.035119], abs=1e-6)
    with pytest.raises(ConfigError, match="a temperature of 0 means nothing"):
        Cocktail(temperature=0).weights(losses)
