"""Units that a pool has finished and that no trial holds yet, kept in a file so that a kill does not cost them.

In: a pool. Out: a scorer that remembers what the pool has finished, taken or not. `units.jsonl` in the run directory is
derived: it may be deleted, and a damaged one is begun anew. A unit is found again by a hash of its model, its items and
all that the search depends on. The file is emptied whenever every unit that was asked for has been taken.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from evomerge.common.digests import digest
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.search.evaluators.wire import scored_message, scored_of, unit_message

logger = logging.getLogger(__name__)


@runtime_checkable
class Early(Scorer, Protocol):
    """A scorer that tells of each unit as it ends, before anybody takes it."""

    ended: Callable[[Unit, Scored], None]


class Kept:
    """Wraps a scorer.

    Args:
        pool: scores what is not known.
        path: of the file.
        search: a hash of all that the search depends on.
    """

    def __init__(self, pool: Early, path: Path, search: str) -> None:
        self._pool, self._path, self._search, self._open = pool, path, search, 0
        self._known = self._read()
        self._asked: dict[int, tuple[Unit, str]] = {}  # by the identity of the unit
        pool.ended = self._ended

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what is known of units, then what the scorer says of the others."""
        if not units:  # asked ahead, beyond the budget: nobody takes it
            return iter(())
        keys = [self._key(unit) for unit in units]
        known = {i: self._known[key] for i, key in enumerate(keys) if key in self._known}
        missing = [i for i in range(len(units)) if i not in known]
        self._open += 1
        self._asked |= {id(units[i]): (units[i], keys[i]) for i in missing}
        return self._answers(known, missing, self._pool([units[i] for i in missing]))

    def _answers(
        self, known: dict[int, Scored], missing: list[int], found: Iterator[tuple[int, Scored]]
    ) -> Iterator[tuple[int, Scored]]:
        whole = False
        try:
            yield from known.items()
            for position, scored in found:
                yield missing[position], scored
            whole = True
        finally:  # it may be left early
            self._open -= 1
        if whole and not self._open:
            self._known.clear()
            self._path.unlink(missing_ok=True)

    def _key(self, unit: Unit) -> str:
        return digest([self._search, unit_message(0, unit)])

    def _ended(self, unit: Unit, scored: Scored) -> None:
        """Write down what has come of a unit that was asked for here."""
        _, key = self._asked.pop(id(unit), (None, ""))
        if not key or isinstance(scored.outcome, Exception):
            return
        message = scored_message(0, scored)
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"key": key, "check": digest(message), "scored": message}) + "\n")

    def _read(self) -> dict[str, Scored]:
        known = dict[str, Scored]()
        if not self._path.exists():
            return known
        for line in self._path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                record = json.loads(line)
                if record["check"] == digest(record["scored"]):  # else it was cut off, or changed
                    known[record["key"]] = scored_of(record["scored"])
            except (ValueError, KeyError, TypeError):
                continue
        if known:
            logger.info("%d units that were finished before are not scored again.", len(known))
        return known
