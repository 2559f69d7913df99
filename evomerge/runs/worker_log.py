"""`workers.jsonl` of a run directory: what the workers of a pool did, and when, a line each.

In: the events of a pool, as they happen. Out: the file, and its sessions read back, of which each is one call of the
search. All of it has clocks in it, so the trial log has none of it, and the file may be deleted: nothing acts on it.
"""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from evomerge.common.events import Event, Watch

WORKERS = "workers.jsonl"
"""The name of the file."""
USUAL = {one.name: one.default for one in fields(Event)}
"""What a line leaves out."""
logger = logging.getLogger(__name__)


class WorkerLog:
    """Appends what happens to workers to a file: a `Watch` that can stop no search.

    A file that cannot be written is said once. Each line is written as a whole and not synced: a kill may cut the last
    one off, and `read_sessions` passes over it.

    Args:
        path: the file; made when missing.
        workers: how many there are; for none, nothing is written.
        shown: is told of each event as well, such as what `Progress.pool` returns.
    """

    def __init__(self, path: Path, workers: int, shown: Watch = lambda event: None) -> None:
        self._path, self._shown, self._off = path, shown, not workers
        self._due: dict[str, Any] | None = {"kind": "session", "at": time.time(), "workers": workers}

    def __call__(self, event: Event) -> None:
        """Write what happened, and show it."""
        self._shown(event)
        self._write({name: value for name, value in vars(event).items() if value != USUAL[name]})

    @contextmanager
    def searching(self) -> Iterator[None]:
        """Note when the search begins to ask and when it has told all: utilisation is measured between the two."""
        self._write({"kind": "asks", "at": time.time()})
        try:
            yield
        finally:
            self._write({"kind": "told", "at": time.time()})

    def _write(self, row: Mapping[str, Any]) -> None:
        if self._off:
            return
        text = _line(row)
        try:
            if self._due:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                text = f"\n{_line(self._due)}{text}"  # on a line of its own, whatever a kill has left
                self._due = None
            with self._path.open("a", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            self._off = True
            logger.warning(
                "%s cannot be written (%s): the search goes on, and its report will not show what the workers did.",
                self._path.name,
                error.strerror,
            )


@dataclass
class Session:
    """What the workers did in one call of a search.

    Attributes:
        at: when it began, in seconds since the epoch.
        workers: how many there were.
        asks: when the search began to ask; None if that is not known.
        told: when it had told all; None for one that was killed.
        events: what happened, in that order.
    """

    at: float
    workers: int
    asks: float | None = None
    told: float | None = None
    events: list[Event] = field(default_factory=list)


def read_sessions(path: Path) -> list[Session]:
    """Return what a file of workers holds, without lines that were cut off; nothing if there is no such file."""
    sessions: list[Session] = []
    for row in _rows(path):
        at, kind = row["at"], row["kind"]
        if kind == "session":
            if _is_number(row.get("workers")):
                sessions.append(Session(at, int(row["workers"])))
        elif not sessions:
            continue
        elif kind == "asks":
            sessions[-1].asks = at
        elif kind == "told":
            sessions[-1].told = at
        elif (event := _event(row)) is not None:
            sessions[-1].events.append(event)
    return sessions


def _line(row: Mapping[str, Any]) -> str:
    short = {name: round(value, 4) if isinstance(value, float) else value for name, value in row.items()}
    return f"{json.dumps(short, ensure_ascii=False)}\n"


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    if not path.is_file():
        return
    with path.open(encoding="utf-8", errors="replace") as file:
        for line in file:
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and isinstance(row.get("kind"), str) and _is_number(row.get("at")):
                yield row


def _event(row: Mapping[str, Any]) -> Event | None:
    """Return the event of a line; None where a number in it is none."""
    known = {name: row[name] for name in USUAL if name in row}
    numbers = all(_is_number(known.get(name, 0)) for name in ("worker", "merge", "forward", "items"))
    return Event(**known) if numbers and "worker" in known and isinstance(known.get("why", ""), str) else None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
