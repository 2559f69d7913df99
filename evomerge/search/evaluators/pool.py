"""A pool: units are scored by workers side by side, and nothing is lost, counted twice or changed by who did what.

In: units, and a crew of workers that take and answer messages (`processes.py`, `cluster.py`). Out: what came of each
unit, as it ends; `waiting.py` says who does what next. A unit whose worker died, or had not enough memory for it and is
started anew, is done again; after `ATTEMPTS` times it has failed. One that takes too long ends with its worker, which
is killed and started anew. A worker that keeps dying is retired, and the others go on.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from evomerge.common.errors import EvomergeError, LiveModelError
from evomerge.common.events import Event, Watch
from evomerge.common.limits import TimeLimit
from evomerge.search.evaluators.crew import Crew
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.evaluators.waiting import Call, Ticket, Waiting
from evomerge.search.evaluators.wire import Message, error_of, scored_of, unit_message
from evomerge.search.memory import lacks_memory
from evomerge.search.stopping import Stopped

logger = logging.getLogger(__name__)

ATTEMPTS = 3
"""How many workers a unit may end before it counts as failed."""
WARMING = 10.0
"""Seconds that the first unit of a worker may take longer, for what is set up lazily: items and experts are there."""
GLANCE = 1.0
"""Seconds between two looks at whether somebody has asked to stop, while workers start."""
DEATHS = 4
"""How many times in a row a worker may die, with nothing done in between, before it is retired."""


class WorkersLost(RuntimeError):
    """Workers died while they scored a candidate, one after the other."""


@dataclass(eq=False)
class _Worker:
    """What the pool knows of a worker: its state is starting, idle, busy or retired."""

    number: int
    state: str = "starting"
    ticket: Ticket | None = None
    asked: int = -1
    model: object = None
    until: float | None = None
    limit: str = ""
    late: bool = False
    refused: str = ""
    deaths: int = 0
    fresh: bool = True


class Pool:
    """A scorer with many workers; a context manager that ends them.

    Args:
        crew: the workers; all are started at once.
        limit: of the time of a candidate.
        candidate: how many items that is; a unit of more may take longer by as much.
        watch: is told of what workers do.

    Attributes:
        readies: what those workers that are ready have said.
        ended: is told of each unit that has ended, before anybody takes it.
    """

    def __init__(
        self,
        crew: Crew,
        limit: TimeLimit | None = None,
        candidate: int | None = None,
        watch: Watch = lambda event: None,
    ) -> None:
        self._crew, self._limit, self._candidate, self._watch = crew, limit or TimeLimit(), candidate, watch
        self._workers = [_Worker(number) for number in range(crew.size)]
        self._waiting = Waiting()
        self._asked = 0
        self._said: set[str] = set()
        self._served = False
        self.readies: dict[int, Message] = {}
        self.ended: Callable[[Unit, Scored], None] = lambda unit, scored: None
        for worker in self._workers:
            crew.start(worker.number)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            if worker.state != "retired":
                self._tell("stopped", worker)
        self._crew.close()

    def wait(self, count: int = 1, stopping: Callable[[], bool] = lambda: False) -> list[Message]:
        """Wait until so many workers are ready, and return what those that are have said.

        Args:
            count: how many.
            stopping: whether somebody has asked to stop; looked at every `GLANCE` seconds.

        Raises:
            EvomergeError: a worker has refused, or all are gone.
            Stopped: it was asked to stop.
        """
        while len(self.readies) < count:
            if stopping():
                raise Stopped
            self._turn(GLANCE)
        return list(self.readies.values())

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Begin with units, and yield what comes of each with its position, as they end.

        Raises:
            LiveModelError: a worker cannot put its live model back.
            EvomergeError: no worker is left.
        """
        call = Call()
        call.tickets = [Ticket(unit, position, call) for position, unit in enumerate(units)]
        self._waiting.add(call.tickets)
        self._dispatch()
        return self._answers(call)

    def forget(self) -> None:
        """Take back all units that no worker has begun: a search has ended, and nobody asks for what is open."""
        self._waiting = Waiting()

    def _answers(self, call: Call) -> Iterator[tuple[int, Scored]]:
        try:
            for _ in call.tickets:
                while not call.ready:
                    self._turn()
                yield call.ready.popleft()
        finally:  # nobody asks for the rest
            self._waiting.drop(call)

    def _turn(self, most: float | None = None) -> None:
        """Wait until something happens, so many seconds at most, and act on it."""
        self._dispatch()
        if all(worker.state == "retired" for worker in self._workers):
            raise EvomergeError(
                f"No worker is left: each died {DEATHS} times in a row, and the warnings say how. What was scored is "
                f"in the log: mend the reason, then run the same command again."
            )
        ends = [worker.until for worker in self._workers if worker.until is not None]
        wait = max(min(ends) - time.monotonic(), 0.0) if ends else most
        for number, message in self._crew.receive(wait):
            self._heard(self._workers[number], message)
        for worker in self._workers:
            if worker.until is not None and time.monotonic() >= worker.until:
                worker.until, worker.late = None, True
                self._crew.kill(worker.number)

    def _heard(self, worker: _Worker, message: Message | None) -> None:
        if worker.state == "retired":
            return
        if message is None:
            self._lost(worker)
        elif message["kind"] == "ready":
            if worker.state != "starting":  # it says so twice
                return
            self._check_kind(worker.number, message)
            self.readies[worker.number], self._served = message, True
            worker.state = "idle"
            self._tell("started", worker)
        elif message["kind"] == "refused":
            error = error_of(message["error"])
            if not self._served:
                raise error
            worker.refused = str(error)  # others can: it is treated as one that dies
            self._crew.kill(worker.number)
        elif worker.ticket is not None and message["number"] == worker.asked:  # else it is late, or says it twice
            for text in message.get("warnings", ()):
                if text not in self._said:
                    self._said.add(text)
                    logger.warning("A worker says: %s", text)
            self._ended(worker, worker.ticket, scored_of(message))

    def _check_kind(self, number: int, message: Message) -> None:
        """Say of a worker that its kind of machine is another one than that of those before it."""
        for other in list(self.readies.values())[:1]:
            one, two = (each["circumstances"]["fingerprint"] for each in (other, message))
            if names := [name for name in one if one[name] != two.get(name)]:
                logger.warning(
                    "Worker %d runs on another kind of machine (%s differ): its scores may differ in last digits.",
                    *(number, ", ".join(names)),
                )

    def _ended(self, worker: _Worker, ticket: Ticket, scored: Scored) -> None:
        short = isinstance(scored.outcome, Exception) and lacks_memory(scored.outcome)
        if short and ticket.attempts + 1 < ATTEMPTS:  # another one may have more, and a new one holds less
            worker.refused, worker.until = "it has not enough memory", None
            self._crew.kill(worker.number)
            return
        self._tell("ended", worker, merge=scored.merge, forward=scored.forward, items=ticket.unit.size)
        worker.state, worker.ticket, worker.until, worker.late = "idle", None, None, False
        worker.deaths, worker.fresh = 0, False
        if isinstance(scored.outcome, LiveModelError):
            raise scored.outcome
        if isinstance(scored.outcome, Exception):
            worker.model = None
        self._done(ticket, scored)
        if short:
            self._absolve()

    def _done(self, ticket: Ticket, scored: Scored) -> None:
        """Answer a unit; where it has failed, later ones of its candidate need not be scored."""
        answered = [ticket]
        if isinstance(scored.outcome, Exception):
            answered += self._waiting.drop_after(ticket)
        for one in answered:
            if not one.done:
                one.done = True
                one.call.ready.append((one.position, scored))
                self.ended(one.unit, scored)

    def _lost(self, worker: _Worker) -> None:
        """Start a worker anew that is gone, and do its unit again; see the module for how often."""
        ticket, late, why = worker.ticket, worker.late, self._crew.last_words(worker.number)
        why, worker.refused = worker.refused or why, ""
        worker.state, worker.ticket, worker.model, worker.until, worker.late = "starting", None, None, None, False
        worker.fresh = True
        self.readies.pop(worker.number, None)
        if late and ticket is not None:
            why = "killed, since its candidate took too long"
            self._done(ticket, Scored(TimeoutError(worker.limit)))
        else:
            worker.deaths += 1
            if ticket is not None:
                ticket.attempts += 1
                if ticket.attempts < ATTEMPTS:
                    self._waiting.put_back(ticket)
                else:
                    self._done(ticket, Scored(WorkersLost(f"{ATTEMPTS} workers died while they scored it")))
                    self._absolve()
        self._tell("lost", worker, why=why)
        if worker.deaths < DEATHS:
            logger.warning("Worker %d is lost (%s) and started again; its unit is done again.", worker.number, why)
            self._crew.start(worker.number)
            return
        worker.state = "retired"
        self._tell("retired", worker, why=why)
        logger.warning(
            "Worker %d died %d times in a row (%s) and is not started again; the others go on.",
            *(worker.number, DEATHS, why),
        )

    def _absolve(self) -> None:
        """Forget how often workers died: it was the fault of a unit."""
        for worker in self._workers:
            worker.deaths = 0

    def _dispatch(self) -> None:
        """Give a unit to each worker that has none."""
        idle = [worker for worker in self._workers if worker.state == "idle"] if self._waiting else []
        if not idle:
            return
        held = {id(other.model) for other in self._workers if other.state == "busy"}
        for worker in idle:
            if self._waiting:
                self._give(worker, self._waiting.take(worker.model, held))
                held.add(id(worker.model))

    def _give(self, worker: _Worker, ticket: Ticket) -> None:
        self._asked += 1
        worker.state, worker.ticket, worker.asked, worker.model = "busy", ticket, self._asked, ticket.unit.model
        seconds, worker.limit = self._limit.allowed(ticket.unit.share(self._candidate), ticket.unit.first)
        worker.until = None if seconds is None else time.monotonic() + seconds + WARMING * worker.fresh
        self._tell("begun", worker)
        self._crew.send(worker.number, unit_message(self._asked, ticket.unit))

    def _tell(self, kind: str, worker: _Worker, **more: Any) -> None:
        self._watch(Event(kind, worker.number, time.time(), **more))
