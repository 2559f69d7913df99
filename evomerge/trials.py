"""The trial log: what was asked, what came out, what was told. It is the checkpoint of a search, and the only one.

`trials.jsonl` is append-only text, one JSON object a line, four kinds of line:

    header   what is searched (hashes of sources, items and settings) and on what kind of machine; a second one where a run moved to another machine
    ask      the points of one batch
    trial    the result of one point: values, per-task scores, item ids and per-item results, or the error that it ended with
    tell     the batch is complete

Each line ends in a checksum of itself and is on the disk (fsync) before anything acts on it. Nothing in the log comes from clocks, paths or
addresses, so a run that was killed anywhere and resumed on the same machine has a byte-identical log. Resuming is replaying: see `TrialLog.begin`.
"""

from __future__ import annotations

import json
import logging
import math
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import filelock
import numpy as np

from evomerge.errors import LogError, ReplayMismatch

logger = logging.getLogger(__name__)

FORMAT = 1
TOLERANCE = 1e-6
"""How far a re-asked point may lie from the logged one on another kind of machine (design: law 1)."""


@dataclass(frozen=True)
class Trial:
    """One scored point.

    Attributes:
        batch: the number of its batch, from 0.
        index: its position in the batch.
        status: `ok`, `failed` (an exception, a NaN, out of memory) or `censored` (raced out).
        values: the objective's values, to be maximised; None unless `ok`.
        violations: how far each constraint is violated (positive is bad).
        scores: the mean of every metric by task.
        items: the ids of the items that were scored, by task.
        results: per-item results by task and metric, in the order of `items`.
        error: what went wrong, for a failed trial.
    """

    batch: int
    index: int
    status: str
    values: tuple[float, ...] | None
    violations: tuple[float, ...] = ()
    scores: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    items: Mapping[str, list[str]] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, list[float]]] = field(default_factory=dict)
    error: str | None = None

    @property
    def spent(self) -> int:
        """The number of item evaluations that it cost."""
        return sum(len(ids) for ids in self.items.values())


