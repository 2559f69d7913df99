"""Weights in closed form over the checkpoints of one training run, to merge them or to begin a search with.

In: the number of checkpoints. Out: a weight for each, the oldest first; they sum to one, so that the merge is a mean of
the checkpoints whatever the base is.

    swa     the same for all (Izmailov et al. 2018, arXiv 1803.05407)
    lawa    the same for the last few (Kaddour 2022, arXiv 2209.14981)
    ema     a^(n-1) for the first, (1 - a) a^(n-i) for the i-th: what a running mean m <- a m + (1 - a) θ comes to
    wsm     f(j/n) - f((j+1)/n) for the j-th, counted from 0, of a decay f of the learning rate from 1 to 0: what the
            decay would have done after a constant rate (Tian et al. 2025, arXiv 2507.17634)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown


class Schedule(Protocol):
    """How checkpoints are weighed.

    Attributes:
        title: what it does, in a few words.
        paper: where it was published.
    """

    title: ClassVar[str]
    paper: ClassVar[str]

    def weights(self, number: int) -> np.ndarray:
        """Return the weights of so many checkpoints, the oldest first, float64 (number,).

        Raises:
            ConfigError: it needs more of them.
        """
        ...


@dataclass(frozen=True)
class Swa:
    """Stochastic weight averaging: all alike."""

    title: ClassVar[str] = "the mean of all checkpoints (SWA)"
    paper: ClassVar[str] = "Izmailov et al. 2018, arXiv 1803.05407"

    def weights(self, number: int) -> np.ndarray:
        """Return 1 / number for each."""
        return np.full(number, 1 / number)


@dataclass(frozen=True)
class Lawa:
    """Latest weight averaging: the last few alike, the others not at all.

    Args:
        last: how many.
    """

    title: ClassVar[str] = "the mean of the last checkpoints (LAWA)"
    paper: ClassVar[str] = "Kaddour 2022, arXiv 2209.14981"
    last: int = 5

    def weights(self, number: int) -> np.ndarray:
        """Return 1 / last for the last of them, 0 for the others."""
        return _of_the_last("lawa", self.last, number, lambda last: np.full(last, 1 / last))


@dataclass(frozen=True)
class Ema:
    """The exponential moving average of checkpoints.

    Args:
        decay: how much of the mean stays at each checkpoint, above 0 and below 1.
    """

    title: ClassVar[str] = "the running mean of the checkpoints (EMA)"
    paper: ClassVar[str] = "Polyak and Juditsky 1992, Acceleration of stochastic approximation by averaging"
    decay: float = 0.9

    def weights(self, number: int) -> np.ndarray:
        """Return what each has in the mean after the last."""
        if not 0 < self.decay < 1:
            raise ConfigError(
                f"ema: a decay of {self.decay:g} is no share: write one above 0 and below 1, such as 0.9."
            )
        later = np.arange(number - 1, -1, -1)
        return np.where(later == number - 1, 1.0, 1 - self.decay) * self.decay**later


DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda share: 1 - share,
    "1-sqrt": lambda share: 1 - math.sqrt(share),
    "cosine": lambda share: (1 + math.cos(math.pi * share)) / 2,
}
"""How a learning rate falls, from 1 to 0, with the share of the way."""


@dataclass(frozen=True)
class Wsm:
    """Warmup-stable and merge: the decay of the learning rate, after the fact.

    Args:
        shape: of the decay: `linear`, `1-sqrt` or `cosine`. A linear one weighs all alike.
        last: over how many checkpoints it goes; None for all of them.
    """

    title: ClassVar[str] = "what a decay of the learning rate would have done (WSM)"
    paper: ClassVar[str] = "Tian et al. 2025, arXiv 2507.17634"
    shape: str = "1-sqrt"
    last: int | None = None

    def weights(self, number: int) -> np.ndarray:
        """Return by how much the decay falls from each to the next."""
        if self.shape not in DECAYS:
            raise ConfigError(f"wsm: {unknown('shape', self.shape, DECAYS)}")
        fall = DECAYS[self.shape]
        return _of_the_last(
            "wsm",
            number if self.last is None else self.last,
            number,
            lambda last: -np.diff([fall(j / last) for j in range(last + 1)]),
        )


SCHEDULES: dict[str, type[Swa | Lawa | Ema | Wsm]] = {"swa": Swa, "lawa": Lawa, "ema": Ema, "wsm": Wsm}
"""By the names that the setting `start` gives them."""


def _of_the_last(name: str, last: int, number: int, weights: Callable[[int], np.ndarray]) -> np.ndarray:
    """Return the weights of the last checkpoints of a run, and 0 for those before."""
    if not 1 <= last <= number:
        raise ConfigError(
            f"{name} weighs the last {last} checkpoints, and there are {number}: write "
            f"'{{{name}: {{last: {number}}}}}', or another number from 1 to {number}."
        )
    return np.concatenate([np.zeros(number - last), weights(last)])
