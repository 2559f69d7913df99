"""Adam in a box: torch's own Adam where the box does not matter, projection, schedules, steps that fail; and what
follows it in a hybrid.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evomerge.common.errors import ConfigError, ReplayMismatch
from evomerge.search.log import TrialLog
from evomerge.searchers.base import Searcher
from evomerge.searchers.cmaes import CmaEs
from evomerge.searchers.gradient import Gradient
from evomerge.searchers.hybrid import Hybrid
from evomerge.searchers.random import Random
from evomerge.searchers.warm import WarmStart
from evomerge.trials import Batch, StopReason, Trial
from tests.kit.helpers import box, sphere
from tests.kit.searching import answer, drive, points

GOAL, STIFF = np.array([0.9, 0.3, 0.71]), np.array([1.0, 25.0, 400.0])


def told(searcher: Searcher, gradient: Callable[[np.ndarray], np.ndarray] | np.ndarray | None) -> np.ndarray:
    """One step; None is a point that failed. Returns the point."""
    batch = searcher.ask()
    assert batch.gradient
    at = gradient(batch.points[0]) if callable(gradient) else gradient
    found = None if at is None else at.tolist()
    batch.trials[0] = Trial(batch.index, 0, "ok" if found else "failed", (0.0,) if found else None, gradient=found)
    searcher.tell(batch)
    return batch.points[0]


def uphill(x: np.ndarray) -> np.ndarray:
    """The gradient of minus a stiff quadratic."""
    return -STIFF * (x - GOAL)


@pytest.mark.parametrize("betas", [(0.9, 0.999), (0.5, 0.9), (0.0, 0.99)])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_it_is_adam_inside_the_box(schedule: str, betas: tuple[float, float]) -> None:
    steps, lr = 60, 0.02
    searcher = Gradient(box(3), np.full(3, 0.5), 0, lr, betas, schedule, steps)
    x = torch.full((3,), 0.5, dtype=torch.float64, requires_grad=True)
    adam = torch.optim.Adam([x], lr, betas)
    shares: dict[str, Callable[[int], float]] = {
        "constant": lambda step: 1.0,
        "linear": lambda step: 1 - step / steps,
        "cosine": lambda step: (1 + np.cos(np.pi * step / steps)) / 2,
    }
    falling = torch.optim.lr_scheduler.LambdaLR(adam, shares[schedule])
    for _ in range(steps):
        at = told(searcher, uphill)
        np.testing.assert_allclose(at, x.detach().numpy(), rtol=0, atol=1e-12)
        adam.zero_grad()
        (torch.tensor(STIFF) * (x - torch.tensor(GOAL)) ** 2 / 2).sum().backward()
        adam.step()
        falling.step()
    assert searcher.stop() is StopReason.EXHAUSTED
    np.testing.assert_allclose(searcher.incumbents()[f"step_{steps}"].x, x.detach().numpy(), rtol=0, atol=1e-12)


def test_steps_are_projected_into_the_box_and_come_out_of_a_corner() -> None:
    """Where the forward pass is clamped instead, a coefficient beyond the box has no gradient and never comes back."""
    space = box(2, 0.0, 1.0)
    searcher = Gradient(space, np.array([0.95, 0.5]), 0, lr=0.1)
    for _ in range(5):
        told(searcher, np.array([1.0, 0.0]))
    assert told(searcher, np.array([-50.0, 0.0])).tolist() == [1.0, 0.5]
    for _ in range(3):
        told(searcher, np.array([-50.0, 0.0]))
    inside = told(searcher, np.array([-1.0, 0.0]))
    assert 0 < inside[0] < 1
    assert inside[1] == 0.5


def test_it_solves_the_sphere() -> None:
    searcher = Gradient(box(5), np.zeros(5), 0, lr=0.05, schedule="cosine", steps=150)
    drive(searcher, sphere, 1000)
    assert -sphere(searcher.incumbents()["step_150"].x) < 1e-6


def test_the_trajectory() -> None:
    searcher = Gradient(box(2), np.zeros(2), 0, steps=25, every=10)
    assert searcher.incumbents() == {}
    batches = drive(searcher, sphere, 1000)
    assert len(batches) == 25
    found = searcher.incumbents()
    assert list(found) == ["step_10", "step_20", "step_25"]
    assert np.array_equal(found["step_10"].x, batches[10].points[0])
    assert np.array_equal(found["step_20"].x, batches[20].points[0])
    assert [one.trial for one in found.values()] == [(10, 0), (20, 0), None]  # no trial looked at the last point
    assert all(len(batch.points) == 1 and batch.gradient for batch in batches)


def test_a_failed_step_is_taken_back_and_halves_the_following_ones() -> None:
    up = np.ones(2)
    calm, shaken = (Gradient(box(2), np.zeros(2), 0, lr=0.1, every=2) for _ in range(2))
    for searcher in (calm, shaken):
        told(searcher, up)
        told(searcher, up)
    failed = told(shaken, None)
    assert failed.tolist() == pytest.approx([0.2, 0.2])
    assert list(shaken.incumbents()) == ["step_3"]  # where it stands; the point of step 2 failed
    assert shaken.incumbents()["step_3"].trial == (1, 0)
    assert told(shaken, up).tolist() == pytest.approx([0.1, 0.1])
    assert told(shaken, up).tolist() == pytest.approx([0.15, 0.15])
    assert all(not np.array_equal(one.x, failed) for one in shaken.incumbents().values())


def test_all_steps_that_fail_end_it_all_the_same() -> None:
    searcher = Gradient(box(2), np.zeros(2), 0, schedule="linear", steps=7)
    batches = drive(searcher, lambda x: None, 100)
    assert points(batches).tolist() == [[0.0, 0.0]] * 7
    assert searcher.incumbents() == {}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"lr": 0.0}, "searcher.lr=0.0 is the length of a step"),
        ({"lr": float("nan")}, "searcher.lr=nan"),
        ({"betas": (0.9, 1.0)}, "two numbers from 0 to below 1"),
        ({"betas": 0.9}, r"searcher.betas=0.9; write two numbers"),
        ({"betas": ["a", "b"]}, "two numbers from 0 to below 1"),
        ({"schedule": "cosin", "steps": 9}, "cosine"),
        ({"schedule": "cosine"}, "falls to zero at the last step: write searcher.steps=200"),
        ({"steps": 0}, "searcher.steps=0 must be at least 1"),
        ({"every": 0}, "searcher.every=0 must be at least 1"),
    ],
)
def test_bad_settings_are_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Gradient(box(2), np.zeros(2), 0, **given)
    with pytest.raises(ConfigError, match=message.replace("searcher.", r"searcher.first.")):
        Hybrid(box(2), np.zeros(2), 0, partial(Gradient, **given), CmaEs)
    with pytest.raises(ConfigError, match=message):
        WarmStart(box(2), lambda start: Gradient(box(2), start, 0, **given))


def test_the_second_searcher_of_a_hybrid_is_checked_at_once() -> None:
    with pytest.raises(ConfigError, match=r"searcher\.second\.sigma is 0"):
        Hybrid(box(2), np.zeros(2), 0, partial(Gradient, steps=3), partial(CmaEs, sigma=0.0))


def test_a_hybrid_hands_over_from_the_last_incumbent() -> None:
    space, starts = box(4), []

    def second(space, start: np.ndarray, seed: int) -> Searcher:
        starts.append(start)
        return Random(space, start, seed)

    searcher = Hybrid(space, np.zeros(4), 5, partial(Gradient, steps=12, every=5), second)
    assert searcher.needs.gradient
    batches = drive(searcher, sphere, 12)
    assert list(searcher.incumbents()) == ["first_step_5", "first_step_10", "first_step_12"]  # nothing is lost here
    batches += drive(searcher, sphere, 20)
    assert [batch.index for batch in batches] == list(range(len(batches)))
    assert [batch.gradient for batch in batches] == [True] * 12 + [False] * (len(batches) - 12)
    assert np.array_equal(starts[-1], searcher.incumbents()["first_step_12"].x)
    assert [*searcher.incumbents()][:3] == ["first_step_5", "first_step_10", "first_step_12"]
    assert "best" in searcher.incumbents()


def test_a_hybrid_whose_first_part_finds_nothing_starts_where_it_would_have() -> None:
    searcher = Hybrid(box(3), np.full(3, 0.25), 5, partial(Gradient, steps=4), Random)
    batches = drive(searcher, lambda x: None, 4)
    assert len(batches) == 4
    assert searcher.ask().points[0].tolist() == [0.25] * 3  # Random asks for its start first


def test_a_hybrid_of_searchers_by_values_needs_no_gradient() -> None:
    searcher = Hybrid(box(3), np.zeros(3), 5, Random, CmaEs)
    assert not searcher.needs.gradient
    assert not searcher.ask().gradient


@pytest.mark.parametrize("cut", [3, 12, 13, 15])
def test_a_hybrid_is_rebuilt_on_either_side_of_the_change(cut: int) -> None:
    def make() -> Searcher:
        return Hybrid(box(3), np.zeros(3), 5, partial(Gradient, steps=12), CmaEs)

    whole = drive(make(), sphere, 60)
    again = make()
    for batch in whole[:cut]:
        asked = again.ask()
        again.tell(Batch(batch.index, asked.points, list(batch.trials), asked.gradient))
    rest = answer(again.ask(), sphere)
    assert np.array_equal(rest.points, whole[cut].points)
    assert rest.gradient == whole[cut].gradient


@pytest.mark.parametrize("gradient", [True, False])
def test_a_log_of_gradients_is_none_of_values(gradient: bool, tmp_path: Path) -> None:
    at = np.full((1, 2), 0.5)
    for _ in range(2):
        with TrialLog(tmp_path / "trials.jsonl", {}, {}) as log:
            assert log.begin(log.ask(Batch(0, at, gradient=gradient))).gradient == gradient
    with TrialLog(tmp_path / "trials.jsonl", {}, {}) as log, pytest.raises(ReplayMismatch, match="and a gradient"):
        log.begin(log.ask(Batch(0, at, gradient=not gradient)))
