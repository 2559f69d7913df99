"""MO-CMA-ES: the multi-objective evolution strategy with covariance matrix adaptation (Igel, Hansen and Roth 2007).

In: a start point and a step size as a fraction of the box. Out: generations. The start is the first point; the others
of the first generation have one weight for each expert (`spread.py`), which is where merges for one task and merges for
another lie, or are drawn around the start (`first=start`, as in earlier versions). Each point of the population is then
the parent of one child, drawn from a normal distribution of its own; of parents and children the first fronts survive,
and of the last one that fits in the points that lie apart (c-MO-CMA-ES there). A child that survives counts as a
success (Voss, Hansen and Igel 2010): successes widen the step of parent and child, and turn the child's distribution
towards the way it came.

Above `diagonal_above` free coefficients covariances are diagonal, which learns faster (as in sep-CMA-ES, Ros and Hansen
2008). It is our own: comocma draws from numpy's global random state, wants a reference point beforehand, has no
constraints and was not tested with three values. A child beyond the bounds is moved to them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Part, Turns, check_population, inside
from evomerge.searchers.domination import ranks, thinned
from evomerge.searchers.spread import EXPERTS, START, by_expert, check_first
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

TARGET, ENOUGH = 1 / 5.5, 0.44
"""The share of children that are to survive, and the one above which steps are too short to turn by."""


@dataclass(frozen=True, eq=False)
class _One:
    """A point and the distribution of its children, in units of the box.

    Attributes:
        x: (dim,).
        values: (m,).
        violated: how far it violates constraints.
        sigma: the step.
        success: the smoothed share of children that survive.
        path: the way of the last steps, (dim,).
        spread: the covariance, (dim, dim), or its diagonal, (dim,).
    """

    x: np.ndarray
    values: np.ndarray
    violated: float
    sigma: float
    success: float
    path: np.ndarray
    spread: np.ndarray


class MoCma:
    """Searcher by MO-CMA-ES.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: any integer from 0.
        popsize: points in a generation.
        sigma: the initial step as a fraction of each coefficient's range.
        diagonal_above: the number of free coefficients above which covariances are diagonal.
        first: what the first generation is: `experts`, or `start`.
        incumbents: how many points of the front are handed over.
        objectives: how many values a point has.

    Raises:
        ConfigError: for a population below 2, a step that is not positive, an unknown first generation, or a start
            outside the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        popsize: int = 10,
        sigma: float = 0.15,
        diagonal_above: int = 24,
        first: str = START,
        incumbents: int = SIZE,
        objectives: int = 1,
    ) -> None:
        check_population(popsize, sigma, 10)
        check_first(first)
        self._low, self._range = space.low, space.high - space.low
        self._spread = by_expert(space, start, popsize, seed) if first == EXPERTS else None
        self._start, self._seed, self._size, self._sigma = inside(space, start), seed, popsize, sigma
        self._objectives, self._diagonal = objectives, space.dim > diagonal_above
        self._learned = _rates(space.dim, self._diagonal)
        self._parents: list[_One] = []
        self._turns = Turns()
        self._seen = memory(objectives, incumbents, incumbents)

    def ask(self) -> Batch:
        """Return the next generation, shape (popsize, dim): a child of each point of the population."""
        if self._spread is not None and not self._parents:
            return self._turns.asked(self._spread)
        draws = np.random.default_rng([self._seed, self._turns.asks]).standard_normal((self._size, len(self._low)))
        if not self._parents:
            draws[0] = 0.0
            points = (self._start - self._low) / self._range + self._sigma * draws
        else:
            points = np.array([self._child(one, z) for one, z in zip(self._parents, draws, strict=True)])
        return self._turns.asked(self._low + np.clip(points, 0.0, 1.0) * self._range)

    def tell(self, batch: Batch) -> None:
        """Let the first fronts of parents and children survive; failed points come last."""
        self._turns.told(batch)
        self._seen.update(batch)
        told = zip((batch.points - self._low) / self._range, batch.table(self._objectives), batch.violated, strict=True)
        if not self._parents:
            dim = len(self._low)
            spread = np.ones(dim) if self._diagonal else np.eye(dim)
            self._parents = [_One(*one, self._sigma, TARGET, np.zeros(dim), spread) for one in told]
            return
        born = [
            replace(parent, x=x, values=values, violated=violated)
            for parent, (x, values, violated) in zip(self._parents, told, strict=True)
        ]
        kept = set(self._survive([*self._parents, *born]))
        parents = [self._stepped(one, self._size + i in kept) for i, one in enumerate(self._parents)]
        children = [
            self._turned(self._stepped(child, self._size + i in kept), (child.x - parent.x) / parent.sigma)
            for i, (child, parent) in enumerate(zip(born, self._parents, strict=True))
        ]
        self._parents = [one for i, one in enumerate([*parents, *children]) if i in kept]

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget; all points count."""
        return [Part(False, budget, self._seen.size)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the front of the points seen, or the best of one value."""
        return self._seen.incumbents()

    def _child(self, one: _One, z: np.ndarray) -> np.ndarray:
        step = np.sqrt(one.spread) * z if self._diagonal else np.linalg.cholesky(one.spread) @ z
        return one.x + one.sigma * step

    def _survive(self, pool: list[_One]) -> list[int]:
        """Return the places of those that survive."""
        values = np.array([one.values for one in pool])
        found, kept = ranks(values, np.array([one.violated for one in pool])), list[int]()
        for rank in range(len(pool)):
            front = np.flatnonzero(found == rank)
            left = self._size - len(kept)
            known = np.isfinite(values[front]).all()  # points that failed lie nowhere
            kept += [int(front[i]) for i in (thinned(values[front], left) if known else range(min(left, len(front))))]
            if len(kept) == self._size:
                break
        return kept

    def _stepped(self, one: _One, survived: bool) -> _One:
        """Return a point with the step that fits the share of its children that survive."""
        smooth, damped = self._learned[:2]
        success = (1 - smooth) * one.success + smooth * survived
        wider = math.exp((success - TARGET) / (1 - TARGET) / damped)
        return replace(one, success=success, sigma=min(max(one.sigma * wider, 1e-6), 1.0))

    def _turned(self, one: _One, step: np.ndarray) -> _One:
        """Return a child whose distribution is turned towards the way it came, (dim,), in steps of its parent."""
        _, _, along, much = self._learned
        fresh = along * (2 - along)
        short = one.success >= ENOUGH
        path = (1 - along) * one.path + (0.0 if short else math.sqrt(fresh)) * step
        outer = path**2 if self._diagonal else np.outer(path, path)
        spread = (1 - much) * one.spread + much * (outer + (fresh * one.spread if short else 0.0))
        return replace(one, path=path, spread=spread)


def _rates(dim: int, diagonal: bool) -> tuple[float, float, float, float]:
    """Return how fast successes are smoothed, how much steps are damped, and how fast path and covariance are learned
    (Igel, Hansen and Roth 2007, table 1, for one child of each parent).
    """
    much = 2 / (dim**2 + 6) * ((dim + 2) / 3 if diagonal else 1.0)
    return TARGET / (2 + TARGET), 1 + dim / 2, 2 / (dim + 2), min(much, 1.0)
