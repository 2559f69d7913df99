"""The trial log: what was asked, what came out, what was told. It is the checkpoint of a search, and the only one.

`trials.jsonl` is append-only text, one JSON object a line (see `journal.py`), four kinds of line:
    header   what is searched (hashes of sources, items and settings) and on what kind of machine; a second one where
             a run moved to another machine
    ask      the points of one batch
    trial    the result of one point: values, per-task scores, item ids and per-item results, or its error
    tell     the batch is complete

Each line is on the disk before anything acts on it. Nothing in the log comes from clocks, paths or addresses, so a run
that was killed anywhere and resumed on the same machine has a byte-identical log. Resuming is replaying: see
`TrialLog.ask`.

The trials of a batch, and then its tell, stand together, in the order asked. A searcher with a lag of n is asked ahead:
asks 0 to n, trials and tell of batch 0, ask n + 1, trials and tell of batch 1, and so on.
"""

from __future__ import annotations

import json
import logging
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.errors import LogError, ReplayMismatch
from evomerge.search.journal import Journal, read_log
from evomerge.trials import Batch, Trial, finite

logger = logging.getLogger(__name__)


FORMAT = 1


TOLERANCE = 1e-6
"""How far a re-asked point may lie from the logged one on another kind of machine."""


class TrialLog:
    """The open log of one run; a context manager that holds the run's lock.

    Args:
        path: the file `trials.jsonl`; made when missing.
        identity: what makes this search this search, as names and hashes. A log with another identity is refused.
        fingerprint: the kind of machine (see `fingerprint.py`). Points that were asked on the same one must be
            bit-equal when they are asked again.
        today: says an identity that an earlier version wrote in the words of this one.

    Attributes:
        trials: how many trials the loop has come to so far.
        items: how many item evaluations they cost.
        errors: why those without a value failed, one text for each.
        batch: the batch that the loop came to last, or None.

    Raises:
        LogError: another process writes to it, it is damaged, or it belongs to another search.
    """

    def __init__(
        self,
        path: Path,
        identity: Mapping[str, Any],
        fingerprint: Mapping[str, Any],
        today: Callable[[Mapping[str, Any]], Mapping[str, Any]] = dict,
    ) -> None:
        self.path = Path(path)
        self.trials = 0
        self.errors: list[str] = []
        self.items = 0
        self._identity = json.loads(json.dumps(dict(identity)))
        self._fingerprint = json.loads(json.dumps(dict(fingerprint)))
        self._today = today
        self._journal = Journal(self.path)
        self._pending: deque[dict[str, Any]] = deque()  # logged lines that the loop has not come to yet
        self._known: dict[int, list[dict[str, Any]]] = {}  # the trials among them, by batch
        self._foreign = False  # whether the line that is being replayed was written by another kind of machine
        self._header_due = False  # whether the next line to write needs a header before it
        self.batch: Batch | None = None

    def __enter__(self) -> TrialLog:
        lines = self._journal.open()
        try:
            self._check(lines)
        except BaseException:
            self._journal.close()
            raise
        self._pending = deque(lines)
        for line in lines:
            if line["kind"] == "trial":
                self._known.setdefault(line["batch"], []).append(line)
        return self

    def __exit__(self, *exc: object) -> None:
        self._journal.close()

    @property
    def batches(self) -> int:
        """How many batches the loop is through, once it has told the last one that it came to."""
        return 0 if self.batch is None else self.batch.index + 1

    @property
    def logged(self) -> list[Trial]:
        """Those trials that stand in the log and that the loop has not come to yet."""
        return [Trial.from_record(line) for line in self._pending if line["kind"] == "trial"]

    def ask(self, batch: Batch) -> Batch:
        """Write a new ask, or verify one that the log holds and fill in its trials; they count from `begin` on.

        Args:
            batch: what the searcher asks for.

        Returns:
            The batch to evaluate. On a replay it has the logged points, from which candidates are built, and the
            logged trials.

        Raises:
            ReplayMismatch: the log holds other points; names the batch, the point and the coordinate.
        """
        line = self._next("ask")
        if line is None:
            wish = {"gradient": True} if batch.gradient else {}
            self._write({"kind": "ask", "batch": batch.index, "points": batch.points.tolist(), **wish})
            return Batch(batch.index, batch.points, gradient=batch.gradient)
        points = np.array(line["points"], dtype=np.float64)
        logged = Batch(batch.index, points, gradient=line.get("gradient", False))
        self._verify(batch, logged)
        for record in self._known.get(batch.index, ()):
            _fill(logged, record)
        return logged

    def begin(self, batch: Batch) -> Batch:
        """Come to a batch that was asked for, the oldest that is not told: what the log holds of it counts, and what it
        lacks is appended next.
        """
        self.batch = batch
        while (record := self._next("trial")) is not None:
            if record["batch"] != batch.index:
                raise LogError(
                    f"{self.path} holds a trial of batch {record['batch']} in batch {batch.index}: it was edited."
                )
            self._count(_fill(batch, record))
        return batch

    def append(self, trial: Trial) -> None:
        """Write the result of one point of the batch that was begun; what is not finite is written and told as None."""
        if self.batch is None or trial.batch != self.batch.index:
            current = self.batch and self.batch.index
            raise LogError(f"A trial of batch {trial.batch} came while batch {current} is evaluated.")
        record = {"kind": "trial", **finite(vars(trial))}
        if trial.gradient is None:
            del record["gradient"]
        if not trial.weights:
            del record["weights"]
        if None in (record["values"] or ()):
            error = trial.error or f"the objective is {trial.values}, which is not finite"
            record |= {"status": "failed", "values": None, "error": error}
        self._write(record)
        self._count(_fill(self.batch, record))

    def tell(self, batch: Batch) -> None:
        """Write that a batch is complete, unless the log says so already."""
        if self._next("tell") is None:
            self._write({"kind": "tell", "batch": batch.index})

    def _check(self, lines: list[dict[str, Any]]) -> None:
        """Hold the headers of the log against this search and this machine."""
        if lines and lines[0]["kind"] != "header":
            raise LogError(f"{self.path} does not begin with a header: it is no trial log, or its beginning is lost.")
        headers = [line for line in lines if line["kind"] == "header"]
        for header in headers:
            _check_header(self.path, header, self._identity, self._today)
        last = headers[-1]["fingerprint"] if headers else None
        self._header_due = last != self._fingerprint
        if last is not None and self._header_due:
            changes = [name for name in {**last, **self._fingerprint} if self._fingerprint.get(name) != last.get(name)]
            logger.warning(
                "This run goes on on another kind of machine (%s differ from the log). Points may differ in their last "
                "digits; candidates are built from the logged points.",
                ", ".join(changes),
            )

    def _next(self, kind: str) -> dict[str, Any] | None:
        """Return the next logged line, stepping over headers; None at the end of the log, or of a batch's trials."""
        while self._pending and self._pending[0]["kind"] == "header":
            self._foreign = self._pending.popleft()["fingerprint"] != self._fingerprint
        if self._pending and self._pending[0]["kind"] == kind:
            return self._pending.popleft()
        if self._pending and kind != "trial":  # a batch ends where its trials end; all else has its fixed place
            found = self._pending[0]["kind"]
            raise LogError(f"{self.path} holds a line of kind `{found}` where `{kind}` was expected: it was edited.")
        return None

    def _verify(self, asked: Batch, logged: Batch) -> None:
        where = f"generation {asked.index} of {self.path}"
        advice = (
            "The searcher, its settings or its libraries are not those that wrote the log. Put them back, or choose "
            "another run directory (hydra.run.dir=runs/another)."
        )
        if (asked.points.shape, asked.gradient) != (logged.points.shape, logged.gradient):
            new, old = (f"{b.points.shape} numbers{' and a gradient' * b.gradient}" for b in (asked, logged))
            raise ReplayMismatch(f"The searcher asks for {new} in {where}, which holds {old}. {advice}")
        difference = np.abs(asked.points - logged.points)
        if not difference.max() <= (TOLERANCE if self._foreign else 0.0):  # so written, a NaN is a mismatch too
            point, coordinate = np.unravel_index(int(difference.argmax()), difference.shape)
            old, new = float(logged.points[point, coordinate]), float(asked.points[point, coordinate])
            raise ReplayMismatch(
                f"Coordinate {coordinate} of point {point} in {where} is {old!r}, but the searcher now asks for "
                f"{new!r}. {advice}"
            )
        if difference.any():
            text = "Re-asked points of generation %d differ from the logged ones by up to %.1e."
            logger.warning(text, asked.index, difference.max())

    def _count(self, trial: Trial) -> None:
        self.trials += 1
        self.errors += [trial.error or "no error was recorded"] if trial.values is None else []
        self.items += trial.spent

    def _write(self, record: Mapping[str, Any]) -> None:
        if self._header_due:
            about = {"format": FORMAT, "identity": self._identity, "fingerprint": self._fingerprint}
            self._journal.append({"kind": "header", **about})
            self._header_due = False
        self._journal.append(record)


