"""How one point of a front is chosen, by a rule that the user names beforehand; and how much a front covers.

In: the values of the points, all to be maximised, and what each lacks of what was asked for. Out: a place. The knee is
where giving up a little of one value costs most of another: the point farthest above the plane through the best points
of the values (Das 1999, On Characterizing the "Knee" of the Pareto Curve Based on Normal-Boundary Intersection). Values
are scaled before, from 0 for the worst point of the front to 1 for the best, and the plane is the one through the
corners (1, 0, …), …, (0, …, 1): for two values that is the line through the two ends, and the knee is the point with
the largest sum. Of equal sums the most even point counts more, that whose worst scaled value is the largest; then the
one that is better in the first value, the second, and so on. So the order of the points makes no difference.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.conditions import Condition, read_limit
from evomerge.fitness.objectives import KNEE
from evomerge.fitness.values import Value

DIGITS = 12
"""Sums nearer to each other than rounding are equal."""


@dataclass(frozen=True)
class Rule:
    """Chooses one of several models.

    Attributes:
        text: the rule in words.
        best: the place of the value that is to be best; None for the knee.
        wanted: what is to be kept of others.
        base: the outcome of the base on the same items.
    """

    text: str
    best: int | None
    wanted: Sequence[Condition]
    base: Outcome

    def __call__(self, outcomes: Sequence[Outcome], values: np.ndarray) -> tuple[int, bool]:
        """Return the place of the one that is chosen, and whether it keeps what is wanted.

        Args:
            outcomes: of the models of a front, on the items of the base's.
            values: theirs, (n, m), to be maximised.
        """
        if self.best is None:
            return knee(values), True
        lacks = np.array([[one.violation(outcome, self.base) for one in self.wanted] for outcome in outcomes])
        place = best_of_enough(values, lacks, self.best)
        return place, bool(np.all(lacks[place] <= 0))


def rule_of(choose: Any, values: Sequence[Value], base: Outcome) -> Rule:
    """Return a rule as the settings have it (`objective.choose`).

    Args:
        choose: `knee`, or {at_least: {value: `0.98 * base`}, best: value}. What is to be small must be at most that.
        values: of the search.
        base: the outcome of the base on the items on which models are chosen.
    """
    if choose == KNEE:
        return Rule("the knee of the front", None, (), base)
    named: Mapping[str, Value] = {value.name: value for value in values}
    wanted, texts = [], []
    for name, text in choose["at_least"].items():
        value = named[name]
        _, share, fixed = read_limit(name, f">= {text}")
        wanted.append(Condition(value.metric, value.weights, share, name, value.minimise, fixed, value.aggregate))
        texts.append(f"{name} at {'most' if value.minimise else 'least'} {text}")
    return Rule(
        f"{' and '.join(texts)}, then the best {choose['best']}", list(named).index(choose["best"]), wanted, base
    )


def knee(values: np.ndarray) -> int:
    """Return the place of the knee; of points that are equal in every value, the first.

    Args:
        values: (n, m) of the points of a front, at least one, all finite.
    """
    order = _order(values)
    return max(range(len(values)), key=lambda i: (*order[i], -i))


def best_of_enough(values: np.ndarray, lacks: np.ndarray, best: int) -> int:
    """Return the place of the point that is best in one value among those that lack nothing in others; where all lack
    something, among those that lack least. Of equals the one that the knee would be is taken.

    Args:
        values: (n, m), at least one, all finite.
        lacks: (n, c), not positive where there is enough.
        best: which value.
    """
    together, order = np.round(np.maximum(lacks, 0.0).sum(axis=1), DIGITS), _order(values)
    enough = np.flatnonzero(together == together.min())
    return int(max(enough, key=lambda i: (values[i, best], *order[i], -i)))


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Return the volume of what points dominate above a reference (Zitzler and Thiele 1998), by Optuna.

    A point that is not better than the reference in every value adds nothing.

    Args:
        values: (n, m), to be maximised.
        reference: (m,).
    """
    from optuna._hypervolume import compute_hypervolume  # slow to load; it has no public name, and Optuna stays below 6

    above = values[np.all(values > reference, axis=1)]
    return float(compute_hypervolume(-above, -reference)) if len(above) else 0.0


def _order(values: np.ndarray) -> list[tuple[float, ...]]:
    """Return what points are compared by: the sum of their values, scaled from 0, the worst of these points, to 1, the
    best; the least of them; and the values in their order.
    """
    spread = np.ptp(values, axis=0)
    scaled = np.divide(values - values.min(axis=0), spread, out=np.zeros(values.shape), where=spread > 0)
    least = np.where(spread > 0, scaled, 1.0).min(axis=1)  # a value in which all are equal makes none uneven
    counted = np.round(np.column_stack([scaled.sum(axis=1), least]), DIGITS)
    return [tuple(row) for row in np.column_stack([counted, values]).tolist()]
