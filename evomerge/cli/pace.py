"""How far a search has come and how fast it goes: trials and workers in, words for a bar or a line out."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from evomerge.common.events import Event
from evomerge.common.progress import Seconds
from evomerge.runs.readable import readable
from evomerge.trials import Trial

RECENT = 20
"""Of so many trials the mean is shown."""


class Pace:
    """Best, mean, failures and pace of a search; the loss of gradient steps by itself, since it is another quantity.

    Args:
        past: the trials that the log holds already.
        budget: trials in all, as far as is known.
        seconds: says how many are left at most.
        named: `objective.values`, where there are several.
    """

    def __init__(
        self, past: Iterable[Trial], budget: int, seconds: Seconds, named: Mapping[str, Any] | None = None
    ) -> None:
        self.done = self._failed = 0
        self._budget, self._seconds, self._named = budget, seconds, named
        self._tasks: tuple[str, ...] = ()
        self._values: list[float] = []
        self._best: tuple[float, ...] = ()  # of each value, where there are several
        self._losses: list[float] = []
        for trial in past:
            self.update(trial)
        self._losses.clear()  # of the steps from now on
        self._first, self._started = self.done, time.monotonic()

    def update(self, trial: Trial) -> None:
        """Take note of a trial."""
        self.done += 1
        self._failed += trial.values is None
        if trial.full and trial.gradient is None:
            self._values.append(trial.full[0])
            self._tasks = tuple(trial.scores)
            self._best = tuple(map(max, zip(self._best or trial.full, trial.full, strict=True)))
        elif trial.values and trial.gradient is not None:
            self._losses.append(-trial.values[0])

    @property
    def over(self) -> bool:
        """Whether all is scored."""
        return self.done >= self._budget

    @property
    def left(self) -> str:
        """How much longer it takes: until all is scored, or until its time is over, whichever comes first."""
        scoring = (self._budget - self.done) / pace if (pace := self._pace) else math.inf
        minutes = max(min(scoring, self._seconds() / 60), 0.0)
        return f"{minutes:.1f} min left" if math.isfinite(minutes) else ""

    @property
    def _pace(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9) * 60

    def __str__(self) -> str:
        if not self._values and not self._losses:
            return f"nothing scored yet{f', {self._failed} failed' * bool(self._failed)}"
        if len(self._best) > 1:
            best = readable(self._named, self._tasks, self._best)
            each = ", ".join(f"{name} {value:.4f}" for name, value in best.items())
            return f"best of each {each}  {f'{self._failed} failed  ' * bool(self._failed)}{self._pace:.0f}/min"
        best = f"best {max(self._values):.4f}  mean {np.mean(self._values[-RECENT:]):.4f}  " if self._values else ""
        loss = f"loss {np.mean(self._losses[-RECENT:]):.4f}  " if self._losses else ""
        return f"{best}{loss}{f'{self._failed} failed  ' * bool(self._failed)}{self._pace:.0f}/min"


class Busy:
    """What the workers of a pool do right now, and how many units they have done: a `Watch`.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._done = self._lost = 0
        self._at_work: set[int] = set()
        self._retired: set[int] = set()
        self._stopped: set[int] = set()

    def __call__(self, event: Event) -> None:
        """Take note of an event."""
        if event.kind == "begun":
            self._at_work.add(event.worker)
            return
        self._at_work.discard(event.worker)
        self._done += event.kind == "ended"
        self._lost += event.kind == "lost"
        if event.kind == "retired":
            self._retired.add(event.worker)
        if event.kind == "stopped":
            self._stopped.add(event.worker)

    def __str__(self) -> str:
        if len(self._retired | self._stopped) >= self._workers:
            return ""
        retired = f"  {len(self._retired)} retired" if self._retired else ""
        lost = f"  {self._lost} lost" if self._lost else ""
        return f"{self._done} units  {len(self._at_work)}/{self._workers} workers busy{lost}{retired}"
