"""What a person sees of a sweep whose members run at the same time: a live table on a terminal, plain lines in a pipe.

In: what `run_members` tells of its members. Out: on standard error, since the table of results is the command's output.
How far a member is stands in its trial log, which is read while it grows.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.live import Live
from rich.table import Column, Table
from rich.text import Text

from evomerge.cli.sweeping.members import Member
from evomerge.cli.sweeping.slots import Slot

REFRESHED = 1.0
"""Seconds between two looks at the logs of the members that run."""
TRIAL = b'{"kind":"trial",'
"""How a line of a log begins that stands for a candidate."""


class Board:
    """Tells of members: the `Watch` of a sweep.

    Args:
        members: all of them.
        slots: where they run.
        console: where to; standard error when left out.
    """

    def __init__(self, members: Sequence[Member], slots: Sequence[Slot], console: Console | None = None) -> None:
        self._console = console or Console(stderr=True, soft_wrap=True)
        self._rows = [_Row(member) for member in members]
        self._slots = slots
        self._live: Live | None = None
        self._due = 0.0

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the table as long as the context lasts, if there is a terminal."""
        self._say(f"{len(self._rows)} searches on {len(self._slots)} slots: {'; '.join(map(str, self._slots))}")
        if not self._console.is_terminal:
            yield
            return
        with Live(self._table(), console=self._console, auto_refresh=False) as self._live:
            try:
                yield
            finally:
                self._live.update(self._table(), refresh=True)
        self._live = None

    def began(self, member: Member, slot: Slot) -> None:
        """Take note that a member runs."""
        row = self._row(member)
        row.slot, row.state, row.since = slot, "runs", time.monotonic()
        self._tell(f"begins: {member.name} on {slot}")

    def ended(self, member: Member, why: str | None) -> None:
        """Take note that a member is complete, or why it is not."""
        row = self._row(member)
        row.look()
        row.state, row.took = why or "complete", row.seconds
        ended = sum(row.took is not None for row in self._rows)
        self._tell(f"{ended} of {len(self._rows)} ended: {member.name}, {row.state}, {row.took:.0f} s")

    def passed(self) -> None:
        """Draw the table anew, now and then."""
        if self._live and time.monotonic() >= self._due:
            for row in self._rows:
                if row.slot and row.took is None:
                    row.look()
            self._live.update(self._table(), refresh=True)
            self._due = time.monotonic() + REFRESHED

    def _row(self, member: Member) -> _Row:
        return next(row for row in self._rows if row.member is member)

    def _tell(self, text: str) -> None:
        self._due = 0.0
        if self._live is None:
            self._say(text)

    def _say(self, text: str) -> None:
        self._console.print(text, highlight=False, markup=False)

    def _table(self) -> Table:
        name = Column("search", overflow="fold")  # the ends of names tell them apart
        table = Table(name, "slot", "candidates", "time", "state")
        for row in self._rows:
            slot = str(row.slot.number) if row.slot else ""
            done = f"{row.done} of {row.member.trials}" if row.slot else ""
            took = f"{row.seconds:.0f} s" if row.slot else ""
            table.add_row(*map(Text, (row.member.name, slot, done, took, row.state)))  # brackets are no markup
        return table


class _Row:
    """What is known of a member."""

    def __init__(self, member: Member) -> None:
        self.member, self.slot, self.state = member, None, "waits"
        self.slot: Slot | None
        self.since, self.took = 0.0, None
        self.took: float | None
        self.done, self._read = 0, 0

    @property
    def seconds(self) -> float:
        """How long it has run, or ran."""
        return self.took if self.took is not None else time.monotonic() - self.since

    def look(self) -> None:
        """Count the candidates that the log has got since the last look."""
        log: Path = self.member.directory / "trials.jsonl"
        if not log.is_file():
            return
        with log.open("rb") as stream:
            stream.seek(self._read)
            new = stream.read()
        whole = new[: new.rfind(b"\n") + 1]
        self._read += len(whole)
        self.done += sum(line.startswith(TRIAL) for line in whole.splitlines())
