"""What a person is told while something runs: a protocol, so that no room below the command knows a terminal.

The command draws bars, spinners and tables (`cli/progress.py`). From Python everything is silent, which is `Silent`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol, runtime_checkable

from evomerge.common.events import Watch
from evomerge.trials import Trial

Steps = Callable[[str, int, int], None]
"""Is told what is being done, how much of it is done, and how much there is."""
WRITTEN = "an object with the methods of evomerge.common.progress.Progress, or None"
"""How an argument `progress` is written."""
Seconds = Callable[[], float]
"""Says how many seconds are left."""


def unlimited() -> float:
    """Say of a search without a limit of time how many seconds it has left."""
    return math.inf


@runtime_checkable
class Progress(Protocol):
    """Tells a person what goes on."""

    def working(self, what: str) -> AbstractContextManager[None]:
        """Show that something goes on that takes a moment."""
        ...

    def counting(self, what: str, total: int) -> AbstractContextManager[Callable[[int], None]]:
        """Show how many items of about `total` are done; what it yields is to be told how many more."""
        ...

    def bars(self) -> AbstractContextManager[None]:
        """Show a bar for each thing that `steps` tells of, as long as the context lasts."""
        ...

    def steps(self, what: str, done: int, total: int) -> None:
        """Take note of progress within `bars`; see `Steps`."""
        ...

    def searching(
        self, past: Sequence[Trial], budget: int, left: Seconds = unlimited
    ) -> AbstractContextManager[Callable[[Trial], None]]:
        """Show a search with `past` trials in its log, of about `budget`, with so many seconds `left`; what it yields
        is told of each new one.
        """
        ...

    def pool(self, workers: int) -> Watch:
        """Show, within `searching` and `counting`, what so many workers do; what it returns is to be told of it."""
        ...

    def say(self, text: str) -> None:
        """Tell a line."""
        ...

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
    ) -> None:
        """Show a table of results and lines below it; the first column is text, the others numbers."""
        ...


class Silent:
    """Tells nobody anything."""

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Say nothing."""
        yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Say nothing; what it yields ignores what it is told."""
        yield lambda items: None

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Say nothing."""
        yield

    def steps(self, what: str, done: int, total: int) -> None:
        """Say nothing."""

    @contextmanager
    def searching(
        self, past: Sequence[Trial], budget: int, left: Seconds = unlimited
    ) -> Iterator[Callable[[Trial], None]]:
        """Say nothing; what it yields ignores what it is told."""
        yield lambda trial: None

    def pool(self, workers: int) -> Watch:
        """Say nothing; what it returns ignores what it is told."""
        return lambda event: None

    def say(self, text: str) -> None:
        """Say nothing."""

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
    ) -> None:
        """Show nothing."""
