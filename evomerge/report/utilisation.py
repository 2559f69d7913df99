"""Where the time of workers went: sessions of `workers.jsonl` in, shares of time by kind out.

A worker's time from the first ask to the last tell is cut into stretches: in the fitness, merging, the rest of a unit,
starting, lost, and idle. Utilisation is the first of them as a share of all: seconds in the fitness over workers times
wall time. Sessions, the calls of a run that was stopped and went on, follow each other without the time between them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.common.events import Event
from evomerge.runs.worker_log import Session

KINDS = ("forward", "merge", "other", "setup", "lost", "idle")
"""What a worker's time is spent on: the fitness, building candidates, the rest of a unit, starting (again), units that
were done again and the time after it was retired, and nothing.
"""
AFTER = {"started": "idle", "begun": "unit", "ended": "idle", "lost": "setup", "retired": "lost", "stopped": "idle"}
"""What a worker's time is spent on from an event on."""


@dataclass(frozen=True)
class Trouble:
    """A worker that was lost, or retired: when, in seconds of what is measured, and why."""

    worker: int
    kind: str
    at: float
    why: str


class Utilisation:
    """The time of workers over all sessions of a run.

    Args:
        sessions: of the run.

    Attributes:
        wall: seconds from the first ask to the last tell, summed over sessions.
        capacity: workers times wall time, in seconds.
        units: how many were done.
        started: seconds until the slowest of the workers was ready for the first time; 0 if none ever was.
        calls: how many sessions have anything to measure.
        troubles: in order.
    """

    def __init__(self, sessions: Sequence[Session]) -> None:
        self.wall = self.capacity = self.started = 0.0
        self.units = self.calls = 0
        self.troubles: list[Trouble] = []
        self._spent: dict[int, dict[str, list[tuple[float, float]]]] = {}  # worker -> kind -> from when to when
        for session in sessions:
            self._add(session)
        self._sums = {w: {k: sum(b - a for a, b in row) for k, row in rows.items()} for w, rows in self._spent.items()}

    @property
    def workers(self) -> list[int]:
        """Their numbers."""
        return sorted(self._spent)

    @property
    def seconds(self) -> dict[str, float]:
        """What the time of all workers went into."""
        return {kind: sum(sums[kind] for sums in self._sums.values()) for kind in KINDS}

    @property
    def share(self) -> float:
        """Seconds in the fitness over workers times wall time."""
        return self.seconds["forward"] / self.capacity if self.capacity else 0.0

    def of(self, worker: int) -> dict[str, float]:
        """Return what a worker's time went into, as shares of the time that it was there for."""
        sums = self._sums[worker]
        total = sum(sums.values()) or 1.0
        return {kind: seconds / total for kind, seconds in sums.items()}

    def shares(self, worker: int, kind: str, bins: int) -> np.ndarray:
        """Return which share of each of so many equal parts of the time a worker spent on something, (bins,)."""
        if not (row := self._spent[worker][kind]):
            return np.zeros(bins)
        ends = np.array(row)
        lengths = ends[:, 1] - ends[:, 0]
        before = np.repeat(np.cumsum(lengths), 2)  # seconds spent on it up to each end,
        before[::2] -= lengths  # and up to each start
        edges = np.linspace(0.0, self.wall, bins + 1)
        return np.diff(np.interp(edges, ends.reshape(-1), before)) * bins / self.wall

    def over_time(self, bins: int) -> np.ndarray:
        """Return the share of workers in the fitness, in each of so many equal parts of the time, (bins,)."""
        there = sum(self.shares(worker, kind, bins) for worker in self._spent for kind in KINDS)
        busy = sum(self.shares(worker, "forward", bins) for worker in self._spent)
        return np.asarray(busy) / np.maximum(there, 1e-12)

    def _add(self, session: Session) -> None:
        if session.asks is None or not session.events:  # workers did something else, or never came to it
            return
        begin = session.asks
        end = max(event.at for event in session.events) if session.told is None else session.told
        if end <= begin:
            return
        by_worker: dict[int, list[Event]] = {worker: [] for worker in range(session.workers)}
        for event in session.events:
            by_worker.setdefault(event.worker, []).append(event)
        for worker, events in by_worker.items():
            ready = next((event.at for event in events if event.kind == "started"), session.at)
            self.started = max(self.started, ready - session.at)
            rows = self._spent.setdefault(worker, {kind: [] for kind in KINDS})
            for kind, start, stop in _stretches(events, min(begin, session.at), end):
                start, stop = max(start, begin), min(stop, end)
                if stop > start:
                    rows[kind].append((start - begin + self.wall, stop - begin + self.wall))
        inside = [event for event in session.events if begin <= event.at <= end]
        self.units += sum(event.kind == "ended" for event in inside)
        self.troubles += [
            Trouble(event.worker, event.kind, event.at - begin + self.wall, event.why)
            for event in inside
            if event.kind in ("lost", "retired")
        ]
        self.capacity += len(by_worker) * (end - begin)
        self.wall += end - begin
        self.calls += 1


def _stretches(events: Sequence[Event], begin: float, end: float) -> Iterator[tuple[str, float, float]]:
    """Yield what one worker spent its time on, from one moment to another: (kind, from, to), without gaps."""
    state, since, begun = "setup", begin, 0
    for event in sorted(events, key=lambda event: event.at):
        at, before = max(event.at, since), "other" if event.kind == "ended" else "lost"
        begun = begun + 1 if event.kind == "begun" else max(begun - 1, 0) if event.kind == "ended" else 0
        if event.kind == "begun" and state == "unit":  # it was given the next one in advance
            continue
        scoring = max(at - event.forward, since)
        merging = max(scoring - event.merge, since)
        yield (before if state == "unit" else state), since, merging
        yield "merge", merging, scoring
        yield "forward", scoring, at
        state, since = "unit" if begun else AFTER.get(event.kind, state), at
    yield ("lost" if state == "unit" else state), since, max(end, since)
