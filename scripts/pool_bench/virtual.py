"""Simulated workers without processes: a clock that jumps to the next end, and runs on while the pool thinks.

In: how long a merge takes. Out: a `Crew`. Messages take no time to travel; what the process of the search does between
two of them (asking, telling, choosing the next unit, making and reading messages) is measured and added to the clock,
since workers wait for it. So the number at which one process no longer keeps up with its workers shows.
"""

from __future__ import annotations

import heapq
import time
from typing import Any

from pool_bench.worker import answer, seconds_of

from evomerge.search.evaluators.wire import packed, unpacked


class Virtual:
    """A crew of simulated workers.

    Args:
        size: how many.
        merge: the seconds that another candidate takes.

    Attributes:
        fitness: the seconds of all workers inside the fitness, so far.
        units: how many units they have scored.
        changes: how many times one was given another candidate.
    """

    def __init__(self, size: int, merge: float) -> None:
        self.size, self._merge = size, merge
        self.fitness, self.units, self.changes = 0.0, 0, 0
        self._clock, self._left = 0.0, time.perf_counter()
        self._due: list[tuple[float, int, int, bytes]] = []
        self._last: dict[int, Any] = {}

    @property
    def now(self) -> float:
        """The seconds on the clock."""
        return self._clock + time.perf_counter() - self._left

    def start(self, worker: int) -> None:
        """Start a worker, which is ready at once."""
        self._put(0.0, worker, {"kind": "ready", "circumstances": {"fingerprint": {}}})

    def send(self, worker: int, message: dict[str, Any]) -> None:
        """Let a worker begin with a unit now."""
        message = unpacked(packed(message))
        other = message["model"] != self._last.get(worker)
        self._last[worker] = message["model"]
        merge, forward = self._merge * other, seconds_of(message["ids"])
        self.fitness, self.units, self.changes = self.fitness + forward, self.units + 1, self.changes + other
        self._put(self.now + merge + forward, worker, answer(message, merge, forward))

    def receive(self, seconds: float | None) -> list[tuple[int, Any]]:
        """Go on to the next end, unless the pool has needed longer than that."""
        at, _, worker, data = heapq.heappop(self._due)
        self._clock, self._left = max(self.now, at), time.perf_counter()
        return [(worker, unpacked(data))]

    def kill(self, worker: int) -> None:
        """Not needed: no unit hangs."""

    def last_words(self, worker: int) -> str:
        """Return nothing: no worker dies."""
        return ""

    def close(self) -> None:
        """End."""

    def _put(self, at: float, worker: int, message: dict[str, Any]) -> None:
        heapq.heappush(self._due, (at, len(self._due) + self.units * self.size, worker, packed(message)))
