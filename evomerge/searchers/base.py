"""What a searcher is, and what all searchers share: the best points seen.

A searcher proposes points of a coefficient space (`ask`) and is told their values (`tell`); it maximises. It is a
pure function of its arguments and of what it was told: no global random state, no clock, no files. So the same asks
come again when it is rebuilt and told the same values, which is how a search resumes. To add a searcher, write one
file here, one YAML in conf/searcher, and one line in tests/searching.py.
"""

from __future__ import annotations

import math
import sys
from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import listed
from evomerge.common.protocols import lacking
from evomerge.space.coefficients import ROUNDING, CoefficientSpace
from evomerge.trials import Batch, StopReason

MANY = sys.maxsize
"""How many values a searcher takes that takes any number of them."""
USUAL = 5
"""How many points a searcher hands over to the final selection, where it does not tell."""


@dataclass(frozen=True)
class Needs:
    """What a searcher must be told: gradients or only values, and how many values of a point it can take at most."""

    gradient: bool = False
    objectives: int = 1


@dataclass(frozen=True)
class Parents:
    """The points by which a searcher goes: it makes the same of all others, but for their order.

    Attributes:
        count: so many of the best.
        earlier: of the points of so many batches before the one that was asked last, to which its own points come;
            None for those of this batch alone.
        all_count: why all points that are asked for may count, in words; empty where they do not.
    """

    count: int
    earlier: int | None = None
    all_count: str = ""


@dataclass(frozen=True)
class Part:
    """So many candidates in a row, or so many steps of a gradient.

    Attributes:
        gradient: whether they are steps.
        count: how many it will be at most.
        incumbents: how many points of them the searcher hands over to the final selection at most.
        parents: the points by which the searcher goes meanwhile, as it stands; None where all count.
    """

    gradient: bool
    count: int
    incumbents: int = USUAL
    parents: Parents | None = field(default=None, compare=False)


@dataclass(frozen=True, eq=False)
class Incumbent:
    """A point that deserves a place in the final selection.

    Attributes:
        x: float64 (dim,).
        trial: the batch and the index of the trial that scored it; None for one that no trial has looked at, such as a
            mean.
    """

    x: np.ndarray
    trial: tuple[int, int] | None = None


@runtime_checkable
class Searcher(Protocol):
    """Proposes points; see the module's docstring. Points are float64 arrays of shape (dim,) within the space's
    bounds.
    """

    needs: Needs

    def ask(self) -> Batch:
        """Return the next batch of points."""
        ...

    def tell(self, batch: Batch) -> None:
        """Take the values of the oldest batch that was not told yet: the one that was asked last, without a lag."""
        ...

    def stop(self) -> StopReason | None:
        """Return why there is nothing more to ask, or None."""
        ...

    def incumbents(self) -> dict[str, Incumbent]:
        """Return the points that deserve a place in the final selection, by name; empty before the first scored
        point.
        """
        ...


@runtime_checkable
class Planned(Protocol):
    """A searcher that can tell what it will ask for. It is a forecast, from the first batch on: the searcher may end
    before, and the budget decides.
    """

    def parts(self, budget: int) -> list[Part]:
        """Return the parts of a search of so many points, in their order; together they are at most the budget."""
        ...


@runtime_checkable
class Selective(Protocol):
    """A searcher that goes by the best points, so that others need not be scored on all items."""

    def parents(self) -> Parents | None:
        """Return the points by which it goes once the batch is scored that was asked last; None where all count."""
        ...


@runtime_checkable
class Cautious(Protocol):
    """A searcher under which some budgets are often a mistake."""

    def cautions(self, budget: int) -> list[str]:
        """Return what is allowed but often a mistake, in a search of so many points."""
        ...


@runtime_checkable
class Lagged(Protocol):
    """A searcher that may be asked ahead: batch i once it was told the batches up to i - lag - 1, in the order asked.

    So lag + 1 batches may be open at once, for a pool to work on. A lag may change from one tell to the next.
    """

    @property
    def lag(self) -> int:
        """How many batches may be open beside the oldest one."""
        ...


def lag_of(searcher: Searcher) -> int:
    """Return how many batches may be open beside the oldest one: none where the searcher does not tell."""
    return searcher.lag if isinstance(searcher, Lagged) else 0


def later_lag_of(searcher: Searcher) -> int:
    """Return the lag that a searcher ends with: of one that is made of others, that of the last one (`later_lag`)."""
    return getattr(searcher, "later_lag", lag_of(searcher))


def checked_lag(lag: int) -> int:
    """Return the lag of a searcher's settings.

    Raises:
        ConfigError: it is no whole number from 0 on.
    """
    if not isinstance(lag, int) or isinstance(lag, bool) or lag < 0:
        raise ConfigError(
            f"searcher.lag={lag} says how many batches are asked ahead: write 0, or for a pool of 8 workers 7."
        )
    return lag


def checked_batch(batch: int) -> int:
    """Return how many points are asked at once.

    Raises:
        ConfigError: none are.
    """
    if batch < 1:
        raise ConfigError(f"searcher.batch is {batch}; at least one point must be asked at a time.")
    return batch


