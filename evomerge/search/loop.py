"""The loop of evomerge: ask -> merge -> evaluate -> tell.

In: a searcher that proposes points of a coefficient space, an evaluator that turns points into scored trials (it merges
the model in place and runs the fitness), the run's trial log, and a budget. Out: the reason why the search ended;
everything that was found stands in the log, and in the searcher's incumbents, among which `selection.py` picks the
winner.

The log is the checkpoint. Called again with the same arguments the loop asks the same questions, finds the answers in
the log, and goes on where it was cut off; it is the same code path, so there is nothing else to get right. See
`log.py` for what the log holds.

A searcher with a lag is asked ahead, so that a pool has work while a batch is incomplete. What it is asked and told,
and when, depends on its lag alone: not on the workers, the clock or the budget. So the log of a small budget is the
beginning of a larger one's, unless generations are raced, and its last batches may have been asked for and not scored.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence

from evomerge.search.log import TrialLog
from evomerge.search.stopping import HOPELESS, Budget
from evomerge.searchers.base import Searcher, lag_of
from evomerge.trials import Batch, StopReason, Trial

Evaluator = Callable[[Batch, Sequence[int]], Iterable[Trial]]
"""`(batch, missing) -> trials`, as they end, in any order.

A call begins the work, or does nothing yet; the trials are iterated when the loop comes to the batch. It sees the whole
generation; wrappers may sample, race, pool or interrupt. They call what they wrap at once.
"""


def search(searcher: Searcher, evaluate: Evaluator, log: TrialLog, budget: Budget) -> StopReason:
    """Run a search to its end, or go on with one that was cut off.

    Args:
        searcher: proposes points and is told their values; rebuilt from nothing at every start.
        evaluate: scores the missing points of a batch; a bad candidate becomes a failed trial, never an exception.
        log: the run's open trial log.
        budget: how many trials may be scored in all, those already in the log included. Exact: a last batch may stay
            incomplete and is never told.

    Returns:
        Why the search ended.

    Raises:
        ReplayMismatch: the log was written by a search that asked for other points.
    """
    window: deque[tuple[Batch, Iterable[Trial]]] = deque()  # what is open, in the order asked
    while (reason := _end(searcher, log, budget, not window)) is None:
        while not window or (len(window) <= lag_of(searcher) and searcher.stop() is None):
            batch = log.ask(searcher.ask())  # a new ask is written; a logged one is verified, its trials filled in
            window.append((batch, evaluate(batch, budget.due(batch, log, [one for one, _ in window]))))
        batch, trials = window.popleft()
        log.begin(batch)
        for trial in trials:
            log.append(trial)
        if not batch.complete:  # a signal, the budget or its hours have cut it short
            return budget.cut(log, batch)
        log.tell(batch)
        searcher.tell(batch)
    return reason


def _end(searcher: Searcher, log: TrialLog, budget: Budget, idle: bool) -> StopReason | None:
    """Return why the search must end now, or None; a searcher that has nothing more to ask is still told what is open.

    That all candidates failed is decided by the log alone, at its end, so that a replay decides alike. Hours end no
    replay: what was scored before stays.
    """
    if log.trials >= HOPELESS and len(log.errors) == log.trials and not log.logged:
        return StopReason.FAILED
    if (reason := (searcher.stop() if idle else None) or budget.stop(log)) is not None:
        return reason
    return StopReason.TIME if budget.deadline.over and not log.logged else None


def watching(evaluate: Evaluator, told: Callable[[Trial], None]) -> Evaluator:
    """Return an evaluator that tells of every trial as it ends."""

    def watched(trials: Iterable[Trial]) -> Iterator[Trial]:
        for trial in trials:
            told(trial)
            yield trial

    return lambda batch, missing: watched(evaluate(batch, missing))
