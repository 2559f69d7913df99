"""What the workers of a pool do, as it happens: for progress, and for the file from which the report draws utilisation.

In: nothing; a pool makes these. Out: plain data with clocks in it, so none of it may enter the trial log.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Event:
    """Something that happened to a worker.

    Attributes:
        kind: `started` (it is ready), `begun` and `ended` (a unit), `lost` (it died, or was killed since it was late;
            its unit is done again), `retired` (it is not started again), `stopped` (nothing is left to do).
        worker: its number, from 0.
        at: when, in seconds since the epoch.
        merge: the seconds that a unit spent on building the candidate; 0 for whatever is no `ended`.
        forward: the seconds that it spent in the fitness.
        items: how many items it scored.
        why: a sentence, for `lost` and `retired`.
    """

    kind: str
    worker: int
    at: float
    merge: float = 0.0
    forward: float = 0.0
    items: int = 0
    why: str = ""


Watch = Callable[[Event], None]
"""Is told of each event, in the process of the search."""
