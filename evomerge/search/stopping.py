"""Why and when a search ends: stop reasons, the budget, and the signals of a scheduler.

A budget counts what the loop has seen, replayed trials included, so raising it and running the same command again
continues the search; its hours count anew in every call (`deadline.py`). SIGTERM, SIGUSR1 and SIGUSR2 (what Slurm and
submitit send before a time limit) and Ctrl-C end a search cleanly after the trial that is running.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from types import FrameType
from typing import Any, Protocol

from evomerge.common.errors import ConfigError
from evomerge.search.deadline import Deadline
from evomerge.trials import Batch, StopReason

HOPELESS = 10
"""After so many candidates of which none could be scored, a search ends with its generation."""


class Counts(Protocol):
    """What a budget looks at: the trials and item evaluations that the loop has seen."""

    trials: int
    items: int


class Stopped(Exception):
    """The run was asked to stop between two models."""


class Interrupt:
    """A request to stop, set by a signal. As a context manager it installs the handlers and puts the old ones back.

    The first signal asks for a clean end after the running trial; a second Ctrl-C stops at once. Only the main thread
    of a process can install handlers: in another one there are none, and whoever wants it to stop sets `requested`.
    """

    SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGINT)

    def __init__(self) -> None:
        self.requested = False
        self.by: int | None = None
        self._old: dict[int, Any] = {}

    def __enter__(self) -> Interrupt:
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._handle) for number in self.SIGNALS}
        return self

    def __exit__(self, *exc: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        self._old = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
        self.by = number
        os.write(2, b"\nStopping after what runs now; Ctrl-C once more stops at once.\n")

    def wrap(self, evaluate: Callable[..., Iterable[Any]]) -> Callable[..., Iterator[Any]]:
        """Return an evaluator that ends after the current trial once a stop was requested."""

        def interruptible(trials: Iterable[Any]) -> Iterator[Any]:
            for trial in trials:
                yield trial
                if self.requested:
                    return

        return lambda batch, missing: interruptible(evaluate(batch, missing))


@dataclass(frozen=True)
class Budget:
    """How much a search may spend in all.

    Args:
        trials: the number of candidates.
        items: the number of item evaluations (a candidate on 64 items spends 64), or None for no limit.
        items_per_trial: what one candidate spends; needed with `items`, so that the limit is never passed.
        items_per_step: what a gradient spends, where it is another number.
        interrupt: a request to stop that ends the search as well.
        deadline: the end of its hours, which ends it as well.

    Raises:
        ConfigError: for a number that is not positive.
    """

    trials: int
    items: int | None = None
    items_per_trial: int = 1
    items_per_step: int | None = None
    interrupt: Interrupt = field(default_factory=Interrupt)
    deadline: Deadline = field(default_factory=Deadline)

    def __post_init__(self) -> None:
        for name in ("trials", "items", "items_per_trial", "items_per_step"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"The budget of {name} is {value}, but it must be at least 1: write for example budget=200."
                )

    def left(self, counts: Counts, gradient: bool = False, ahead: Sequence[Batch] = ()) -> int:
        """Return how many more trials may be scored, or gradients taken, never negative.

        Args:
            counts: what the loop has seen.
            gradient: whether gradients are meant.
            ahead: batches that are paid for first, in full.
        """
        left = self.trials - counts.trials - sum(len(batch.points) for batch in ahead)
        if self.items is not None:
            promised = sum(len(batch.points) * self._price(batch.gradient) for batch in ahead)
            left = min(left, (self.items - counts.items - promised) // self._price(gradient))
        return max(left, 0)

    def due(self, batch: Batch, counts: Counts, ahead: Sequence[Batch] = ()) -> list[int]:
        """Return which of the missing points of a batch may be scored, the same ones whenever it is asked for.

        Args:
            batch: the batch, with the trials that the log holds.
            counts: what the loop has seen.
            ahead: the batches that are open before it.
        """
        missing = batch.missing
        logged = len(batch.points) - len(missing)
        return missing[: max(self.left(counts, batch.gradient, ahead) - logged, 0)]

    def stop(self, counts: Counts) -> StopReason | None:
        """Return why the search must end now, or None."""
        if self.interrupt.requested:
            return StopReason.INTERRUPTED
        return None if self.left(counts) or self.left(counts, gradient=True) else StopReason.BUDGET

    def cut(self, counts: Counts, gradient: bool) -> StopReason:
        """Return why a batch was cut short."""
        if self.interrupt.requested:
            return StopReason.INTERRUPTED
        return StopReason.TIME if self.left(counts, gradient) and self.deadline.over else StopReason.BUDGET

    def _price(self, gradient: bool) -> int:
        return (gradient and self.items_per_step) or self.items_per_trial
