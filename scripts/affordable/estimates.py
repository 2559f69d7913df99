"""Estimates of the values of all candidates of a generation from answers to so many items each.

To add one, add an entry to `ESTIMATES`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from affordable.draws import Draw
from affordable.irt import ItemParameters, fit_ability, fit_merge
from affordable.samples import Sampler, disagreement, stratified, uniform

Estimate = Callable[[Draw, int], np.ndarray]
"""(draw, items of a candidate) -> values (n,)."""


def plain(sampler: Sampler) -> Estimate:
    """Return the estimate by the answers of a sample."""

    def of(draw: Draw, size: int) -> np.ndarray:
        sample = sampler(draw, size)
        return draw.decides[:, sample.items] @ sample.weights

    return of


def by_probability(draw: Draw, size: int) -> np.ndarray:
    """Return the log-probability of the right answers, which is no estimate of an accuracy but ranks as one may."""
    sample = stratified(draw, size)
    return draw.smooth[:, sample.items] @ sample.weights


def by_both(draw: Draw, size: int) -> np.ndarray:
    """Return what decides plus log-probability, both in deviations of the generation."""
    sample = stratified(draw, size)
    both = [each[:, sample.items] @ sample.weights for each in (draw.decides, draw.smooth)]
    return sum((each - each.mean()) / max(each.std(), 1e-12) for each in both) + np.zeros(len(draw.rows))


def by_irt(others: bool, merged: bool, half: bool) -> Estimate:
    """Return an estimate by item response theory, on a sample stratified by class.

    Args:
        others: whether item parameters are fitted to other merges too, beside base and experts.
        merged: whether the ability of a candidate is a weighted sum of those of experts (mp-IRT).
        half: whether the estimate is halfway to the plain one (gp-IRT).
    """

    def of(draw: Draw, size: int) -> np.ndarray:
        known, sample = draw.known, stratified(draw, size)
        fitted = known.parameters_of_others if others else known.parameters_of_experts
        answers = draw.right[:, sample.items]
        values = []
        for own in answers:
            ability = _ability(fitted, own, sample.items, fitted.abilities[known.experts] if merged else None)
            filled = fitted.chances(ability)
            filled[sample.items] = own
            values.append(filled @ known.shares)
        return (np.array(values) + answers @ sample.weights) / 2 if half else np.array(values)

    return of


def _ability(fitted: ItemParameters, own: np.ndarray, items: np.ndarray, experts: np.ndarray | None) -> np.ndarray:
    return fit_ability(fitted, items, own) if experts is None else fit_merge(fitted, experts, items, own)


ESTIMATES: dict[str, Estimate] = {
    "random subset": plain(uniform),
    "stratified by class": plain(stratified),
    "expert disagreement": plain(disagreement),
    "p-IRT": by_irt(others=False, merged=False, half=False),
    "gp-IRT": by_irt(others=False, merged=False, half=True),
    "mp-IRT": by_irt(others=False, merged=True, half=False),
    "gmp-IRT": by_irt(others=False, merged=True, half=True),
    "p-IRT, other merges": by_irt(others=True, merged=False, half=False),
    "gp-IRT, other merges": by_irt(others=True, merged=False, half=True),
    "mp-IRT, other merges": by_irt(others=True, merged=True, half=False),
    "gmp-IRT, other merges": by_irt(others=True, merged=True, half=True),
}
"""Of what decides; by IRT where that is right or wrong."""
