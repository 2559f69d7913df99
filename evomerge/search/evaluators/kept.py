"""Units that a pool has finished and that no trial holds yet, kept in a file so that a kill does not cost them.

In: a pool, or this process where trials end together (`racing.py`). Out: a scorer that remembers what it has finished,
taken or not. `units.jsonl` in the run directory is derived: it may be deleted, and what is damaged is scored again. A
unit is found again by a hash of its model, its items and all that the search depends on. Units of one call are kept
until all of them were taken, which is when their trials are in the log; then they are dropped, and the file is written
anew once most of it is of such.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

from evomerge.common.digests import digest
from evomerge.common.files import write_atomically
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
        self._pool, self._path, self._search = pool, path, search
        self._open: list[list[str]] = []  # the keys of each call that is not whole
        self._lines: dict[str, str] = {}  # of units that somebody may still take, by their keys
        self._written = 0  # how many lines the file has
        self._known = self._read()
        self._asked: dict[int, tuple[Unit, str]] = {}  # by the identity of the unit
        pool.ended = self._ended

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what is known of units, then what the scorer says of the others."""
        if not units:  # asked ahead, beyond the budget: nobody takes it
            return iter(())
        if units[0].first:  # before the search: of no trial
            return self._pool(units)
        keys = [self._key(unit) for unit in units]
        known = {i: self._known[key] for i, key in enumerate(keys) if key in self._known}
        missing = [i for i in range(len(units)) if i not in known]
        self._open.append(keys)
        self._asked |= {id(units[i]): (units[i], keys[i]) for i in missing}
        return self._answers(keys, known, missing, self._pool([units[i] for i in missing]))

    def _answers(
        self, keys: list[str], known: dict[int, Scored], missing: list[int], found: Iterator[tuple[int, Scored]]
    ) -> Iterator[tuple[int, Scored]]:
        whole = False
        try:
            yield from known.items()
            for position, scored in found:
                yield missing[position], scored
            whole = True
        finally:  # it may be left early
            self._open.remove(keys)
        if whole:
            self._drop()

    def _key(self, unit: Unit) -> str:
        return digest([self._search, unit_message(0, unit)])

    def _ended(self, unit: Unit, scored: Scored) -> None:
        """Write down what has come of a unit that was asked for here."""
        _, key = self._asked.pop(id(unit), (None, ""))
        if not key or isinstance(scored.outcome, Exception):
            return
        message = scored_message(0, scored)
        self._lines[key] = line = json.dumps({"key": key, "check": digest(message), "scored": message}) + "\n"
        with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
            file.write(line)
            self._written += 1

    def _drop(self) -> None:
        """Keep units of open calls alone; the file is replaced in one step, so a kill finds an old one or a new one."""
        wanted = {key for keys in self._open for key in keys}
        self._known = {key: scored for key, scored in self._known.items() if key in wanted}
        self._lines = {key: line for key, line in self._lines.items() if key in wanted}
        if self._written <= 2 * len(self._lines):
            return
        with contextlib.suppress(OSError):
            if self._lines:
                write_atomically(self._path, "".join(self._lines.values()))
            else:
                self._path.unlink(missing_ok=True)
            self._written = len(self._lines)

    def _read(self) -> dict[str, Scored]:
        known = dict[str, Scored]()
        if not self._path.exists():
            return known
        text = self._path.read_text(encoding="utf-8", errors="replace")
        for line in text.splitlines():
            self._written += 1
            try:
                record = json.loads(line)
                if record["check"] == digest(record["scored"]):  # else it was cut off, or changed
                    known[record["key"]] = scored_of(record["scored"])
                    self._lines[record["key"]] = f"{line}\n"
            except (ValueError, KeyError, TypeError):
                continue
        if text and not text.endswith("\n"):  # what comes next begins a line
            with contextlib.suppress(OSError), self._path.open("a", encoding="utf-8") as file:
                file.write("\n")
        if known:
            logger.info("%d units that were finished before are not scored again.", len(known))
        return known
