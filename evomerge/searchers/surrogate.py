"""MAP: a quadratic model of each value, and the front of the model scored for real (Li et al. 2024, MAP: Low-compute
Model Merging with Amortized Pareto Fronts via Quadratic Approximation).

In: a start point, scored first, and the bounds. Out: one batch of points spread over the box (a Latin hypercube, McKay
et al. 1979), twice as many as a quadratic has coefficients, as the paper takes; then batches of points from the front
of the model, fitted anew each time to all that was scored. Each value, and each constraint, is a quadratic of the
point, fitted by least squares. It is trusted only inside the box of the points that were scored: beyond, a quadratic
invents optima. For a handful of coefficients, such as one for each expert.
"""

from __future__ import annotations

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Part, Turns, inside
from evomerge.searchers.domination import dominates, thinned
from evomerge.searchers.spread import hypercube
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

MOST = 12
"""So many coefficients can be searched: a quadratic of more takes hundreds of points."""
DRAWN, KEPT, ROUNDS = 400, 60, 6
"""How the front of the model is found: so many points, those that fewest others dominate, and how often more are drawn
near these.
"""
APART = 1e-3
"""How far a new point must lie from those that were asked, in some coordinate, as a fraction of its range."""


class Surrogate:
    """Searcher by quadratic models.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: any integer from 0.
        points: how many are spread over the box; None for twice the coefficients of a quadratic.
        batch: points of the model's front that are asked at once.
        incumbents: how many points of the front are handed over.
        objectives: how many values a point has.

    Raises:
        ConfigError: for too many coefficients, too few points, a batch below 1, or a start outside the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        points: int | None = None,
        batch: int = 8,
        incumbents: int = SIZE,
        objectives: int = 1,
    ) -> None:
        if space.dim > MOST:
            raise ConfigError(
                f"searcher=map fits a quadratic, which has {_count(space.dim):,} coefficients in the {space.dim} of "
                f"this space: write space=model, or another searcher, such as searcher=nsga2."
            )
        wanted = 2 * _count(space.dim) if points is None else points
        if wanted < 2 or batch < 1:
            raise ConfigError(
                f"searcher.points={points} and searcher.batch={batch}: at least 2 points are fitted, and 1 is asked."
            )
        self._low, self._range = space.low, space.high - space.low
        self._seed, self._batch, self._objectives = seed, batch, objectives
        self._first = self._spread(wanted, inside(space, start))
        self._x, self._y = np.zeros((0, space.dim)), np.zeros((0, 0))
        self._asked = np.zeros((0, space.dim))
        self._turns = Turns()
        self._seen = memory(objectives, incumbents, incumbents)

    def ask(self) -> Batch:
        """Return the points of the box, then some of the model's front, shape (batch, dim)."""
        number = self._turns.asks
        points = self._proposed(np.random.default_rng([self._seed, number])) if number else self._first
        self._asked = np.concatenate([self._asked, points])
        return self._turns.asked(np.clip(self._low + points * self._range, self._low, self._low + self._range))

    def tell(self, batch: Batch) -> None:
        """Add the points to those that are fitted; failed ones are left out."""
        self._turns.told(batch)
        self._seen.update(batch)
        places = {i: trial for i, trial in enumerate(batch.trials) if trial and np.isfinite(batch.violated[i])}
        if places:
            table = batch.table(self._objectives)[list(places)]
            lacks = np.array([trial.violations for trial in places.values()]).reshape(len(places), -1)
            y = np.concatenate([table, lacks], axis=1)
            self._y = np.concatenate([self._y.reshape(-1, y.shape[1]), y])
            self._x = np.concatenate([self._x, (batch.points[list(places)] - self._low) / self._range])

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget; all points count."""
        return [Part(False, budget, self._seen.size)]

    def cautions(self, budget: int) -> list[str]:
        """Say that nothing of the budget is left for the model's front."""
        if budget > len(self._first):
            return []
        return [
            f"the budget ends within the {len(self._first)} points that the model is fitted to: raise it, or lower "
            f"searcher.points"
        ]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the front of the points seen, or the best of one value."""
        return self._seen.incumbents()

    def _spread(self, count: int, start: np.ndarray) -> np.ndarray:
        """Return the start and a Latin hypercube, in units of the box, (count, dim)."""
        points = hypercube(np.random.default_rng([self._seed, 0]), count - 1, len(self._low))
        return np.concatenate([[(start - self._low) / self._range], points])

    def _proposed(self, rng: np.random.Generator) -> np.ndarray:
        """Return points of the model's front that lie apart, in units of the box, (batch, dim)."""
        dim = len(self._low)
        if len(self._x) < dim + 2:  # too many have failed for any model
            return rng.random((self._batch, dim))
        low, high = self._x.min(axis=0), self._x.max(axis=0)
        model = np.linalg.lstsq(_terms(self._x), self._y, rcond=None)[0]
        pool = low + rng.random((DRAWN, dim)) * (high - low)
        for number in range(ROUNDS):
            if number:
                near = pool[rng.integers(len(pool), size=DRAWN - len(pool))]
                width = 0.1 / number * (high - low)
                near = np.clip(near + width * rng.standard_normal(near.shape), low, high)
                pool = np.concatenate([pool, near])
            values, lacks = self._predicted(model, pool)
            pool = pool[np.argsort(dominates(values, lacks).sum(axis=0), kind="stable")[: max(KEPT, self._batch)]]
        values, lacks = self._predicted(model, pool)
        new = np.array([np.abs(self._asked - x).max(axis=1).min() > APART for x in pool])
        places = np.flatnonzero(new & ~dominates(values, lacks).any(axis=0))
        chosen = pool[places[thinned(values[places], self._batch)]]
        fill = low + rng.random((self._batch - len(chosen), dim)) * (high - low)
        return np.concatenate([chosen, fill])

    def _predicted(self, model: np.ndarray, x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return what the model says of points: values, (n, m), and how far they violate constraints, (n,)."""
        y = _terms(x) @ model
        return y[:, : self._objectives], np.maximum(y[:, self._objectives :], 0.0).sum(axis=1)


def _count(dim: int) -> int:
    """Return how many coefficients a quadratic has."""
    return (dim + 1) * (dim + 2) // 2


def _terms(x: np.ndarray) -> np.ndarray:
    """Return the terms of a quadratic, (n, (dim + 1)(dim + 2) / 2): squares and products, the coordinates, 1."""
    u = 2 * x - 1
    i, j = np.triu_indices(x.shape[1])
    return np.concatenate([u[:, i] * u[:, j], u, np.ones((len(x), 1))], axis=1)
