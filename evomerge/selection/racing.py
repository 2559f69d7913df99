"""The best of several models, by a race over blocks of items.

In: names, and a way to score the model of a name on some items. Out: the best of them, the value of each, and on how
many items it was scored. `dropping.py` says who is dropped after each block.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from evomerge.common.errors import EvomergeError, LiveModelError
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import Objective
from evomerge.search.evaluators.blocks import joined, ordered
from evomerge.search.evaluators.dropping import Items, Race
from evomerge.search.stopping import Stopped
from evomerge.selection.dropping import ALPHA, cut

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Chosen:
    """The best of some candidates.

    Attributes:
        name: of the best one.
        outcomes: of those that were scored on all items, on these.
        values: of each, on the items that it was scored on; -inf for one that could not be scored.
        seen: the number of these items.
        spared: on how many items models were not scored, in all, since they were dropped or failed.
    """

    name: str
    outcomes: dict[str, Outcome]
    values: dict[str, float]
    seen: dict[str, int]
    spared: int


def choose(
    candidates: Iterable[str],
    score: Callable[[str, Items], Outcome],
    objective: Objective,
    ids: Items,
    begin: Callable[[Iterable[tuple[str, Items]]], object] = lambda asked: None,
) -> Chosen:
    """Choose the best candidate; the first of equals wins.

    Those that are clearly behind are dropped on the way (see `dropping.py`), the best one is scored on all items. Where
    the value is no weighted mean of items, as with `aggregate=worst`, all candidates are scored on all items.

    Args:
        candidates: their names.
        score: scores the one with that name on some items. One that fails, or whose value is no finite number, is never
            chosen.
        objective: makes the value of an outcome.
        ids: all items, by task.
        begin: is told of what is scored next, in that order: a scorer with several devices may begin with all of it.

    Raises:
        EvomergeError: none of them could be scored.
    """
    weights = objective.weights_of(ids)
    parts = [ids] if weights is None else cut(ids)
    race = Race({task: len(every) for task, every in ids.items()}, weights or {}, len(parts) - 1, ALPHA)
    values = dict.fromkeys(candidates, -math.inf)
    racing, outcomes = list(values), dict[str, Outcome]()
    for number, part in enumerate(parts, 1):
        begin([(name, part) for name in racing])
        for name in racing:
            try:
                before = [outcomes[name]] if name in outcomes else []
                outcomes[name] = joined([*before, score(name, part)], ids)
                if number == len(parts):
                    outcomes[name] = ordered(outcomes[name], ids)
                value = objective(outcomes[name])[0][0]
            except (Stopped, LiveModelError):
                raise
            except Exception as error:  # whatever a model or a user's fitness may raise: it costs this candidate
                logger.warning("%s could not be scored and is not chosen: %s: %s", name, type(error).__name__, error)
                value = math.nan
            values[name] = value if math.isfinite(value) else -math.inf
        racing = [name for name in racing if values[name] > -math.inf]
        if number < len(parts) and len(racing) > 1:
            dropped = race.drop({name: _results(outcomes[name], objective.metric) for name in racing})
            racing = [name for name in racing if name not in dropped]
    if not racing:
        raise EvomergeError(f"None of {', '.join(values)} could be scored on the select split; the warnings say why.")
    seen = {name: _size(outcomes[name].items) if name in outcomes else 0 for name in values}
    spared = _size(ids) * len(values) - sum(seen.values())
    best = max(racing, key=lambda name: values[name])
    return Chosen(best, {name: outcomes[name] for name in racing}, values, seen, spared)


def _results(outcome: Outcome, metric: str) -> dict[str, np.ndarray]:
    return {task: metrics[metric] for task, metrics in outcome.results.items()}


def _size(ids: Items) -> int:
    return sum(map(len, ids.values()))
