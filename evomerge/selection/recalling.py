"""A scorer that remembers: what a candidate scored on some items in another search is not scored again.

In: a scorer of a search. Out: the same answers, those from the cache first. Runs of a sweep that share a cache, a seed
and models share their first candidates, and a search whose directory was deleted comes again at no cost. An outcome is
found by hashes of all that it depends on, as those of finished models are (`judge.py`): contents of the problem,
coefficients, items, version and kind of machine. Steps of a gradient and errors are not remembered.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.search.evaluators.units import Scored, Scorer, Unit
from evomerge.selection.remember import recalled, remembered
from evomerge.space.named import name_coefficients


class Recalling:
    """Wraps the scorer of a search.

    Args:
        scorer: scores what is not remembered.
        problem: what is searched, with the circumstances under which it is scored.
        wanted: whether anything is to be remembered.

    Attributes:
        items: how many item evaluations were remembered so far.

    Raises:
        ConfigError: the fitness may say something else each time.
    """

    def __init__(self, scorer: Scorer, problem: Problem, wanted: bool) -> None:
        if wanted and not problem.fitness.pure:
            raise ConfigError(
                "fitness.remember=true takes scores from other searches, and under this fitness they may be others "
                "each time: write fitness.remember=false."
            )
        self._scorer, self._problem, self._wanted, self.items = scorer, problem, wanted, 0
        approximate = [problem.sampling.approximate] if problem.sampling.approximate else []
        self._surroundings = digest([problem.contents, problem.circumstances, *approximate]) if wanted else ""

    def __call__(self, units: Sequence[Unit]) -> Iterator[tuple[int, Scored]]:
        """Yield what is remembered of units, then what the scorer says of the others."""
        if not self._wanted:
            return self._scorer(units)
        about = [self._described(unit) for unit in units]
        found = [recalled(self._cache, each) if each else None for each in about]
        missing = [i for i, outcome in enumerate(found) if outcome is None]
        self.items += sum(units[i].size for i, outcome in enumerate(found) if outcome is not None)
        return self._answers(found, missing, about, self._scorer([units[i] for i in missing]))

    def _answers(
        self,
        found: Sequence[Outcome | None],
        missing: Sequence[int],
        about: Sequence[dict[str, Any] | None],
        answers: Iterator[tuple[int, Scored]],
    ) -> Iterator[tuple[int, Scored]]:
        yield from ((i, Scored(outcome)) for i, outcome in enumerate(found) if outcome is not None)
        for place, scored in answers:
            description, outcome = about[missing[place]], scored.outcome
            if description and isinstance(outcome, Outcome):
                remembered(self._cache, description, lambda outcome=outcome: outcome)
            yield missing[place], scored
            del scored, outcome  # an error holds the tensors of its frames

    @property
    def _cache(self) -> Path:
        return self._problem.opening.cache

    def _described(self, unit: Unit) -> dict[str, Any] | None:
        """Return what the outcome of a unit depends on, in hashes; None for one that is not remembered."""
        if not isinstance(unit.model, np.ndarray) or unit.scale is not None or unit.first:
            return None
        space = self._problem.space
        named = name_coefficients(space.decode(unit.model), space.groups, space.rows)
        return {"candidate": digest(named), "items": digest(dict(unit.ids)), "of": self._surroundings}
