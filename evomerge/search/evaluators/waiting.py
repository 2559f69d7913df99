"""What waits to be scored by a pool, and what a worker does next.

In: units that were asked for together. Out: one after the other, as workers ask. A worker goes on with the candidate
that it has merged; else it takes one that nobody works on; else it helps, at its end, with the one of which most is
left.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from evomerge.search.evaluators.units import Scored, Unit


@dataclass(eq=False)
class Ticket:
    """One unit on its way.

    Attributes:
        unit: what is to be scored.
        position: where it stands in its call.
        call: with what it was asked for.
        attempts: how many workers died over it.
        done: whether it is answered.
    """

    unit: Unit
    position: int
    call: Call
    attempts: int = 0
    done: bool = False


@dataclass(eq=False)
class Call:
    """The units that were asked for together.

    Attributes:
        tickets: one for each.
        ready: what has come of those that have ended and that nobody has taken yet.
    """

    tickets: list[Ticket] = field(default_factory=list)
    ready: deque[tuple[int, Scored]] = field(default_factory=deque)


class Waiting:
    """The units that no worker has, by their candidates."""

    def __init__(self) -> None:
        self._of: dict[int, deque[Ticket]] = {}  # by the identity of the model, in the order asked

    def __bool__(self) -> bool:
        return bool(self._of)

    def add(self, tickets: Collection[Ticket]) -> None:
        """Add units at the end."""
        for ticket in tickets:
            self._of.setdefault(id(ticket.unit.model), deque()).append(ticket)

    def put_back(self, ticket: Ticket) -> None:
        """Add a unit before all others: it was begun once."""
        key = id(ticket.unit.model)
        mine = self._of.pop(key, deque[Ticket]())
        mine.appendleft(ticket)
        self._of = {key: mine, **self._of}

    def take(self, merged: object, held: Collection[int]) -> Ticket:
        """Return the unit that a worker does best, which no longer waits then.

        Args:
            merged: the model that it has merged.
            held: identities of the models that others work on.
        """
        if (key := id(merged)) in self._of:
            return self._taken(key)
        free = next((key for key in self._of if key not in held), None)
        if free is not None:
            return self._taken(free)
        return self._taken(max(self._of, key=lambda key: len(self._of[key])), last=True)

    def drop(self, call: Call) -> None:
        """Forget the units of a call."""
        self._keep(lambda ticket: ticket.call is not call)

    def drop_after(self, ticket: Ticket) -> list[Ticket]:
        """Forget the later units of the same candidate and call, and return them."""
        mine = self._of.get(id(ticket.unit.model), ())
        later = [other for other in mine if other.call is ticket.call and other.position > ticket.position]
        self._keep(lambda other: other not in later)
        return later

    def _taken(self, key: int, last: bool = False) -> Ticket:
        tickets = self._of[key]
        ticket = tickets.pop() if last else tickets.popleft()
        if not tickets:
            del self._of[key]
        return ticket

    def _keep(self, wanted: Callable[[Ticket], bool]) -> None:
        kept = {key: deque(filter(wanted, tickets)) for key, tickets in self._of.items()}
        self._of = {key: tickets for key, tickets in kept.items() if tickets}
