"""The serial scorer: units are scored one after the other on one live model, and what goes wrong is contained.

In: units, each a model and the items to score it on. Out: what came of each, as it ends. The merger builds the
candidate, and the fitness scores the live model. An exception, a `sys.exit` (`exits.py`), a change of the live model
(`guard.py`), a lack of memory that smaller batches cannot mend (`memory.py`) or a hang (`limits.py`) is what came of
one unit, and the next one is scored as if nothing had happened.
"""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import LiveModelError
from evomerge.common.limits import TimeLimit
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import APPROXIMATELY, in_checkpoints_dtype, score_experts
from evomerge.search.evaluators.steps import Gradients, Steps
from evomerge.search.evaluators.units import Scored, Unit
from evomerge.search.memory import LACK, bare, free, lacks_memory, recognised
from evomerge.trials import Trial

failures = logging.getLogger(f"{__name__}.failures")
"""Is told of each candidate that fails."""


@dataclass(frozen=True)
class Timing:
    """Where the time of one candidate went, in seconds."""

    batch: int
    index: int
    merge: float
    forward: float
    total: float


class SerialScorer:
    """Scores units one by one on a live model, merged once for units in a row that are of one candidate.

    Args:
        problem: what is searched; its merger builds candidates.
        fitnesses: score the live model on the items of a split.
        limit: of the time of a candidate.
        candidate: how many items that is; a unit of more may take longer by as much. None for no such allowance.
        steps: takes the steps of a gradient; None where none are asked for.

    Attributes:
        ended: is told of each unit that has ended, before anybody takes it.
    """

    def __init__(
        self,
        problem: Problem,
        fitnesses: Mapping[str, LiveFitness],
        limit: TimeLimit | None = None,
        candidate: int | None = None,
        steps: Steps | None = None,
    ) -> None:
        self._problem, self._fitnesses, self._steps = problem, fitnesses, steps
        self._limit, self._candidate = limit or TimeLimit(), candidate
        self.ended: Callable[[Unit, Scored], None] = lambda unit, scored: None
        self._live: object = None  # the model that the live one is merged at

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what came of each unit with its position, in order; the next one begins once this one is taken."""
        self._live = None
        failed: Scored | None = None  # of the candidate whose turn it is; an error holds the tensors of its frames
        for position, unit in enumerate(units):
            scored = self._scored(unit) if failed is None else failed
            more = position + 1 < len(units) and units[position + 1].model is unit.model
            failed = scored if more and isinstance(scored.outcome, Exception) else None
            self.ended(unit, scored)
            yield position, scored
            del scored

    def one(self, unit: Unit) -> Scored:
        """Return what came of a unit; it is merged anew unless its model is that of the unit before."""
        return self._scored(unit)

    def _scored(self, unit: Unit) -> Scored:
        started = time.perf_counter()
        try:
            limited = self._limit.first if unit.first else self._limit
            outcome, merged, ended, gradients = limited(lambda: self._outcome(unit), unit.share(self._candidate))
        except LiveModelError:  # every later score would be one of another model
            raise
        except Exception as error:  # whatever a model or a user's fitness may raise
            self._live = None
            return Scored(recognised(error))
        forward = ended - merged if outcome.forward_seconds is None else outcome.forward_seconds
        return Scored(outcome, merged - started, forward, time.perf_counter() - started, gradients)

    def _outcome(self, unit: Unit) -> tuple[Outcome, float, float, Gradients | None]:
        """Build a candidate, if it is not there yet, and score it; say as well when it was built and scored, and what
        its gradient is.
        """
        if isinstance(unit.model, str) and unit.model == "experts":
            self._live, merged = None, time.perf_counter()
            outcome = score_experts(self._problem, self._fitnesses[unit.split], unit.ids)
            return outcome, merged, time.perf_counter(), None
        if self._live is not unit.model:
            self._put(unit)
            self._live = unit.model
        merged = time.perf_counter()
        if unit.scale is not None and self._steps is not None:
            outcome, gradients = self._steps(unit.ids, unit.scale)
            return outcome, merged, time.perf_counter(), gradients
        score = self._fitnesses[self._place(unit)]
        outcome = (in_checkpoints_dtype(self._problem.live, score) if unit.written else score)(unit.ids)
        return outcome, merged, time.perf_counter(), None

    def _place(self, unit: Unit) -> str:
        """Return under which name that stands which scores a unit."""
        candidate = isinstance(unit.model, np.ndarray) and unit.split == "search"
        return APPROXIMATELY if candidate and self._problem.sampling.approximate else unit.split

    def _put(self, unit: Unit) -> None:
        """Put the model of a unit into the live one; one that is named, or under other settings, is not for here."""
        merger = self._problem.merger
        match unit.model:
            case np.ndarray():
                merger.apply(self._problem.space.decode(unit.model))
            case Mapping():
                merger.apply(unit.model)
            case "base":
                merger.restore()
            case _:
                raise TypeError(f"a live model cannot be made {unit.model!r:.100}")


def failed(batch: int, index: int, ids: dict[str, list[str]], error: Exception) -> Trial:
    """Return the trial of a point whose model or fitness raised an error, and tell the user."""
    text = f"{type(error).__name__}: {error}".splitlines()[0][:300]
    failures.warning("Candidate %d of generation %d failed and is ranked last: %s", index, batch, text)
    if lacks_memory(error):
        free()
        text = text if isinstance(bare(error), MemoryError) else LACK
    text = re.sub(r"0x[0-9a-fA-F]+", "0x…", text)  # no addresses in the log,
    text = re.sub(r"/(?:[^\s/'\"]+/)+", "…/", text)  # and no paths of this machine
    return Trial(batch, index, "failed", None, items=ids, error=text)
