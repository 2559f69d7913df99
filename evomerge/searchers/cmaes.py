"""CMA-ES: the evolution strategy with covariance matrix adaptation (Hansen and Ostermeier 2001), by pycma.

In: a start point and a step size as a fraction of the box. Out: generations of points around an adapting mean. Above
`diagonal_above` free coefficients the covariance is diagonal (sep-CMA-ES, Ros and Hansen 2008), which learns faster
within the few hundred candidates that people can pay.

pycma draws from numpy's global random state, ends by itself when the fitness is flat or comes in steps, and evaluates
strings: here it gets its own counter-based noise, tolerances that are switched off (the budget decides), and numbers
only.

With a lag, points are asked one by one, each drawn from the distribution of that moment, and every `popsize` results in
the order asked are a generation to learn from. One that was drawn before the last updates may lie where there are no
draws any more: it counts as if it lay only as far out, in its direction, as draws do (Hansen 2011, arXiv 1110.4181). As
they are, such points make the variances of sep-CMA-ES collapse. What pycma injects into generations (mirrors of bad
points, and steps along the mean in 300 dimensions or more) needs whole ones, so it is off.
"""

from __future__ import annotations

import math
import warnings
from collections import deque

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.searchers.base import Elite, Incumbent, Needs, Parents, Part, Turns, checked_lag, inside
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message=".*matplotlib.*")  # pycma warns when its optional plots cannot be drawn
    import cma


class _Noise:
    """Standard normal draws that depend on the seed and on how often they were asked for, on nothing else."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._calls = 0

    def __call__(self, *shape: int) -> np.ndarray:
        self._calls += 1
        return np.random.default_rng([self._seed, self._calls]).standard_normal(shape)


class CmaEs:
    """Searcher by pycma with bounds, for two free coefficients or more.

    Args:
        space: the coefficient space.
        start: the initial mean, shape (dim,), within the bounds.
        seed: any integer from 0.
        sigma: the initial step as a fraction of each coefficient's range.
        popsize: points in a generation; None for pycma's 4 + floor(3 ln dim).
        diagonal_above: the number of free coefficients above which the covariance is diagonal.
        lag: how many points are asked ahead of the oldest that is not told yet; with 0, whole generations.
        keep: how many of the best points seen stay incumbents, beside the mean.

    Raises:
        ConfigError: for a single free coefficient, a step that is not positive, a population below 2, a lag below 0,
            or a start outside the bounds.
    """

    needs = Needs()

    def __init__(
        self,
        space: CoefficientSpace,
        start: np.ndarray,
        seed: int,
        sigma: float = 0.15,
        popsize: int | None = None,
        diagonal_above: int = 24,
        keep: int = 4,
        lag: int = 0,
    ) -> None:
        if space.dim < 2:
            zero = [name for name, value in space.frozen.items() if value == 0]
            why = f": {listed(zero)} stay 0, since there is no task vector, or you froze them" if zero else ""
            raise ConfigError(
                f"CMA-ES needs at least two free coefficients, and this space has one{why}. Write searcher=grid "
                f"or searcher=tpe; or, if more than one tensor was tuned, more groups, such as space=tensor."
            )
        if not 0 < sigma <= 1:
            raise ConfigError(
                f"searcher.sigma is {sigma}; it is the first step as a fraction of the range, between 0 and 1: "
                f"try 0.15."
            )
        self.lag = checked_lag(lag)
        least = 3 if lag else 2  # pycma makes three of two by mirroring, in whole generations
        if popsize is not None and popsize < least:
            raise ConfigError(
                f"searcher.popsize is {popsize}; a generation needs at least {least} points"
                f"{' with a lag' if lag else ''}."
            )
        options = {
            "bounds": [space.low.tolist(), space.high.tolist()],
            "CMA_stds": (space.high - space.low).tolist(),
            "CMA_diagonal": space.dim > diagonal_above,
            "seed": math.nan,  # 0 and None would mean the clock; nan means: leave the global state alone
            "randn": _Noise(seed),
            "signals_filename": "",
            "verbose": -9,
            "verb_log": 0,
            "maxiter": 10**9,
            "tolfun": 0,
            "tolfunhist": 0,
            "tolx": 0,
            "tolflatfitness": 10**9,
            "tolstagnation": 10**9,
            "tolxstagnation": False,
            "tolfacupx": 1e9,
            "tolupsigma": 1e30,
        }
        if lag:
            options |= {"AdaptSigma": cma.sigma_adaptation.CMAAdaptSigmaCSA, "CMA_mirrors": 0}
        if popsize is not None:
            options["popsize"] = int(popsize)
        self._es = cma.CMAEvolutionStrategy(inside(space, start), float(sigma), options)
        self._low, self._high = space.low, space.high
        self._drawn: deque[np.ndarray] = deque()  # as pycma knows them, in the order asked
        self._costs: list[float] = []  # of the first ones
        self._turns = Turns()
        self._elite = Elite(keep)

    def ask(self) -> Batch:
        """Return the next generation, shape (popsize, dim); with a lag, the next point, shape (1, dim)."""
        drawn = self._es.ask(1 if self.lag else None)
        batch = self._turns.asked(np.clip(drawn, self._low, self._high), lag=self.lag)
        self._drawn.extend(drawn)
        return batch

    def tell(self, batch: Batch) -> None:
        """Rank a generation once it is complete; failed points cost +inf, so they come last."""
        self._turns.told(batch)
        self._elite.update(batch)
        self._costs += (-batch.values).tolist()
        if len(self._costs) == self._es.popsize:
            points = [self._drawn.popleft() for _ in self._costs]
            if not self._es.number_of_solutions_asked:
                self._es.ask(1)  # pycma refuses two generations without a draw between them
            self._es.tell(points, self._costs, check_points=bool(self.lag))
            self._costs = []

    def stop(self) -> StopReason | None:
        """Return CONVERGED when steps no longer change any coefficient in float64."""
        return StopReason.CONVERGED if self._turns.index and self._es.stop() else None

    def parts(self, budget: int) -> list[Part]:
        """Return one part, as long as the budget, which hands over the mean as well."""
        return [Part(False, budget, self._elite.size + 1, self.parents())]

    def parents(self) -> Parents:
        """Return how many points of a generation the mean moves to."""
        return Parents(self._es.popsize // 2)

    def cautions(self, budget: int) -> list[str]:
        """Say that the lag is long, and that the budget ends before anything is learned."""
        size, left = self._es.popsize, max(budget, 0)
        said = []
        if self.lag > 2 * size:
            said.append(
                f"searcher.lag={self.lag} is more than two generations of {size} points: the search may need twice the "
                f"candidates. More evaluator.blocks keep workers busy with a lower one"
            )
        if left < size:
            said.append(
                f"the budget leaves {left} of a first generation of {size} candidates, and CMA-ES learns from whole "
                f"generations alone: its points will only be drawn around the start. Raise the budget by {size - left} "
                f"of them or more, or lower searcher.popsize"
            )
        return said

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the mean of the distribution (the better answer under noise) and the best points seen."""
        best = self._elite.incumbents()
        if not best:
            return {}
        return {"mean": Incumbent(np.clip(self._es.result.xfavorite, self._low, self._high)), **best}
