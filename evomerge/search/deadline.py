"""The hours of a search: when it must end so that the winner is still chosen within them.

In: how long this call may take, a clock, and what a candidate takes. Out: the seconds that are left for the search.
They count from the start of a call, so the same command run again has as many again. Nothing of the clock enters the
log: that of a search which ended by its hours is the beginning of a longer one's.
"""

from __future__ import annotations

import math
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from evomerge.common.errors import ConfigError
from evomerge.trials import Batch, Trial

Evaluate = Callable[[Batch, Sequence[int]], Iterable[Trial]]
RECENT = 50
"""So many candidates say how long one takes: a machine may become slower."""
REMEMBERED = 0.02
"""What takes less than this share of what was foreseen was not scored: another search, or this one before it was cut
off, has scored it. It says nothing of those that will be."""


class Deadline:
    """The end of the hours, which begin when this object is made.

    Args:
        hours: that the search may take, choosing the winner included; None for no limit.
        clock: seconds, as of `time.monotonic`.

    Attributes:
        hours: the same.

    Raises:
        ConfigError: the hours are no positive number.
    """

    def __init__(self, hours: float | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        if hours is not None and not 0 < hours < math.inf:
            raise ConfigError(
                f"budget.hours={hours:g} is no time: write the hours that the search may take, such as "
                f"budget.hours=0.5, or null for no limit."
            )
        self.hours = hours
        self._clock = clock
        self._end = math.inf if hours is None else clock() + 3600 * hours
        self._forecast: dict[bool, float] = {}
        self._asked: list[bool] = []
        self._choosing = 0.0
        self._average: Callable[[Iterable[float]], float] = statistics.median
        self._together = self._whole = False
        self._points = 1  # of the generation that was asked for last
        self._open = 0  # generations that were begun and have not ended
        self._took: dict[bool, deque[float]] = {kind: deque(maxlen=RECENT) for kind in (False, True)}

    def measured(
        self,
        forecast: Mapping[bool, float],
        asked: Sequence[bool],
        choosing: float,
        together: bool = False,
        whole: bool = False,
    ) -> None:
        """Take note of what the search is going to take.

        Args:
            forecast: seconds of a candidate (False), and of a step of the gradient (True) if there are any.
            asked: which of the two the search asks for.
            choosing: how many candidates' time choosing the winner takes.
            together: whether candidates are scored side by side: they end in bursts then, and the mean over a
                generation counts.
            whole: whether those of a generation all end when the last one does, so that a part of it is of no use.
        """
        self._forecast, self._asked, self._choosing = dict(forecast), list(asked), choosing
        self._together, self._whole = together, whole
        self._average = statistics.fmean if together else statistics.median

    @property
    def choosing(self) -> float:
        """The seconds that choosing the winner takes at most."""
        return self._choosing * self._seconds(False)

    @property
    def next(self) -> float:
        """The seconds that the dearest of what may be asked for takes: a candidate, or a generation that ends whole."""
        points = self._points if self._whole else 1
        return points * max((self._seconds(kind) for kind in self._asked), default=0.0)

    @property
    def left(self) -> float:
        """The seconds that are left for the search; infinite without a limit."""
        return self._end - self._clock() - self.choosing

    @property
    def over(self) -> bool:
        """Whether nothing more fits before the winner is chosen."""
        return self.left < self.next

    def wrap(self, evaluate: Evaluate) -> Evaluate:
        """Return an evaluator that notes how long it waits for candidates, and ends after one when no other fits."""

        def timed(gradient: bool, trials: Iterable[Trial], alone: bool) -> Iterator[Trial]:
            began = started = self._clock()
            scored = 0
            for trial in trials:
                quick = self._together and not scored and self._remembered(gradient, self._clock() - started)
                if quick and alone:  # else it may have been scored beside the generation before
                    began = self._clock()  # remembered ones come first
                elif trial.values:  # one that fails at once, or hangs, says nothing of the others
                    scored += 1
                    if not self._together:
                        self._note(gradient, self._clock() - started)
                yield trial
                if self.over and not self._whole:  # the rest of a whole generation is paid for
                    return
                started = self._clock()
            if self._together and scored:
                self._note(gradient, (started - began) / scored, scored)
            self._open -= 1

        def begin(batch: Batch, missing: Sequence[int]) -> Iterator[Trial]:
            self._points, self._open = len(batch.points), self._open + 1
            return timed(batch.gradient, evaluate(batch, missing), self._open == 1)

        return begin

    def _note(self, gradient: bool, seconds: float, count: int = 1) -> None:
        if not self._remembered(gradient, seconds):
            self._took[gradient].extend([seconds] * count)

    def _remembered(self, gradient: bool, seconds: float) -> bool:
        return seconds < REMEMBERED * self._forecast.get(gradient, 0.0)

    def _seconds(self, gradient: bool) -> float:
        took = self._took[gradient]
        return self._average(took) if took else self._forecast.get(gradient, 0.0)
