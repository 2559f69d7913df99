"""What a person sees while a search runs: bars and spinners on a terminal, plain lines in a pipe, tables at the
beginning and at the end.

Everything goes to standard error, but for the final table, which is the command's output.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from evomerge.cli.pace import Busy, Pace
from evomerge.common.events import Event, Watch
from evomerge.common.progress import Seconds, unlimited
from evomerge.trials import Trial

logger = logging.getLogger(__name__)

PLAIN_EVERY = 10.0
"""Seconds between two lines of progress in a pipe."""
PIPE_WIDTH = 160
"""Columns of a table in a pipe or a file."""


class Reporter:
    """Tells a person at a terminal, or behind a pipe, what goes on: the `Progress` of the command.

    Args:
        console: where to; standard error when left out.
        named: `objective.values` of a search, for the names and signs of its values.
    """

    def __init__(self, console: Console | None = None, named: Mapping[str, Any] | None = None) -> None:
        self._named = named
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}
        self._busy = Busy(0)
        self._said = time.monotonic()
        self._line: Callable[[], str] | None = None  # what a search says in a pipe

    @contextmanager
    def working(self, what: str) -> Iterator[None]:
        """Show that something goes on that takes a moment."""
        if self.console.is_terminal:
            with self.console.status(what):
                yield
        else:
            self.console.print(what)
            yield

    @contextmanager
    def counting(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Show how many items of a total are done: a bar on a terminal, a line now and then in a pipe.

        Args:
            what: goes on.
            total: how many items there are, about.

        Yields:
            What is to be told how many more have been done.
        """
        columns = (
            *(TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()),
            _Now(lambda: str(self._busy)),
        )
        if not self.console.is_terminal:
            self.say(what)
        self._said, done = time.monotonic(), 0
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(what, total=total)

            def count(items: int) -> None:
                nonlocal done
                done = min(done + items, total)
                bar.update(task, completed=done)
                self._now_and_then(lambda: f"{done:,} of {total:,} items scored")

            yield count

    @contextmanager
    def bars(self) -> Iterator[None]:
        """Show a bar for each thing that `steps` tells of, as long as the context lasts; nothing in a pipe."""
        if not self.console.is_terminal:
            yield
            return
        columns = (TextColumn("{task.description}"), BarColumn(), TimeRemainingColumn())
        with Progress(*columns, console=self.console, transient=True) as self._bar:
            yield
        self._bar, self._tasks = None, {}

    def steps(self, what: str, done: int, total: int) -> None:
        """Take note of progress within `bars`: what is being done, how much of it is done, how much there is."""
        if self._bar is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(what, total=total)
        self._bar.update(self._tasks[what], completed=done)

    def say(self, text: str) -> None:
        """Print a line for the user; a search has it in its log file as well."""
        logger.info("%s", text)
        self.console.print(text, highlight=False, markup=False)

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], notes: Iterable[str] = ()
    ) -> None:
        """Print a table on standard output, where results go, and lines below it; the first column is text, the others
        numbers.
        """
        table = Table()
        for i, column in enumerate(columns):
            table.add_column(column, justify="left" if i == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console = Console()
        if not console.is_terminal:
            console.width = PIPE_WIDTH
        console.print(title, style="bold", highlight=False, soft_wrap=True)
        console.print(table)
        for note in notes:
            console.print(note, highlight=False, markup=False, soft_wrap=True)

    @contextmanager
    def searching(
        self, past: Sequence[Trial], budget: int, left: Seconds = unlimited
    ) -> Iterator[Callable[[Trial], None]]:
        """Show a bar with best, mean, failures, candidates per minute and the time left; and what the workers of a
        `pool` do.

        Args:
            past: the trials that the log holds already.
            budget: trials in all, as far as is known.
            left: the seconds that the search has left at most.

        Yields:
            What is to be told of each new trial.
        """
        pace = Pace(past, budget, left, self._named)
        columns = (
            *(TextColumn("search"), BarColumn(), MofNCompleteColumn()),
            _Now(lambda: "\n".join(filter(None, (f"{pace}  {pace.left}", str(self._busy))))),
        )
        self._line = lambda: "  ".join(filter(None, (f"{pace.done}/{budget}", f"{pace}", pace.left, str(self._busy))))
        self._said = time.monotonic()
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("search", total=budget, completed=len(past))

            def scored(trial: Trial) -> None:
                pace.update(trial)
                bar.update(task, completed=pace.done)
                self._now_and_then(self._line, at_once=pace.over)

            try:
                yield scored
            finally:
                self._line = None

    def pool(self, workers: int) -> Watch:
        """Show, within `searching` and `counting`, what so many workers do.

        Args:
            workers: how many there are.

        Returns:
            What is to be told of each event.
        """
        self._busy = busy = Busy(workers)

        def watch(event: Event) -> None:
            busy(event)
            self._now_and_then(self._line)

        return watch

    def _now_and_then(self, line: Callable[[], str] | None, at_once: bool = False) -> None:
        """Say a line in a pipe, where the last one was said long enough ago."""
        if line is None or self.console.is_terminal:
            return
        if at_once or time.monotonic() - self._said >= PLAIN_EVERY:
            self._said = time.monotonic()
            self.say(line())


class _Now(ProgressColumn):
    """Shows, whenever a bar is drawn, what is so at that moment."""

    def __init__(self, state: Callable[[], str]) -> None:
        super().__init__()
        self._state = state

    def render(self, task: Task) -> Text:
        """Return what is so."""
        return Text(self._state())
