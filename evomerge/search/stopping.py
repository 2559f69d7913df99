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


Price = Callable[[int, bool], int]
"""How many item evaluations one point of a batch costs at most: by the number of the batch, and whether it asks for a
gradient. It must be the same whenever it is asked for.
"""


class Counts(Protocol):
    """What a budget looks at: the batches that the loop is through, and the trials and items that it has seen."""

    trials: int
    items: int

    @property
    def batches(self) -> int:
        """How many batches it is through, which is the number of the next one."""
        ...


def fixed(candidate: int = 1, step: int | None = None) -> Price:
    """Return the price of batches that all cost alike.

    Args:
        candidate: the items of a candidate.
        step: the inputs of a gradient, where it is another number.
    """
    return lambda index, gradient: (gradient and step) or candidate


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
        price: what a candidate spends at most; needed with `items`, so that the limit is never passed. Where samples
            grow, it is that of the full size. Trials that end cost what they spent, which may be less.
        interrupt: a request to stop that ends the search as well.
        deadline: the end of its hours, which ends it as well.

    Raises:
        ConfigError: for a number that is not positive.
    """

    trials: int
    items: int | None = None
    price: Price = field(default_factory=fixed)
    interrupt: Interrupt = field(default_factory=Interrupt)
    deadline: Deadline = field(default_factory=Deadline)

    def __post_init__(self) -> None:
        for name in ("trials", "items"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(
                    f"The budget of {name} is {value}, but it must be at least 1: write for example budget=200."
                )

    def left(
        self, counts: Counts, gradient: bool = False, ahead: Sequence[Batch] = (), index: int | None = None
    ) -> int:
        """Return how many more trials may be scored, or gradients taken, never negative.

        Args:
            counts: what the loop has seen.
            gradient: whether gradients are meant.
            ahead: batches that are paid for first, in full.
            index: the number of their batch; the next one where it is left out.
        """
        left = self.trials - counts.trials - sum(len(batch.points) for batch in ahead)
        if self.items is not None:
            promised = sum(len(batch.points) * self.price(batch.index, batch.gradient) for batch in ahead)
            each = self.price(counts.batches if index is None else index, gradient)
            left = min(left, (self.items - counts.items - promised) // each)
        return max(left, 0)

    def due(self, batch: Batch, counts: Counts, ahead: Sequence[Batch] = ()) -> list[int]:
        """Return which of the missing points of a batch may be scored, the same ones whenever it is asked for: those
        of the batch that the log holds count as what they might have cost.

        Args:
            batch: the batch, with the trials that the log holds.
            counts: what the loop has seen.
            ahead: the batches that are open before it.
        """
        missing = batch.missing
        logged = len(batch.points) - len(missing)
        return missing[: max(self.left(counts, batch.gradient, ahead, batch.index) - logged, 0)]

    def stop(self, counts: Counts) -> StopReason | None:
        """Return why the search must end now, or None."""
        if self.interrupt.requested:
            return StopReason.INTERRUPTED
        return None if self.left(counts) or self.left(counts, gradient=True) else StopReason.BUDGET

    def cut(self, counts: Counts, batch: Batch) -> StopReason:
        """Return why a batch was cut short."""
        if self.interrupt.requested:
            return StopReason.INTERRUPTED
        more = self.left(counts, batch.gradient, index=batch.index)
        return StopReason.TIME if more and self.deadline.over else StopReason.BUDGET