def check_population(popsize: int, sigma: float, usual: int) -> None:
    """Refuse a population of several values that has no two points, or a first step that leaves the box.

    Args:
        popsize: points in a generation.
        sigma: the step as a fraction of each coefficient's range.
        usual: a population to write instead.

    Raises:
        ConfigError: it is one.
    """
    if popsize < 2:
        raise ConfigError(f"searcher.popsize is {popsize}; a generation needs at least 2 points, such as {usual}.")
    if not 0 < sigma <= 1:
        raise ConfigError(f"searcher.sigma is {sigma}; it is a fraction of the range, between 0 and 1: try 0.15.")


def check_searcher(searcher: object) -> None:
    """Refuse what is no searcher.

    Raises:
        ConfigError: it lacks something; the message names all that it lacks.
    """
    if missing := lacking(searcher, Searcher):
        raise ConfigError(
            f"The searcher {type(searcher).__name__} lacks {listed(missing)}. Whatever proposes points must have all "
            f"that Searcher has (see {Searcher.__module__})."
        )


def parts_of(searcher: Searcher, budget: int) -> list[Part]:
    """Return the parts of a search, those of no length left out: one part where the searcher does not tell."""
    if not isinstance(searcher, Planned):
        return [Part(searcher.needs.gradient, budget, parents=parents_of(searcher))] if budget > 0 else []
    return [part for part in searcher.parts(budget) if part.count > 0]


def parents_of(searcher: Searcher) -> Parents | None:
    """Return the points by which a searcher goes; None where it does not tell."""
    return searcher.parents() if isinstance(searcher, Selective) else None


def cautions_of(searcher: Searcher, budget: int) -> list[str]:
    """Return what is often a mistake in a search of so many points."""
    return searcher.cautions(budget) if isinstance(searcher, Cautious) else []


def inside(space: CoefficientSpace, start: np.ndarray) -> np.ndarray:
    """Return a searcher's start point, float64 (dim,).

    Args:
        space: the coefficient space.
        start: the point, (dim,).

    Raises:
        ConfigError: it is not finite, has another shape, or lies outside the bounds: moved inside, it would be another
            point than the one that was asked for.
    """
    x = np.asarray(start, dtype=np.float64)
    if x.shape != (space.dim,):
        raise ConfigError(
            f"The start has shape {x.shape}, and a point of this space ({space.dim},): give one of those."
        )
    bad = ~((x >= space.low - ROUNDING) & (x <= space.high + ROUNDING))  # so written, a NaN is outside
    if bad.any():
        i = int(bad.argmax())
        raise ConfigError(
            f"The start is {x[i]:g} for {space.names[i]}, outside of its bounds [{space.low[i]:g}, {space.high[i]:g}]: "
            f"give a point inside, or wider bounds (space.bounds)."
        )
    return np.clip(x, space.low, space.high)


class Elite:
    """The best points seen so far, best first; failed and censored points, and what is no number, never enter.

    Args:
        size: how many to remember.

    Attributes:
        size: the same.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._ranked: list[tuple[float, Incumbent]] = []

    def update(self, batch: Batch) -> None:
        """Take in a batch. Of equal values the earlier point stays ahead."""
        scored = zip(batch.values, batch.points, batch.trials, strict=True)
        new = [
            (float(value), Incumbent(x.copy(), (trial.batch, trial.index)))  # also where the batch has another number
            for value, x, trial in scored
            if trial is not None and trial.full and math.isfinite(value)
        ]
        self._ranked = sorted(self._ranked + new, key=lambda pair: -pair[0])[: self.size]

    def incumbents(self) -> dict[str, Incumbent]:
        """Return them as `best`, `best_2`, ... (distinct points only)."""
        distinct: list[Incumbent] = []
        for _, one in self._ranked:
            if not any(np.array_equal(one.x, other.x) for other in distinct):
                distinct.append(one)
        return {"best" if i == 0 else f"best_{i + 1}": one for i, one in enumerate(distinct)}


class Turns:
    """Guards the conversation: ask, then tell that batch, then ask again; with a lag, some batches ahead.

    Attributes:
        index: the number of the batch that is told next.
        asks: the number of the batch that is asked next.
    """

    def __init__(self) -> None:
        self.index = 0
        self.asks = 0

    def asked(self, points: np.ndarray, gradient: bool = False, lag: int = 0) -> Batch:
        """Note that a batch was asked while so many others may be open, and return it."""
        if self.asks - self.index > lag:
            raise RuntimeError(
                f"ask() was called too early: batch {self.index} was not told yet. Tell its values first."
            )
        batch = Batch(self.asks, points, gradient=gradient)
        self.asks += 1
        return batch

    def told(self, batch: Batch) -> None:
        """Note that the oldest open batch is being told."""
        if self.index == self.asks or batch.index != self.index:
            due = "none is open" if self.index == self.asks else f"the oldest open one is {self.index}"
            raise RuntimeError(f"tell() got batch {batch.index}, but {due}.")
        if not batch.complete:
            raise RuntimeError(
                f"tell() got batch {batch.index} with points {batch.missing} missing; only complete batches are told."
            )
        self.index += 1
