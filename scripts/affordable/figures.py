"""Figures of rules over many draws, judged on select items, with intervals.

Regret is (full choice - choice) / (full choice - best constant), each the value on select items, its numerator and its
denominator summed over all draws: in a single draw the denominator may be 0. The full choice and the best constant are
the best on all search items. Lost is the share of what selecting parents gains that a rule does not: (parents by all
items - parents by the rule) / (parents by all items - mean of the generation), parents weighted as CMA-ES weighs them.
Intervals are of a bootstrap over draws; those that hold for other items as well, of one over draws and, within each
task, over select items. The latter are wide, since a few hundred items hardly tell good merges apart.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from affordable.bank import CONSTANT, Bank
from affordable.draws import Draw
from affordable.rules import Choice

BOOTSTRAPS = 1000
LEVEL = 95


def weights_of_parents(size: int, parents: int) -> np.ndarray:
    """Return the weights of CMA-ES, best first (size,), 0 behind the parents (Hansen 2016, arXiv 1604.00772)."""
    raw = np.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    return np.concatenate([raw / raw.sum(), np.zeros(size - parents)])


@dataclass(frozen=True)
class Held:
    """Values on select items: as they are (M, 1), or on resampled ones (M, B).

    Attributes:
        values: of the models of the bank.
    """

    values: np.ndarray

    @classmethod
    def of(cls, bank: Bank, metric: str, count: int, rng: np.random.Generator) -> Held:
        """Return the values on all select items, and then on `count` samples of them with replacement."""
        columns, shares = bank.columns("select"), bank.shares("select")
        task = bank.task[columns]
        weights = np.empty((len(columns), count + 1))
        weights[:, 0] = shares
        for t in range(len(bank.tasks)):
            own = np.flatnonzero(task == t)
            times = rng.multinomial(len(own), np.full(len(own), 1 / len(own)), size=count).T
            weights[own, 1:] = times * shares[own, None]
        return cls(bank.responses[metric][:, columns] @ weights)


class Judge:
    """Says what choices are worth.

    Args:
        draws: the generations.
        full: the choice by all items of each.
        metric: what decides.
        bootstraps: how many.
    """

    def __init__(
        self, draws: Sequence[Draw], full: Sequence[Choice], metric: str, bootstraps: int = BOOTSTRAPS
    ) -> None:
        bank, rng = draws[0].known.bank, np.random.default_rng(0)
        self._held = Held.of(bank, metric, bootstraps, rng).values
        self._rows = [draw.rows for draw in draws]
        self._weights = [weights_of_parents(len(draw.rows), draw.parents) for draw in draws]
        constants = bank.of(CONSTANT)
        known = bank.responses[metric][np.ix_(constants, draws[0].known.columns)] @ draws[0].known.shares
        self.constant = constants[int(np.argmax(known))]
        self._again = rng.integers(0, len(draws), (len(draws), bootstraps))
        self._full = self._of(full)
        self._mean = np.array([self._held[rows].mean(axis=0) for rows in self._rows])

    def _of(self, choices: Sequence[Choice]) -> tuple[np.ndarray, np.ndarray]:
        """Return the value of the best and of the parents, (draws, 1 + bootstraps)."""
        ranked = [self._held[rows[choice.order]] for rows, choice in zip(self._rows, choices, strict=True)]
        parents = [weights @ values for weights, values in zip(self._weights, ranked, strict=True)]
        return np.array([values[0] for values in ranked]), np.array(parents)

    def _summed(self, values: np.ndarray) -> np.ndarray:
        """Return the mean over draws, and over resampled draws: on the select items (0) and on resampled ones (1),
        (2, 1 + bootstraps).
        """
        same, other = values[:, 0][self._again].mean(axis=0), np.take_along_axis(values[:, 1:], self._again, axis=0)
        return np.column_stack([np.full(2, values[:, 0].mean()), np.stack([same, other.mean(axis=0)])])

    def regret(self, choices: Sequence[Choice]) -> np.ndarray:
        """Return the regret, and its bootstraps (2, 1 + bootstraps)."""
        gain = self._summed(self._full[0] - self._held[self.constant])
        return self._summed(self._full[0] - self._of(choices)[0]) / gain

    def lost(self, choices: Sequence[Choice]) -> np.ndarray:
        """Return what is lost of the gain by selecting parents, and its bootstraps (2, 1 + bootstraps)."""
        return self._summed(self._full[1] - self._of(choices)[1]) / self._summed(self._full[1] - self._mean)

    @property
    def gain(self) -> np.ndarray:
        """Full choice minus best constant, and its bootstraps (2, 1 + bootstraps)."""
        return self._summed(self._full[0] - self._held[self.constant])


def interval(bootstrap: np.ndarray) -> tuple[float, float]:
    """Return the ends of the interval of a figure (1 + bootstraps,)."""
    low, high = np.percentile(bootstrap[1:], [(100 - LEVEL) / 2, (100 + LEVEL) / 2])
    return float(low), float(high)


def shown(found: np.ndarray, sign: str = "", items: bool = False) -> str:
    """Return `.12 [.08, .15]`: a figure and its interval over draws, or over draws and items."""
    low, high = interval(found[int(items)])
    return f"{found[0, 0]:{sign}.3f} [{low:{sign}.2f}, {high:{sign}.2f}]"


def mark(difference: np.ndarray) -> str:
    """Return whether a difference is below 0 (−) or above (+): once where its interval over draws says so, twice where
    that over draws and items does.
    """
    ends = [interval(bootstrap) for bootstrap in difference]
    below, above = sum(high < 0 for _, high in ends), sum(low > 0 for low, _ in ends)
    return " " * bool(below or above) + "−" * below + "+" * above