@dataclass
class Batch:
    """The points of one generation, and their trials as they come in.

    Attributes:
        index: the number of the batch, from 0.
        points: float64, shape (n, dim).
        trials: the trial of each point, or None while it is missing.
    """

    index: int
    points: np.ndarray
    trials: list[Trial | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.points = np.atleast_2d(np.asarray(self.points, dtype=np.float64))
        self.trials = self.trials or [None] * len(self.points)

    @property
    def missing(self) -> list[int]:
        """The indices of the points without a trial."""
        return [i for i, trial in enumerate(self.trials) if trial is None]

    @property
    def complete(self) -> bool:
        """Whether every point has its trial."""
        return all(trial is not None for trial in self.trials)

    @property
    def values(self) -> np.ndarray:
        """The first objective's values, shape (n,): -inf for a point that failed or whose value is not a number, so that it ranks last."""
        return np.array(
            [-math.inf if t is None or not t.values or math.isnan(t.values[0]) else t.values[0] for t in self.trials]
        )


def read_log(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the lines of a trial log, verified; a last line without its end is left out.

    Raises:
        LogError: a line was changed after it was written. It names the line and how to keep all before it.
    """
    data = path.read_bytes()
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        body, mark, checksum = line.rpartition(b',"crc":"')
        if not mark or checksum != b'%08x"}' % zlib.crc32(body):
            raise LogError(
                f"Line {number} of {path} does not match its checksum: the file was damaged or edited after it was written. "
                f"Nothing was changed. Put a backup back, or keep what stands before it with `head -n {number - 1} {path.name} > good.jsonl`, "
                f"put that in its place and run the same command again: the trials after it will be computed anew."
            )
        yield json.loads(body + b"}")


class TrialLog:
    """The open log of one run; a context manager that holds the run's lock.

    Args:
        path: the file `trials.jsonl`; made when missing.
        identity: what makes this search this search, as names and hashes. A log with another identity is refused.
        fingerprint: the kind of machine (see `fingerprint.py`). On the same one re-asked points must be bit-equal to the logged ones.

    Attributes:
        trials: how many trials the loop has seen so far.
        items: how many item evaluations they cost.

    Raises:
        LogError: another process writes to it, it is damaged, or it belongs to another search.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], fingerprint: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self.trials = 0
        self.items = 0
        self._identity = json.loads(json.dumps(dict(identity)))
        self._fingerprint = json.loads(json.dumps(dict(fingerprint)))
        self._lock = filelock.FileLock(self.path.with_suffix(".lock"))
        self._pending: list[dict[str, Any]] = []  # logged lines that the loop has not reached yet
        self._foreign = False  # whether the replayed part was written, in part, by another kind of machine
        self._batch: Batch | None = None

    def __enter__(self) -> TrialLog:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except filelock.Timeout:
            raise LogError(
                f"Another process is working on the run {self.path.parent}. Two searches must not write one log: wait for it, or stop it, "
                f"or choose another run directory (hydra.run.dir=runs/another)."
            ) from None
        try:
            self._open()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        os.close(self._file)
        self._lock.release()

    def begin(self, batch: Batch) -> Batch:
        """Write a new ask, or verify one that the log holds and fill in its trials.

        Args:
            batch: what the searcher asks for.

        Returns:
            The batch to evaluate. On a replay it has the logged points, from which candidates are built, and the logged trials.

        Raises:
            ReplayMismatch: the log holds other points; names the batch, the point and the coordinate.
        """
        line = self._next("ask")
        if line is None:
            self._write({"kind": "ask", "batch": batch.index, "points": batch.points.tolist()})
            self._batch = Batch(batch.index, batch.points)
            return self._batch
        logged = Batch(batch.index, np.array(line["points"], dtype=np.float64))
        self._verify(batch, logged)
        while (trial_line := self._next("trial")) is not None:
            trial = Trial(**{name: value for name, value in trial_line.items() if name != "kind"})
            logged.trials[trial.index] = trial
            self._count(trial)
        self._batch = logged
        return logged

    def append(self, trial: Trial) -> None:
        """Write the result of one point of the current batch."""
        if self._batch is None or trial.batch != self._batch.index:
            raise LogError(
                f"A trial of batch {trial.batch} came while batch {self._batch and self._batch.index} is being evaluated."
            )
        self._write({"kind": "trial", **asdict(trial)})
        self._batch.trials[trial.index] = trial
        self._count(trial)

    def tell(self, batch: Batch) -> None:
        """Write that a batch is complete, unless the log says so already."""
        if self._next("tell") is None:
            self._write({"kind": "tell", "batch": batch.index})

    def _open(self) -> None:
        lines = list(read_log(self.path)) if self.path.exists() else []
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644)
        data = self.path.read_bytes()
        self._end = data.rfind(b"\n") + 1
        if self._end < len(data):
            logger.warning(
                "The last line of %s was cut off while it was being written (%d bytes); nothing had acted on it, and it is computed again.",
                self.path.name,
                len(data) - self._end,
            )
            os.ftruncate(self._file, self._end)
        if lines and lines[0]["kind"] != "header":
            raise LogError(
                f"{self.path} does not begin with a header line: it is no trial log, or its beginning is lost."
            )
        for line in lines:
            if line["kind"] == "header":
                self._check_identity(line)
        last = [line["fingerprint"] for line in lines if line["kind"] == "header"][-1:]
        self._pending = lines
        if last != [self._fingerprint]:
            if last:
                changes = [name for name in self._fingerprint if self._fingerprint[name] != last[0].get(name)]
                logger.warning(
                    "This run goes on on another kind of machine (%s differ from the log). Points may differ in their last digits; "
                    "candidates are built from the logged points.",
                    ", ".join(changes),
                )
            self._write(
                {"kind": "header", "format": FORMAT, "identity": self._identity, "fingerprint": self._fingerprint}
            )
            _fsync_directory(self.path.parent)

    def _check_identity(self, header: dict[str, Any]) -> None:
        if header.get("format") != FORMAT:
            raise LogError(
                f"{self.path} has format {header.get('format')}, but this version of evomerge reads format {FORMAT}: "
                f"resume it with the version that wrote it, or choose another run directory."
            )
        old = header["identity"]
        changed = sorted(name for name in {*old, *self._identity} if old.get(name) != self._identity.get(name))
        if changed:
            details = "; ".join(
                f"{name} was {_short(old.get(name))}, is {_short(self._identity.get(name))}" for name in changed
            )
            raise LogError(
                f"The run {self.path.parent} belongs to another search: {details}. Going on would mix two searches. "
                f"Choose another run directory (hydra.run.dir=runs/another), or put the settings back."
            )

    def _next(self, kind: str) -> dict[str, Any] | None:
        """Return the next logged line if it is of this kind, stepping over headers; None when the log ends here or goes on with another kind."""
        while self._pending and self._pending[0]["kind"] == "header":
            self._foreign = self._foreign or self._pending[0]["fingerprint"] != self._fingerprint
            self._pending.pop(0)
        if self._pending and self._pending[0]["kind"] == kind:
            return self._pending.pop(0)
        if self._pending and kind != "trial":  # a batch ends where its trials end; all else has its fixed place
            found = self._pending[0]["kind"]
            raise LogError(
                f"{self.path} holds a line of kind `{found}` where `{kind}` was expected: the log was edited. Put a backup back."
            )
        return None

    def _verify(self, asked: Batch, logged: Batch) -> None:
        where = f"generation {asked.index} of {self.path}"
        advice = (
            "The searcher, its settings or its libraries are not those that wrote the log. Put them back, or choose another run directory "
            "(hydra.run.dir=runs/another)."
        )
        if asked.points.shape != logged.points.shape:
            raise ReplayMismatch(
                f"The searcher asks for {asked.points.shape} numbers in {where}, which holds {logged.points.shape}. {advice}"
            )
        difference = np.abs(asked.points - logged.points)
        allowed = TOLERANCE if self._foreign else 0.0
        if (difference > allowed).any():
            point, coordinate = np.unravel_index(int(difference.argmax()), difference.shape)
            raise ReplayMismatch(
                f"Coordinate {coordinate} of point {point} in {where} is {logged.points[point, coordinate]!r}, but the searcher now asks for "
                f"{asked.points[point, coordinate]!r}. {advice}"
            )
        if difference.any():
            logger.warning(
                "Re-asked points of generation %d differ from the logged ones by up to %.1e.",
                asked.index,
                difference.max(),
            )

    def _count(self, trial: Trial) -> None:
        self.trials += 1
        self.items += trial.spent

    def _write(self, record: Mapping[str, Any]) -> None:
        body = json.dumps(record, separators=(",", ":"), allow_nan=False)[:-1].encode()
        line = body + b',"crc":"%08x"}\n' % zlib.crc32(body)
        try:
            rest = memoryview(line)
            while rest:
                rest = rest[os.write(self._file, rest) :]
            os.fsync(self._file)
        except OSError as error:
            os.ftruncate(self._file, self._end)  # take back a half-written line; what stands before it is safe
            raise LogError(
                f"Could not write to {self.path}: {error.strerror}. Everything up to trial {self.trials} is safe. "
                f"Make room and run the same command again: it goes on from there."
            ) from error
        self._end += len(line)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 100 else text[:97] + "..."


def _fsync_directory(path: Path) -> None:
    """Make the file's name durable, not only its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
