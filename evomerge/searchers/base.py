"""What a searcher is, and what all searchers share: the best points seen.

A searcher proposes points of a coefficient space (`ask`) and is told their values (`tell`); it maximises. It is a
pure function of its arguments and of what it was told: no global random state, no clock, no files. So the same asks
come again when it is rebuilt and told the same values, which is how a search resumes. To add a searcher, write one
file here, one YAML in conf/searcher, and one line in tests/searching.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.space.coefficients import ROUNDING, CoefficientSpace
from evomerge.trials import Batch, StopReason


@dataclass(frozen=True)
class Needs:
    """What a searcher must be told: gradients or only values, and of how many objectives."""

    gradient: bool = False
    objectives: int = 1


class Searcher(Protocol):
    """Proposes points; see the module's docstring. Points are float64 arrays of shape (dim,) within the space's
    bounds.
    """

    needs: Needs

    def ask(self) -> Batch:
        """Return the next batch of points."""
        ...

    def tell(self, batch: Batch) -> None:
        """Take the values of the batch that was asked last."""
        ...

    def stop(self) -> StopReason | None:
        """Return why there is nothing more to ask, or None."""
        ...

    def incumbents(self) -> dict[str, np.ndarray]:
        """Return the points that deserve a place in the final selection, by name; empty before the first scored
        point.
        """
        ...


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
    """The best points seen so far, best first; failed points and values that are not numbers never enter.

    Args:
        size: how many to remember.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ranked: list[tuple[float, np.ndarray]] = []

    def update(self, batch: Batch) -> None:
        """Take in a complete batch. Of equal values the earlier point stays ahead."""
        new = [(float(v), x.copy()) for v, x in zip(batch.values, batch.points, strict=True) if math.isfinite(v)]
        self._ranked = sorted(self._ranked + new, key=lambda pair: -pair[0])[: self._size]

    def points(self) -> dict[str, np.ndarray]:
        """Return them as `best`, `best_2`, ... (distinct points only)."""
        distinct: list[np.ndarray] = []
        for _, x in self._ranked:
            if not any(np.array_equal(x, other) for other in distinct):
                distinct.append(x)
        return {"best" if i == 0 else f"best_{i + 1}": x for i, x in enumerate(distinct)}


class Turns:
    """Guards the conversation: ask, then tell that batch, then ask again.

    Attributes:
        index: the number of the next batch.
    """

    def __init__(self) -> None:
        self.index = 0
        self._open: int | None = None

    def asked(self, points: np.ndarray, gradient: bool = False) -> Batch:
        """Note that a batch was asked, and return it."""
        if self._open is not None:
            raise RuntimeError(f"ask() was called twice: batch {self._open} was not told yet. Tell its values first.")
        self._open = self.index
        return Batch(self.index, points, gradient=gradient)

    def told(self, batch: Batch) -> None:
        """Note that the batch which was asked last is being told."""
        if batch.index != self._open:
            raise RuntimeError(f"tell() got batch {batch.index}, but the batch that was asked last is {self._open}.")
        if not batch.complete:
            raise RuntimeError(
                f"tell() got batch {batch.index} with points {batch.missing} missing; only complete batches are told."
            )
        self._open = None
        self.index += 1
