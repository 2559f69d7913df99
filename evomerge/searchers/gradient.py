"""Gradient descent on a loss: Adam (Kingma and Ba 2015) with projection to the box, for AdaMerging (Yang et al. 2024).

In: a start point; then, for every point that it asks for, the gradient of minus the loss there, on the inputs of that
step. Out: one point a step. AdaMerging clamps inside the forward pass, which leaves coefficients beyond the box without
a gradient for ever; here the step is projected back into the box instead.

The loss is taken on other inputs in every step, so its values cannot say which step is best: every `every`-th point of
the trajectory is an incumbent, unless it failed, and the select split decides among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown
from evomerge.searchers.base import Incumbent, Needs, Part, Turns, inside
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

EPSILON = 1e-8  # of Adam
SCHEDULES = ("constant", "linear", "cosine")


class Gradient:
    """Searcher by Adam.

    A step to a point that fails (an error, a loss or gradient that is no number) is taken back: the next point is the
    last one that did not fail, on other inputs, and all following steps are half as long.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,), within the bounds.
        seed: unused; the inputs of a step are drawn by the evaluator.
        lr: length of a step, in units of the coefficients.
        betas: decay of Adam's two moments.
        schedule: `constant`, or how the length falls to zero over `steps`: `linear` or `cosine`.
        steps: how many points to ask for, those that fail included; None to go on until the budget ends, with a
            constant length.
        every: each point after so many steps becomes an incumbent; where the last step led to always is one.

    Raises:
        ConfigError: a setting is out of its range, or the start outside the bounds.
    """

    needs = Needs(gradient=True)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        lr: float = 0.01,
        betas: Sequence[float] = (0.9, 0.999),
        schedule: str = "constant",
        steps: int | None = None,
        every: int = 10,
    ) -> None:
        if not 0 < lr < math.inf:
            raise ConfigError(f"searcher.lr={lr} is the length of a step; write a positive number, such as 0.01.")
        if not isinstance(betas, Sequence) or len(betas) != 2 or not all(_is_decay(beta) for beta in betas):
            raise ConfigError(f"searcher.betas={betas}; write two numbers from 0 to below 1: [0.9, 0.999].")
        if schedule not in SCHEDULES:
            raise ConfigError(unknown("schedule", schedule, SCHEDULES))
        if steps is None and schedule != "constant":
            raise ConfigError(f"searcher.schedule={schedule} falls to zero at the last step: write searcher.steps=200.")
        for name, count in (("every", every), ("steps", steps)):
            if count is not None and count < 1:
                raise ConfigError(f"searcher.{name}={count} must be at least 1.")
        self._low, self._high = space.low, space.high
        self._x = inside(space, start)
        self._good = Incumbent(self._x)  # the last point that did not fail
        self._lr, self._betas, self._schedule, self._steps, self._every = lr, betas, schedule, steps, every
        self._moments = np.zeros((2, len(self._x)))
        self._seen = 0  # gradients in the moments
        self._scale = 1.0
        self._turns = Turns()
        self._trajectory: dict[str, Incumbent] = {}

    def ask(self) -> Batch:
        """Return the point of the next step, shape (1, dim)."""
        return self._turns.asked(self._x[None], gradient=True)

    def tell(self, batch: Batch) -> None:
        """Take a step along the gradient, or take the last one back."""
        self._turns.told(batch)
        trial = batch.trials[0]
        if trial is None or trial.gradient is None:
            self._x = self._good.x
            self._scale /= 2
            return
        self._good = Incumbent(batch.points[0], (trial.batch, trial.index))
        if batch.index > 0 and batch.index % self._every == 0:
            self._trajectory[f"step_{batch.index}"] = self._good
        gradient = np.asarray(trial.gradient, dtype=np.float64)
        for moment, beta, term in zip(self._moments, self._betas, (gradient, gradient * gradient), strict=True):
            moment *= beta
            moment += (1 - beta) * term
        self._seen += 1
        mean, variance = (m / (1 - beta**self._seen) for m, beta in zip(self._moments, self._betas, strict=True))
        length = self._lr * self._scale * self._share(batch.index)
        self._x = np.clip(self._good.x + length * mean / (np.sqrt(variance) + EPSILON), self._low, self._high)

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED when all steps are taken."""
        done = self._steps is not None and self._turns.index >= self._steps
        return StopReason.EXHAUSTED if done else None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, the steps."""
        count = budget if self._steps is None else min(self._steps, budget)
        return [Part(True, count, count // self._every + 1)]

    def cautions(self, budget: int) -> list[str]:
        """Say that the budget cuts the schedule short."""
        if self._steps is None or self._steps <= budget or self._schedule == "constant":
            return []
        return [
            f"searcher.steps={self._steps}, but the budget leaves {max(budget, 0)}, so the step length does not fall "
            f"to zero: lower the one or raise the other"
        ]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the trajectory: every `every`-th point, and last the one where it stands."""
        if not self._seen:
            return {}
        here = self._good if self._x is self._good.x else Incumbent(self._x)  # no trial has looked at a new point
        return self._trajectory | {f"step_{self._turns.index}": here}

    def _share(self, step: int) -> float:
        """Return which share of the length the schedule leaves for a step, counted from 0."""
        if self._steps is None or self._schedule == "constant":
            return 1.0
        left = 1 - step / self._steps
        return left if self._schedule == "linear" else (1 - math.cos(math.pi * left)) / 2


def _is_decay(beta: Any) -> bool:
    return isinstance(beta, int | float) and 0 <= beta < 1
