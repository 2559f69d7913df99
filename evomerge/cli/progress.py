"""What a person sees while a search runs: bars and spinners on a terminal, plain lines in a pipe, tables at the
beginning and at the end.

Everything goes to standard error, but for the final table, which is the command's output.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

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
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, soft_wrap=True)
        self._bar: Progress | None = None
        self._tasks: dict[str, TaskID] = {}

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
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        if not self.console.is_terminal:
            self.say(what)
        said, done = time.monotonic(), 0
        with Progress(*columns, console=self.console, transient=True, disable=not self.console.is_terminal) as bar:
            task = bar.add_task(what, total=total)

            def count(items: int) -> None:
                nonlocal said, done
                done = min(done + items, total)
                bar.update(task, completed=done)
                if not self.console.is_terminal and time.monotonic() - said >= PLAIN_EVERY:
                    said = time.monotonic()
                    self.say(f"{done:,} of {total:,} items scored")

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
        """Show a bar with best, mean, candidates per minute and the time left.

        Args:
            past: the trials that the log holds already.
            budget: trials in all, as far as is known.
            left: the seconds that the search has left at most.

        Yields:
            What is to be told of each new trial.
        """
        values = [trial.values[0] for trial in past if trial.values and trial.gradient is None]
        state = _State(len(past), values, budget, left)
        columns = (
            TextColumn("search"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}  {task.fields[left]}"),
        )
        with Progress(*columns, console=self.console, disable=not self.console.is_terminal) as bar:
            task = bar.add_task("search", total=budget, completed=len(past), state=str(state), left=state.left())

            def scored(trial: Trial) -> None:
                state.update(trial)
                bar.update(task, completed=state.done, state=str(state), left=state.left())
                if not self.console.is_terminal and state.due():
                    self.say(f"{state.done}/{budget}  {state}  {state.left()}")

            yield scored


class _State:
    """Best, mean and pace of a search; the loss of gradient steps by itself, since it is another quantity."""

    def __init__(self, done: int, values: list[float], budget: int, left: Seconds) -> None:
        self.done, self._values, self._budget, self._seconds = done, values, budget, left
        self._losses: list[float] = []
        self._first = done
        self._started = self._said = time.monotonic()

    def update(self, trial: Trial) -> None:
        self.done += 1
        if trial.values and trial.gradient is None:
            self._values.append(trial.values[0])
        elif trial.values:
            self._losses.append(-trial.values[0])

    def due(self) -> bool:
        """Whether it is time for another plain line; always at the end."""
        if time.monotonic() - self._said < PLAIN_EVERY and self.done < self._budget:
            return False
        self._said = time.monotonic()
        return True

    def left(self) -> str:
        """Say how much longer it takes: until all is scored, or until its time is over, whichever comes first."""
        scoring = (self._budget - self.done) / pace if (pace := self._pace()) else math.inf
        minutes = max(min(scoring, self._seconds() / 60), 0.0)
        return f"{minutes:.1f} min left" if math.isfinite(minutes) else ""

    def _pace(self) -> float:
        return (self.done - self._first) / max(time.monotonic() - self._started, 1e-9) * 60

    def __str__(self) -> str:
        if not self._values and not self._losses:
            return "nothing scored yet"
        best = f"best {max(self._values):.4f}  mean {np.mean(self._values[-20:]):.4f}  " if self._values else ""
        loss = f"loss {np.mean(self._losses[-20:]):.4f}  " if self._losses else ""
        return f"{best}{loss}{self._pace():.0f}/min"
