"""The members of a sweep as processes: started when a slot is free, ended cleanly when the sweep is asked to stop.

In: what each member is called, its directory and its command; slots. Out: for each member None, or why it is not
complete. A member that fails costs itself alone. Everything that it prints is in `output.txt` of its directory. It does
not outlive the sweep: when this process has been killed, the launcher that leads its group kills it
(`common/launcher.py`), and its log is whole, so the same command goes on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from evomerge.cli.common import REASON, SIGNALLED
from evomerge.cli.sweeping.slots import Slot
from evomerge.common.files import write_atomically
from evomerge.common.processes import LAUNCHER
from evomerge.search.stopping import Interrupt

OUTPUT = "output.txt"
"""In a member's directory: what its process has printed."""
EVERY = 0.1
"""Seconds after which a sweep looks again who has ended."""
GRACE = 10.0
"""Seconds that members have when they are to stop at once."""
PINNED = """\
import os, sys
getattr(os, "sched_setaffinity", lambda *_: None)(0, [int(core) for core in sys.argv[1].split(",")])
os.execvp(sys.argv[2], sys.argv[2:])
"""
"""Becomes a program that runs on some cores, given with its words, where the system pins processes."""
NO_REASON = ("Set the environment variable HYDRA_FULL_ERROR",)
"""Beginnings of last lines that tell nothing."""


@dataclass(frozen=True)
class Member:
    """One search of a sweep.

    Attributes:
        name: what a person calls it.
        directory: its run directory.
        command: the words that run it.
        trials: how many candidates it scores at most.
    """

    name: str
    directory: Path
    command: tuple[str, ...]
    trials: int


class Watch(Protocol):
    """Is told what becomes of the members."""

    def began(self, member: Member, slot: Slot) -> None:
        """Take note that a member runs."""
        ...

    def ended(self, member: Member, why: str | None) -> None:
        """Take note that a member is complete, or why it is not."""
        ...

    def passed(self) -> None:
        """Show what has changed meanwhile; called several times a second."""
        ...


def run_members(
    members: Iterable[Member], slots: Sequence[Slot], watch: Watch, interrupt: Interrupt
) -> dict[str, str | None]:
    """Run members, as many at a time as there are slots, and return for each why it is not complete, by its name.

    Args:
        members: what to run, in this order.
        slots: where.
        watch: is told of them.
        interrupt: once it is asked to stop, no member begins, and those that run end after their current trials.
    """
    waiting, free, running = deque(members), deque(slots), list[_Running]()
    found: dict[str, str | None] = {}
    told = False
    try:
        while running or (waiting and not interrupt.requested):
            while waiting and free and not interrupt.requested:
                running.append(_Running(waiting.popleft(), free.popleft()))
                watch.began(running[-1].member, running[-1].slot)
            if interrupt.requested and not told:
                told = True
                for one in running:
                    one.tell(signal.SIGTERM)
            for one in [one for one in running if one.status() is not None]:
                running.remove(one)
                free.appendleft(one.slot)
                found[one.member.name] = why = one.why(interrupt.requested)
                watch.ended(one.member, why)
            watch.passed()
            time.sleep(EVERY)
    finally:
        _stop_at_once(running)
    return found


def _stop_at_once(running: Sequence[_Running]) -> None:
    """End what still runs: there is something only after a second Ctrl-C, or an error of this program."""
    for one in running:
        one.tell(signal.SIGINT)
    end = time.monotonic() + GRACE
    while any(one.status() is None for one in running) and time.monotonic() < end:
        time.sleep(EVERY)
    for one in running:
        one.tell(signal.SIGKILL)
        one.process.wait()


class _Running:
    """A member at work in its slot."""

    def __init__(self, member: Member, slot: Slot) -> None:
        self.member, self.slot = member, slot
        member.directory.mkdir(parents=True, exist_ok=True)
        (member.directory / REASON).unlink(missing_ok=True)
        python = [sys.executable, "-I", "-S"]
        pinned = [*python, "-c", PINNED, ",".join(map(str, slot.cores)), *member.command]
        with (member.directory / OUTPUT).open("ab") as output:
            self._begun = output.tell()
            self.process = subprocess.Popen(
                [*python, str(LAUNCHER), str(os.getpid()), *pinned],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **slot.environment},
                start_new_session=True,
            )

    def status(self) -> int | None:
        """The exit status, minus a signal that ended it; None while it runs."""
        return self.process.poll()

    def tell(self, number: int) -> None:
        """Send a signal to the member's whole group."""
        with suppress(ProcessLookupError, PermissionError):  # nothing is left of it, or nothing but zombies
            os.killpg(self.process.pid, number)

    def why(self, asked: bool) -> str | None:
        """Return why the member is not complete, and write it down, unless the sweep itself was asked to stop."""
        status = self.process.returncode
        if status == 0:
            return None
        number = -status if status < 0 else status - SIGNALLED
        if asked and number in (*Interrupt.SIGNALS, signal.SIGKILL):
            return "stopped; the same command goes on with it"
        why = _ended_by(number) if number > 0 else self._last_line() or f"it ended with status {status}"
        write_atomically(self.member.directory / REASON, f"{why}\n")
        return why

    def _last_line(self) -> str:
        """Return what the member said last, of this time."""
        with (self.member.directory / OUTPUT).open("rb") as output:
            output.seek(self._begun)
            lines = [line.strip() for line in output.read().decode("utf-8", errors="replace").splitlines()]
        said = [line for line in lines if line and not line.startswith(NO_REASON)]
        own = [line.removeprefix("evomerge: ") for line in said if line.startswith("evomerge: ")]
        return (own or said or [""])[-1]


def _ended_by(number: int) -> str:
    """Say by what signal a member was ended."""
    try:
        name = signal.Signals(number).name
    except ValueError:
        name = f"signal {number}"
    often = ", most often for a lack of memory" * (number == signal.SIGKILL)
    return f"it was ended by {name}{often}; see {OUTPUT} there. The same command goes on with it"
