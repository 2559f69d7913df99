"""NSGA-II: the genetic algorithm for several values of Deb et al. (2002), by Optuna.

In: a start point. Out: generations. The start is the first point. The others of the first generation have one weight
for each expert (`spread.py`), which is where merges for one task and merges for another lie; each further generation
is made of the best of all before: the first fronts, and of the last one that fits in the points that lie apart. Two
parents are crossed (simulated binary crossover, Deb and Agrawal 1995) and some coordinates mutated (polynomial
mutation). How the study is kept, and asked again: see `studies.py`.

With `first=start` the first generation is drawn around the start, and has no children: Optuna draws a population in
the box after it. Earlier versions did that, and their searches go on so.
"""

from __future__ import annotations

import warnings

import numpy as np
from optuna.exceptions import ExperimentalWarning
from optuna.samplers import NSGAIISampler
from optuna.samplers.nsgaii import PolynomialMutation, SBXCrossover

from evomerge.common.errors import ConfigError
from evomerge.searchers.archive import SIZE, memory
from evomerge.searchers.base import MANY, Incumbent, Needs, Part, Turns, check_population, checked_lag, inside
from evomerge.searchers.spread import EXPERTS, START, by_expert, check_first
from evomerge.searchers.studies import Study
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

SIGMA = 0.15
"""How far a first generation lies around the start, if nothing is said."""


class Nsga2:
    """Searcher by Optuna's NSGA-II.

    Args:
        space: the coefficient space.
        start: the first point, shape (dim,).
        seed: any integer from 0.
        popsize: points in a generation.
        sigma: how far the first generation lies around the start, as a fraction of each coefficient's range, with
            `first=start`.
        crossover: the chance that a child has two parents.
        near: how near children are to their parents: the distribution index of the crossover.
        lag: how many generations are asked ahead of the oldest that is not told yet.
        first: what the first generation is: `experts`, or `start`.
        incumbents: how many points of the front are handed over.
        objectives: how many values a point has.

    Raises:
        ConfigError: for a population below 2, a step that is not positive or counts for nothing, a lag below 0, an
            unknown first generation, or a start outside the bounds.
    """

    needs = Needs(objectives=MANY)

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        popsize: int = 16,
        sigma: float = SIGMA,
        crossover: float = 0.9,
        near: float = 10.0,
        lag: int = 0,
        first: str = START,
        incumbents: int = SIZE,
        objectives: int = 1,
    ) -> None:
        check_population(popsize, sigma, 16)
        check_first(first)
        if first == EXPERTS and sigma != SIGMA:
            raise ConfigError(
                f"searcher.sigma={sigma} is of a first generation around the start, and with searcher.first={EXPERTS} "
                f"that has one weight for each expert: leave it out, or write searcher.first={START}."
            )
        if not 0 <= crossover <= 1 or not near > 0:
            raise ConfigError(
                f"searcher.crossover={crossover} is a chance, between 0 and 1, and searcher.near={near} is positive: "
                f"write 0.9 and 10."
            )
        self._popsize, self.lag = popsize, checked_lag(lag)
        points = (
            by_expert(space, start, popsize, seed) if first == EXPERTS else _around(space, start, popsize, sigma, seed)
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)  # their interface may change, and Optuna's is pinned
            crossed, mutated = SBXCrossover(eta=near), PolynomialMutation()
        self._study = Study(
            *(space, points, seed, objectives),
            lambda seed: NSGAIISampler(
                population_size=popsize, crossover=crossed, crossover_prob=crossover, mutation=mutated, seed=seed
            ),
            parents=first == EXPERTS,
        )
        self._turns = Turns()
        self._seen = memory(objectives, incumbents, incumbents)

    def ask(self) -> Batch:
        """Return the next generation, shape (popsize, dim)."""
        return self._turns.asked(self._study.ask(self._popsize), lag=self.lag)

    def tell(self, batch: Batch) -> None:
        """Add the generation to the study; failed points come last."""
        self._turns.told(batch)
        self._study.tell(batch)
        self._seen.update(batch)

    def stop(self) -> StopReason | None:
        """Never ends by itself."""
        return None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget; all points count."""
        return [Part(False, budget, self._seen.size)]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the front of the points seen, or the best of one value."""
        return self._seen.incumbents()


def _around(space: CoefficientSpace, start: np.ndarray, count: int, sigma: float, seed: int) -> np.ndarray:
    """Return the start, and points drawn around it, (count, dim)."""
    centre, width = inside(space, start), sigma * (space.high - space.low)
    drawn = centre + width * np.random.default_rng(seed).standard_normal((count - 1, space.dim))
    return np.array([centre, *np.clip(drawn, space.low, space.high)])
