"""A crew: the workers of a pool, as far as it knows them. Processes of this machine are one (`processes.py`), and
actors on a cluster (`cluster.py`).
"""

from __future__ import annotations

from typing import Protocol

from evomerge.search.evaluators.wire import Message


class Crew(Protocol):
    """Workers by number, from 0: they are started, are sent messages, and answer.

    Attributes:
        size: how many there are.
    """

    size: int

    def start(self, worker: int) -> None:
        """Start a worker, or start it anew; it answers with a message `ready` or `refused`."""
        ...

    def send(self, worker: int, message: Message) -> None:
        """Send a message; one to a worker that is gone is lost without a word."""
        ...

    def receive(self, seconds: float | None) -> list[tuple[int, Message | None]]:
        """Return what has come from workers, None from one that is gone; wait so long for the first of it."""
        ...

    def kill(self, worker: int) -> None:
        """End a worker at once; `receive` then says that it is gone."""
        ...

    def last_words(self, worker: int) -> str:
        """Return how a worker that is gone has ended, in a few words."""
        ...

    def close(self) -> None:
        """End all workers."""
        ...
