"""Gradient descent on a loss: Adam (Kingma and Ba 2015) with projection to the box, for AdaMerging (Yang et al. 2024).

In: a start point; then, for every point that it asks for, the gradient of minus the loss there, on the inputs of that
step. Out: one point a step. AdaMerging clamps inside the forward pass, which leaves coefficients beyond the box without
a gradient for ever; here the step is projected back into the box instead.

The loss is taken on other inputs in every step, so its values cannot say which step is best: every `every`-th point of
the trajectory is an incumbent, and the select split decides among them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from evomerge.errors import ConfigError
from evomerge.names import unknown
from evomerge.searchers.base import Needs, Turns
from evomerge.space import CoefficientSpace
from evomerge.stopping import StopReason
from evomerge.trials import Batch

EPSILON = 1e-8  # of Adam
SCHEDULES = ("constant", "linear", "cosine")


class Gradient:
    """Searcher by Adam.

    A step whose loss or gradient is no number is taken back, and the following ones are half as long.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,), within the bounds.
        seed: unused; the inputs of a step are drawn by the evaluator.
        lr: length of a step, in units of the coefficients.
        betas: decay of Adam's two moments.
        schedule: `constant`, or how the length falls to zero over `steps`: `linear` or `cosine`.
        steps: how many steps to take; None to go on until the budget ends, with a constant length.
        every: each point after so many steps becomes an incumbent; the last one always is.

    Raises:
        ConfigError: a setting is out of its range.
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
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise ConfigError(f"searcher.betas={list(betas)}; write two numbers from 0 to below 1: [0.9, 0.999].")
        if schedule not in SCHEDULES:
            raise ConfigError(unknown("schedule", schedule, SCHEDULES))
        if steps is None and schedule != "constant":
            raise ConfigError(f"searcher.schedule={schedule} falls to zero at the last step: write searcher.steps=200.")
        if every < 1 or (steps is not None and steps < 1):
            raise ConfigError(f"searcher.every={every} and searcher.steps={steps} must both be at least 1.")
        self._low, self._high = space.low, space.high
        self._x = np.asarray(start, dtype=np.float64)
        self._good = self._x  # the last point whose gradient was a number
        self._lr, self._betas, self._schedule, self._steps, self._every = lr, betas, schedule, steps, every
        self._moments = np.zeros((2, len(self._x)))
        self._taken = 0  # steps whose gradient was a number
        self._scale = 1.0
        self._turns = Turns()
        self._trajectory: dict[str, np.ndarray] = {}

    def ask(self) -> Batch:
        """Return the point of the next step, shape (1, dim)."""
        return self._turns.asked(self._x[None], gradient=True)

    def tell(self, batch: Batch) -> None:
        """Take a step along the gradient, or take the last one back."""
        self._turns.told(batch)
        trial = batch.trials[0]
        if trial is None or trial.gradient is None:
            self._x = self._good
            self._scale /= 2
            return
        self._good = batch.points[0]
        gradient = np.asarray(trial.gradient, dtype=np.float64)
        for moment, beta, term in zip(self._moments, self._betas, (gradient, gradient * gradient), strict=True):
            moment *= beta
            moment += (1 - beta) * term
        length = self._lr * self._scale * self._share()
        self._taken += 1
        mean, variance = (m / (1 - beta**self._taken) for m, beta in zip(self._moments, self._betas, strict=True))
        self._x = np.clip(self._good + length * mean / (np.sqrt(variance) + EPSILON), self._low, self._high)
        if self._taken % self._every == 0:
            self._trajectory[f"step_{self._taken}"] = self._x

    def stop(self) -> StopReason | None:
        """Return EXHAUSTED when all steps are taken."""
        done = self._steps is not None and self._turns.index >= self._steps
        return StopReason.EXHAUSTED if done else None

    def incumbents(self) -> dict[str, np.ndarray]:
        """Return the trajectory: every `every`-th point, and where it stands now."""
        if not self._taken:
            return {}
        return self._trajectory | {f"step_{self._taken}": self._x}

    def _share(self) -> float:
        """The share of the length that the schedule leaves for this step."""
        if self._steps is None or self._schedule == "constant":
            return 1.0
        left = 1 - self._taken / self._steps
        return left if self._schedule == "linear" else (1 - math.cos(math.pi * left)) / 2