def _fill(batch: Batch, record: Mapping[str, Any]) -> Trial:
    """Put a trial, as the log holds it, into its batch, and return it."""
    trial = Trial.from_record(record)
    batch.trials[trial.index] = trial
    return trial


def check_search(
    path: Path, identity: Mapping[str, Any], today: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> None:
    """Refuse the log of another search; nothing is written, and there need be none.

    Args:
        path: where it is.
        identity: of the search.
        today: says an identity as this version does.

    Raises:
        LogError: it is one, or it is damaged.
    """
    if path.exists():
        for line in read_log(path):
            if line["kind"] == "header":
                _check_header(path, line, json.loads(json.dumps(dict(identity))), today)


def _check_header(
    path: Path,
    header: Mapping[str, Any],
    identity: Mapping[str, Any],
    today: Callable[[Mapping[str, Any]], Mapping[str, Any]],
) -> None:
    if header.get("format") != FORMAT:
        raise LogError(
            f"{path} has format {header.get('format')}, but this version of evomerge reads format {FORMAT}: "
            f"resume it with the version that wrote it, or choose another run directory."
        )
    old = today(header["identity"])
    changed = sorted(name for name in {*old, *identity} if old.get(name) != identity.get(name))
    if changed:
        details = "; ".join(f"{name} was {_short(old.get(name))}, is {_short(identity.get(name))}" for name in changed)
        raise LogError(
            f"The run {path.parent} belongs to another search: {details}. Going on would mix two searches. "
            f"Choose another run directory (hydra.run.dir=runs/another), or put the settings back."
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."
