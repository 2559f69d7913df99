"""Estimates of the values of all candidates of a generation from answers to so many items each.

To add one, add an entry to `ESTIMATES`.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from affordable.bank import BASE, CONSTANT, EXPERT
from affordable.draws import Draw
from affordable.samples import Sampler, disagreement, disagreement_of_constants, stratified, uniform
from evomerge.fitness.irt import fit_abilities, fit_merges

Estimate = Callable[[Draw, int], np.ndarray]
"""(draw, items of a candidate) -> values (n,)."""


def plain(sampler: Sampler) -> Estimate:
    """Return the estimate by the answers of a sample."""

    def of(draw: Draw, size: int) -> np.ndarray:
        sample = sampler(draw, size)
        return draw.decides[:, sample.items] @ sample.weights

    return of


def by_probability(sampler: Sampler) -> Estimate:
    """Return the log-probability of the right answers, which is no estimate of an accuracy but ranks as one may."""

    def of(draw: Draw, size: int) -> np.ndarray:
        sample = sampler(draw, size)
        return draw.smooth[:, sample.items] @ sample.weights

    return of


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
        if merged:
            abilities = fit_merges(fitted, fitted.abilities[known.experts], sample.items, answers)
        else:
            abilities = fit_abilities(fitted, sample.items, answers)
        filled = fitted.chances(abilities)
        filled[:, sample.items] = answers
        values = filled @ known.shares
        return (values + answers @ sample.weights) / 2 if half else values

    return of


def by_factors(others: bool, count: int = 6) -> Estimate:
    """Return an estimate by a linear model of answers, on a sample stratified by class: what p-IRT is for right and
    wrong answers.

    A model answers item i by m_i + f_i·z plus noise, z ~ N(0, 1), with m and f (N, F) by principal components of the
    answers of other models. z is fitted to the answers seen, and says the others.

    Args:
        others: whether these are random merges too, beside base, experts and constants.
        count: how many components at most.
    """

    def of(draw: Draw, size: int) -> np.ndarray:
        known, sample = draw.known, stratified(draw, size)
        rows = known.answers(BASE, EXPERT, CONSTANT, *(("random",) if others else ()))
        mean = rows.mean(axis=0)
        u, s, v = np.linalg.svd(rows - mean, full_matrices=False)
        used = min(count, len(rows) // 2)
        factors = v[:used].T * s[:used] / math.sqrt(len(rows))  # (N, F)
        noise = np.mean(((u[:, used:] * s[used:]) @ v[used:]) ** 2) * len(rows) / max(len(rows) - used - 1, 1) + 1e-9
        seen = factors[sample.items]
        gap = draw.decides[:, sample.items] - mean[sample.items]
        z = np.linalg.solve(seen.T @ seen + noise * np.eye(used), seen.T @ gap.T)  # (F, n)
        filled = mean[:, None] + factors @ z
        filled[sample.items] = draw.decides[:, sample.items].T
        return known.shares @ filled

    return of


ESTIMATES: dict[str, Estimate] = {
    "random subset": plain(uniform),
    "stratified by class": plain(stratified),
    "expert disagreement": plain(disagreement),
    "disagreement of constants": plain(disagreement_of_constants),
    "linear factors": by_factors(others=False),
    "linear factors, other merges": by_factors(others=True),
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
