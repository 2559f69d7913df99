"""The nouns of the conversation between a searcher and what scores its points: batches, trials, and why a search ends.

Each is plain data. A searcher asks with a `Batch`; an evaluator answers with a `Trial` for each of its points.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Trial:
    """One scored point.

    Attributes:
        batch: the number of its batch, from 0.
        index: its position in the batch.
        status: `ok`, `failed` (an exception, a NaN, out of memory, a hang) or `censored` (raced out).
        values: the objective's values, to be maximised; None if it failed. Those of a censored one are estimates, by
            which it is ranked and no more: `full` is None then.
        violations: how far each constraint is violated (positive is bad).
        scores: the mean of every metric by task; None in place of a number that is not finite, here and in `results`.
        items: the ids of the items that were scored, by task.
        results: per-item results by task and metric, in the order of `items`.
        error: what went wrong, for a failed trial.
        gradient: of the first value with respect to the point, (dim,), where the batch asks for it.
        weights: how many items each of `items` stands for, by task; empty where all stand for as many.
    """

    batch: int
    index: int
    status: str
    values: tuple[float, ...] | None
    violations: tuple[float, ...] = ()
    scores: Mapping[str, Mapping[str, float | None]] = field(default_factory=dict)
    items: Mapping[str, list[str]] = field(default_factory=dict)
    results: Mapping[str, Mapping[str, Sequence[float | None]]] = field(default_factory=dict)
    error: str | None = None
    gradient: Sequence[float] | None = None
    weights: Mapping[str, Sequence[int]] = field(default_factory=dict)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Trial:
        """Return the trial of a line of the log: a replay, a reader and the first run see the very same."""
        fields = {name: value for name, value in record.items() if name != "kind"}
        values = None if fields["values"] is None else tuple(fields["values"])
        return cls(**{**fields, "values": values, "violations": tuple(fields["violations"])})

    @property
    def full(self) -> tuple[float, ...] | None:
        """Its values, where it was scored on all items of its generation: what may be called a result."""
        return None if self.status == "censored" else self.values

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
        gradient: whether the searcher asks for gradients: then the value is that of a loss, not of the fitness.
    """

    index: int
    points: np.ndarray
    trials: list[Trial | None] = field(default_factory=list)
    gradient: bool = False

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

    def scored(self, values: Iterable[float]) -> Batch:
        """Return the batch with a value for each point, for whoever asks a searcher and tells it by hand; a value that
        is not finite is that of a failed point.

        >>> batch = Batch(0, [[0.2], [0.4]]).scored([1.5, float("nan")])
        >>> batch.complete, batch.values.tolist()
        (True, [1.5, -inf])
        """
        trials: list[Trial | None] = [
            Trial(self.index, i, "ok", (float(value),))
            if math.isfinite(value)
            else Trial(self.index, i, "failed", None)
            for i, value in zip(range(len(self.points)), values, strict=True)
        ]
        return replace(self, trials=trials)

    def table(self, objectives: int) -> np.ndarray:
        """Return all values, float64 (n, m): -inf for a point that failed or has none, in all of them.

        Args:
            objectives: m, how many values a point has.
        """
        rows = [t.values if t and _known(t) else (-math.inf,) * objectives for t in self.trials]
        return np.array(rows, dtype=np.float64).reshape(-1, objectives)

    @property
    def violated(self) -> np.ndarray:
        """How far each point violates constraints, in all, (n,): 0 where it holds them, inf where it has no value."""
        return np.array(
            [sum(max(lacks, 0.0) for lacks in t.violations) if t and _known(t) else math.inf for t in self.trials]
        )

    @property
    def values(self) -> np.ndarray:
        """The first objective's values, shape (n,): -inf for a point that failed or has no number, so it ranks last."""
        return np.array(
            [-math.inf if t is None or not t.values or math.isnan(t.values[0]) else t.values[0] for t in self.trials]
        )


def _known(trial: Trial) -> bool:
    """Whether each value of a trial is a number."""
    return bool(trial.values) and not any(map(math.isnan, trial.values or ()))


def finite(value: Any) -> Any:
    """Return a copy with None in place of every number that JSON cannot hold: NaN and the infinities."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class StopReason(enum.Enum):
    """Why a search ended; the value is a sentence for people."""

    BUDGET = "The budget is spent."
    TIME = "The hours are spent, as far as choosing the winner leaves any. Run the same command again for as many more."
    EXHAUSTED = "Every point that this searcher can propose has been scored."
    CONVERGED = "The searcher has converged: its steps no longer change the coefficients."
    FAILED = "Every candidate so far has failed, so the search ends early."
    INTERRUPTED = "The search was asked to stop. Run the same command again to go on."
