"""Item response theory: the score of a model on all items, from its answers to few of them.

In: right and wrong answers of other models to all items, and of a new one to some. Out: an estimate of its mean on all
of them. A model of ability θ (D,) answers item i rightly with the chance P_i = σ(a_i·θ - b_i), the argument cut at ±30
(two-parameter logistic, Lord and Novick 1968; more dimensions, Reckase 2009). p-IRT takes answers where there are some
and P_i elsewhere; gp-IRT is halfway between that and the plain mean (Polo et al. 2024, tinyBenchmarks). mp-IRT and
gmp-IRT take the ability of a merge for a weighted sum of those of its experts, and fit the weights (Mencattini et al.
2025, MERGE³). There, abilities and weights are of largest likelihood, and run away where all answers are right. Here
they have normal priors: θ ~ N(0, 1), w ~ N(1/K, 1), log a ~ N(0, .5²), b ~ N(0, 2²).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit, log_expit

CUT = 30.0
SPREAD_A, SPREAD_B = 0.5, 2.0
"""Of the priors of log a and b."""
STEPS = 50
"""Of Newton's method at most."""
TINY = 1e-9
"""Keeps curvatures invertible where there is no prior."""


@dataclass(frozen=True)
class ItemParameters:
    """What is known of N items.

    Attributes:
        a: how sharply each tells abilities apart, (N, D).
        b: how hard each is (N,).
        abilities: of the models that they were fitted to (M, D).
    """

    a: np.ndarray
    b: np.ndarray
    abilities: np.ndarray

    def chances(self, ability: np.ndarray) -> np.ndarray:
        """Return the chance of a right answer to each item (..., N), of abilities (..., D)."""
        return expit(np.clip(ability @ self.a.T - self.b, -CUT, CUT))


def fit_items(answers: np.ndarray, loads: np.ndarray, sharpness: bool = True) -> ItemParameters:
    """Fit items and abilities together, where answers and priors are most likely.

    Args:
        answers: 0 or 1 (M, N).
        loads: which abilities an item asks for, 0 or 1 (N, D).
        sharpness: whether items differ in a; else it is 1 (Rasch 1960), which is as much as a few models can tell.
    """
    models, items = answers.shape
    dims = loads.shape[1]

    def parts(z: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return z[:items], z[items : 2 * items], z[2 * items :].reshape(models, dims)

    def cost(z: np.ndarray) -> tuple[float, np.ndarray]:
        log_a, b, theta = parts(z)
        a = np.exp(log_a)
        along = theta @ loads.T  # (M, N)
        margin = a * along - b
        miss = answers - expit(margin)
        likely = np.sum(log_expit(np.where(answers > 0.5, margin, -margin)))
        prior = np.sum(log_a**2) / SPREAD_A**2 + np.sum(b**2) / SPREAD_B**2 + np.sum(theta**2)
        slope_a = (log_a / SPREAD_A**2 - a * np.sum(miss * along, axis=0)) * sharpness
        slope_b = b / SPREAD_B**2 + miss.sum(axis=0)
        slope_theta = theta - (miss * a) @ loads
        return prior / 2 - likely, np.concatenate([slope_a, slope_b, slope_theta.ravel()])

    found = minimize(cost, np.zeros(2 * items + models * dims), jac=True, method="L-BFGS-B", options={"maxiter": 500})
    log_a, b, theta = parts(found.x)
    return ItemParameters(np.exp(log_a)[:, None] * loads, b, theta)


def fit_abilities(known: ItemParameters, seen: np.ndarray, answers: np.ndarray, prior: float = 1.0) -> np.ndarray:
    """Return the abilities of models (M, D).

    Args:
        known: of all items.
        seen: which of them they have answered (n,).
        answers: of each to these, 0 or 1 (M, n).
        prior: how many times the prior counts; 0 for the largest likelihood.
    """
    return _most_likely(known.a[seen], known.b[seen], answers, np.zeros(known.a.shape[1]), prior)


def fit_merges(
    known: ItemParameters, experts: np.ndarray, seen: np.ndarray, answers: np.ndarray, prior: float = 1.0
) -> np.ndarray:
    """Return the abilities of merges (M, D), each a weighted sum of those of its experts.

    Args:
        known: of all items.
        experts: their abilities (K, D).
        seen: which items the merges have answered (n,).
        answers: of each to these, 0 or 1 (M, n).
        prior: how many times the prior of the weights counts.
    """
    start = np.full(len(experts), 1 / len(experts))
    return _most_likely(known.a[seen] @ experts.T, known.b[seen], answers, start, prior) @ experts


def _most_likely(x: np.ndarray, b: np.ndarray, answers: np.ndarray, start: np.ndarray, prior: float) -> np.ndarray:
    """Return, for each row of answers, the z (P,) for which they are most likely with the chances σ(x z - b), and
    z ~ N(start, 1 / prior): (M, P).

    Newton's method; a step that makes it worse is halved. Without a prior there may be many such z: it is one near the
    start.
    """
    z = np.tile(start, (len(answers), 1))
    right, hold = answers > 0.5, (prior + TINY) * np.eye(len(start))

    def likely(z: np.ndarray) -> np.ndarray:
        margin = np.clip(z @ x.T - b, -CUT, CUT)
        return log_expit(np.where(right, margin, -margin)).sum(axis=1) - prior * np.sum((z - start) ** 2, axis=1) / 2

    best = likely(z)
    for _ in range(STEPS):
        chance = expit(np.clip(z @ x.T - b, -CUT, CUT))
        slope = (answers - chance) @ x - prior * (z - start)
        curvature = np.einsum("mn,np,nq->mpq", chance * (1 - chance), x, x, optimize=True) + hold
        step = np.linalg.solve(curvature, slope[:, :, None])[:, :, 0]
        for _ in range(STEPS):
            if not (worse := likely(z + step) < best - 1e-9).any():
                break
            step[worse] /= 2
        z = z + step
        best = likely(z)
        if np.abs(step).max() < 1e-8:
            break
    return z


def p_irt(chances: np.ndarray, seen: np.ndarray, answers: np.ndarray) -> float:
    """Return the mean over N items: of answers to those that were seen, of chances elsewhere.

    Args:
        chances: of a right answer (N,).
        seen: which items were answered (n,).
        answers: to these (n,).
    """
    filled = chances.copy()
    filled[seen] = answers
    return float(filled.mean())


def gp_irt(chances: np.ndarray, seen: np.ndarray, answers: np.ndarray, counts: Sequence[float] | None = None) -> float:
    """Return the point halfway between the mean of the answers and p-IRT.

    Args:
        chances: of a right answer (N,).
        seen: which items were answered (n,).
        answers: to these (n,).
        counts: for how many items each of them stands in the mean (n,); None where all stand for as many.
    """
    return (float(np.average(answers, weights=counts)) + p_irt(chances, seen, answers)) / 2
