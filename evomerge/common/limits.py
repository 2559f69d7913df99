"""How long a candidate may take: one that hangs becomes an error, and the search goes on.

In: the setting `time_limit`, and something to compute. Out: its result, or a TimeoutError. An alarm of the operating
system interrupts Python wherever it is, asleep or in a loop; what it raises is no `Exception`, so that code which
catches those does not swallow it, and it comes again every second until the computation has ended. It cannot interrupt
a single call into compiled code that never returns, nor a loop that catches everything (`except:`). Code that sets an
alarm of its own takes this one's place: it is found to be late when it returns. Time in which the process is stopped
(SIGSTOP) counts.
"""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, TypeVar

from evomerge.common.errors import ConfigError, LiveModelError

AUTO = "auto"
LEAST = 600.0
"""Seconds that an automatic limit leaves to the fastest candidate: a cold disk or a busy machine is no hang."""
TIMES = 100.0
"""How many times as long as the base a candidate may take under an automatic limit."""
FIRST = 7200.0
"""Seconds that an automatic limit leaves to what is scored before the time of the base is known."""
AGAIN = 1.0
"""Seconds until the alarm comes again, where what it raised was swallowed."""
GRACE = 5
"""How many alarms pass while a `with` is being entered or left, so that what it puts back is put back whole."""

T = TypeVar("T")


class Overdue(BaseException):
    """Ends a computation from within; outside of this module it is a TimeoutError."""


class Shielded:
    """A `with` that no alarm interrupts while it is entered or left, however often it comes: what it puts back must be
    whole, or nothing after it can be trusted.
    """


class TimeLimit:
    """Limits the time of candidates, and of steps of the gradient.

    Args:
        setting: seconds; None for no limit; `auto` for what `measured` makes of the time that the base takes.

    Attributes:
        seconds: the limit in force, or None.

    Raises:
        ConfigError: a number of seconds where there are no alarms.
    """

    def __init__(self, setting: float | str | None = None) -> None:
        if setting not in (None, AUTO) and not _possible():
            raise ConfigError(
                f"time_limit={setting} needs an alarm of the operating system, which there is in the main thread of a "
                f"process on Linux and macOS, and not here: write time_limit=null, or run the search by itself."
            )
        self._setting, self._automatic = setting, setting == AUTO and _possible()
        self.seconds = float(setting) if isinstance(setting, int | float) else None

    def measured(self, seconds: float) -> None:
        """Take note of how long the base takes; an automatic limit is in force from now on."""
        if self._automatic:
            self.seconds = max(LEAST, TIMES * seconds)

    def allowed(self, share: float = 1.0, first: bool = False) -> tuple[float | None, str]:
        """Return the seconds that a candidate may take, None for as many as it likes, and what one did that took more.

        Args:
            share: how many times the items of a candidate it scores; below 1 counts as 1.
            first: whether nothing was scored before, so that it also pays for what is set up lazily: it may take as
                long as a candidate, but never less than `LEAST`; under an automatic limit `FIRST`.
        """
        share = max(share, 1.0)
        if not first:
            return (None, "") if self.seconds is None else (self.seconds * share, self._text(share))
        seconds = FIRST if self._automatic else self.seconds and max(self.seconds * share, LEAST)
        if not seconds:
            return None, ""
        return seconds, (
            f"took longer than the {seconds:g} s that time_limit={self._setting} leaves to it: write more, such as "
            f"time_limit={2 * seconds:.0f}, or time_limit=null for no limit"
        )

    def __call__(self, compute: Callable[[], T], share: float = 1.0) -> T:
        """Return what `compute` returns.

        Args:
            compute: what may take so long.
            share: as in `allowed`.

        Raises:
            TimeoutError: it took longer.
        """
        return self._limited(compute, *self.allowed(share))

    def first(self, compute: Callable[[], T], share: float = 1.0) -> T:
        """Return what `compute` returns, where nothing was scored before; see `allowed`.

        Args:
            compute: what may take so long.
            share: as in `allowed`.

        Raises:
            TimeoutError: it took longer.
        """
        return self._limited(compute, *self.allowed(share, first=True))

    def _limited(self, compute: Callable[[], T], seconds: float | None, late: str) -> T:
        return compute() if seconds is None else self._within(seconds, compute, late)

    def _within(self, seconds: float, compute: Callable[[], T], late: str) -> T:
        if not _possible():  # made in the main thread, used in another one
            return compute()
        alarm = _Alarm(seconds)
        try:
            result = alarm.run(compute)
        except LiveModelError:  # worse than being late
            raise
        except (Exception, Overdue):
            if not alarm.rung:
                raise
        else:
            if not alarm.late:
                return result
        raise TimeoutError(late)  # out here: what it interrupted, and its tensors, is gone

    def _text(self, share: float) -> str:
        """Say which limit was passed; an automatic one without its number, which is a clock's and not for the log."""
        limit = "auto allows" if self._setting == AUTO else f"{self.seconds:g} s"
        return f"took longer than time_limit={limit}" + (f", times {share:.1f} for more items" if share > 1 else "")


def _possible() -> bool:
    """Whether an alarm can interrupt this thread."""
    return hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()


class _Alarm:
    """One use of the alarm.

    Attributes:
        rung: whether it went off.
        late: whether the computation took longer than it may, even if nothing went off.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds, self._on, self._grace = seconds, False, GRACE
        self.rung = self.late = False

    def run(self, compute: Callable[[], T]) -> T:
        started = time.monotonic()
        handler: Any = signal.signal(signal.SIGALRM, self._ring)
        left, interval = signal.setitimer(signal.ITIMER_REAL, self._seconds, AGAIN)
        self._on = True
        try:
            return compute()
        finally:
            self._on = False  # before all else: from here on nothing is raised
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, signal.SIG_DFL if handler is None else handler)
            taken = time.monotonic() - started
            self.late = self.rung or taken >= self._seconds
            if left:  # somebody else's alarm
                signal.setitimer(signal.ITIMER_REAL, max(left - taken, 1e-3), interval)

    def _ring(self, number: int, frame: FrameType | None) -> None:
        if not self._on or _in_passing(frame, Shielded):
            return
        if self._grace and _in_passing(frame):
            self._grace -= 1
            return
        self.rung = True
        raise Overdue


def _in_passing(frame: FrameType | None, kind: type = object) -> bool:
    """Whether a `with` (of a kind) is being entered or left somewhere above a frame, within the computation."""
    while frame is not None and frame.f_code is not _Alarm.run.__code__:
        if frame.f_code.co_name in ("__enter__", "__exit__") and isinstance(frame.f_locals.get("self"), kind):
            return True
        frame = frame.f_back
    return False
