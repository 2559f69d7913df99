"""A searcher that draws around the best point seen, closer and closer. It tells nothing of its plans."""

from __future__ import annotations

import numpy as np

from evomerge.searchers.base import Elite, Incumbent, Needs, Turns
from evomerge.space.coefficients import CoefficientSpace
from evomerge.trials import Batch, StopReason


class Closer:
    needs = Needs()

    def __init__(self, space: CoefficientSpace, start: np.ndarray, seed: int, shrink: float = 0.8) -> None:
        self._space, self._centre, self._seed, self._shrink = space, start, seed, shrink
        self._turns, self._elite = Turns(), Elite(2)

    def ask(self) -> Batch:
        number = self._turns.index
        draws = np.random.default_rng([self._seed, number]).standard_normal((3, self._space.dim))
        width = (self._space.high - self._space.low) * self._shrink**number / 4
        return self._turns.asked(np.clip(self._centre + draws * width, self._space.low, self._space.high))

    def tell(self, batch: Batch) -> None:
        self._turns.told(batch)
        self._elite.update(batch)
        if best := self._elite.incumbents().get("best"):
            self._centre = best.x

    def stop(self) -> StopReason | None:
        return None

    def incumbents(self) -> dict[str, Incumbent]:
        return self._elite.incumbents()
