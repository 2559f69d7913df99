"""Which values of a search went against each other, and how much of that is the sample of items.

In: the trials of a search with their per-item results. Out: for each pair of values the rank correlation over the
candidates (Spearman 1904), below 0 where one was gained at the cost of the other, and its standard error: candidates
and items are drawn anew, both with replacement (the pigeonhole bootstrap, Owen 2007, which errs to the safe side).

What the sample of items does is told by halves. The items of each task are cut into two halves at random, again and
again. How well the candidates' ranks in a value on one half agree with those on the other, r, gives the reliability of
their ranks on all items, 2r/(1+r) (Spearman 1910, Brown 1910); what is missing to 1 is the share of sampling. One value
on one half beside another on the other half shares no item with it, so that correlation over the root of both r is the
one without sampling noise (Spearman 1904).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.trials import Batch, Trial

if TYPE_CHECKING:  # reports of finished runs need no values
    from evomerge.fitness.values import Value

FEWEST = 10
"""Fewer candidates say nothing of how values go together."""
MOST = 1000
"""So many of the last candidates are looked at."""
DRAWS, HALVES = 200, 50
LEAST = 0.1
"""Below this correlation of two halves, no correlation is corrected by it: it would be divided by nearly nothing."""


@dataclass(frozen=True)
class Trade:
    """Two values over the candidates of a search.

    Attributes:
        one: the name of the first,
        other: and of the second.
        correlation: of their ranks, from -1 to 1; None where all candidates are alike in one of them.
        se: its standard error.
        corrected: the correlation without sampling noise; None where the halves hardly agree.
    """

    one: str
    other: str
    correlation: float | None
    se: float | None
    corrected: float | None

    @property
    def verdict(self) -> str:
        """What two standard errors allow to say."""
        if self.correlation is None or self.se is None or abs(self.correlation) <= 2 * self.se:
            return "cannot be told"
        return "against each other" if self.correlation < 0 else "together"


@dataclass(frozen=True)
class Trades:
    """All pairs of values.

    Attributes:
        candidates: how many were looked at.
        pairs: each two values.
        sampling: by value, how much of the order of the candidates is the sample of items, from 0 to 1; None where it
            is not known.
    """

    candidates: int
    pairs: Sequence[Trade]
    sampling: Mapping[str, float | None]

    @property
    def said(self) -> str:
        """What it comes to, as sentences."""
        against = [pair for pair in self.pairs if pair.verdict == "against each other"]
        named = ", ".join(f"{p.one} and {p.other} ({p.correlation:.2f} ± {p.se:.2f})" for p in against)
        first = (
            f"over {self.candidates:,} candidates, what made one better made the other worse in {named}"
            if named
            else f"over {self.candidates:,} candidates, no two values went against each other by two standard errors"
        )
        known = {name: share for name, share in self.sampling.items() if share is not None}
        shares = ", ".join(f"{name} {share:.0%}" for name, share in known.items())
        return f"{first}; of the candidates' order, sampling of items makes up {shares}" if shares else first

    @classmethod
    def from_plain(cls, content: Mapping[str, Any]) -> Trades:
        """Return it from the plain data that `asdict` makes."""
        return cls(**{**content, "pairs": [Trade(**pair) for pair in content["pairs"]]})


def trades_of(batches: Sequence[Batch], values: Sequence[Value]) -> Trades | None:
    """Return how values went together over the candidates of a search; None where there are too few.

    Args:
        batches: of the search, with their trials.
        values: in the metrics of the search.
    """
    trials = [t for b in batches if not b.gradient for t in b.trials if t is not None and _whole(t, values)][-MOST:]
    if len(trials) < FEWEST:
        return None
    tables = {(task, value.metric): None for value in values for task in value.weights}
    found = {key: _Items(trials, *key) for key in tables}
    rng = np.random.default_rng([len(trials), len(found)])
    whole = _correlations(_valued(found, values, None))
    drawn = {task: one.drawn(rng) for (task, _), one in found.items()}  # one draw for all metrics of a task
    errors = _errors(_valued(found, values, drawn), rng)
    halves = {task: one.halves(rng) for (task, _), one in found.items()}
    first = _valued(found, values, {task: half for task, half in halves.items()})
    second = _valued(found, values, {task: 1 - half for task, half in halves.items()})
    across = _across(first, second)
    pairs = [
        Trade(
            values[i].name,
            values[j].name,
            _known(whole[0, i, j]),
            _known(errors[i, j]),
            _corrected(across, i, j),
        )
        for i, j in combinations(range(len(values)), 2)
    ]
    shares = {value.name: _share(across[i, i]) for i, value in enumerate(values)}
    return Trades(len(trials), pairs, shares)


class _Items:
    """The results of all candidates on one task and metric, and how many items each of theirs stands for."""

    def __init__(self, trials: Sequence[Trial], task: str, metric: str) -> None:
        places = {item: i for i, item in enumerate(dict.fromkeys(i for trial in trials for i in trial.items[task]))}
        self.results = np.zeros((len(trials), len(places)))
        self.counts = np.zeros_like(self.results)
        for j, trial in enumerate(trials):
            at = [places[item] for item in trial.items[task]]
            self.results[j, at] = np.array(trial.results[task][metric], dtype=np.float64)
            self.counts[j, at] = trial.weights.get(task) or 1.0

    def drawn(self, rng: np.random.Generator) -> np.ndarray:
        """Return how often each item is drawn, (items, DRAWS)."""
        n = self.results.shape[1]
        return rng.multinomial(n, np.full(n, 1 / n), DRAWS).T.astype(np.float64)

    def halves(self, rng: np.random.Generator) -> np.ndarray:
        """Return which items are in the first half, 1 or 0, (items, HALVES)."""
        n = self.results.shape[1]
        order = rng.permuted(np.tile(np.arange(n), (HALVES, 1)), axis=1)
        return (order < n / 2).T.astype(np.float64)

    def means(self, taken: np.ndarray | None) -> np.ndarray:
        """Return the mean of each candidate, (draws, candidates); NaN where none of its items was taken."""
        taken = np.ones((self.results.shape[1], 1)) if taken is None else taken
        with np.errstate(invalid="ignore", divide="ignore"):
            return ((self.counts * self.results) @ taken / (self.counts @ taken)).T


def _valued(
    found: Mapping[tuple[str, str], _Items], values: Sequence[Value], taken: Mapping[str, np.ndarray] | None
) -> np.ndarray:
    """Return the values of all candidates on what was taken of the items, (draws, candidates, m)."""
    columns = []
    for value in values:
        means = np.stack([found[task, value.metric].means(taken[task] if taken else None) for task in value.weights])
        if value.aggregate == "worst":
            one = means.max(0) if value.minimise else means.min(0)
        else:
            weights = np.array(list(value.weights.values()))
            one = np.tensordot(weights / np.abs(weights).sum(), means, 1)
        columns.append(-one if value.minimise else one)
    return np.stack(columns, axis=-1)


def _ranked(values: np.ndarray) -> np.ndarray:
    """Return ranks over the candidates with a mean of 0 and a length of 1, (draws, candidates, m); NaN without any."""
    from scipy.stats import rankdata  # slow to load

    ranked = rankdata(values, axis=1, nan_policy="propagate")
    ranked = ranked - ranked.mean(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        return ranked / np.linalg.norm(ranked, axis=1, keepdims=True)


def _correlations(values: np.ndarray) -> np.ndarray:
    """Return rank correlations, (draws, m, m)."""
    ranked = _ranked(values)
    return np.einsum("dci,dcj->dij", ranked, ranked)


def _errors(values: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Return the standard deviation of correlations with candidates drawn anew for each draw of items, (m, m)."""
    draws, n, _ = values.shape
    chosen = rng.integers(n, size=(draws, n))
    found = _correlations(np.take_along_axis(values, chosen[:, :, None], axis=1))
    known = np.isfinite(found)
    enough = known.sum(0) > draws / 2
    mean = np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1)
    square = np.where(known, (found - mean) ** 2, 0).sum(0) / np.maximum(known.sum(0) - 1, 1)
    return np.where(enough, np.sqrt(square), np.nan)


def _across(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the mean correlation of each value on one half with each on the other, (m, m); NaN where it is unknown."""
    found = np.einsum("dci,dcj->dij", _ranked(first), _ranked(second))
    known = np.isfinite(found)
    mean = np.where(known, found, 0).sum(0) / np.maximum(known.sum(0), 1)
    both = (mean + mean.T) / 2
    return np.where(known.sum(0) > HALVES / 2, both, np.nan)


def _share(agreement: float) -> float | None:
    """Return the share of sampling in the order on all items, of the correlation of two halves."""
    if not math.isfinite(agreement):
        return None
    return 1.0 if agreement <= 0 else 1 - 2 * agreement / (1 + agreement)


def _corrected(across: np.ndarray, i: int, j: int) -> float | None:
    agreement = across[i, i], across[j, j]
    if not all(one >= LEAST for one in agreement) or not math.isfinite(across[i, j]):
        return None
    return float(np.clip(across[i, j] / math.sqrt(agreement[0] * agreement[1]), -1, 1))


def _known(number: float) -> float | None:
    return float(number) if math.isfinite(number) else None


def _whole(trial: Trial, values: Sequence[Value]) -> bool:
    """Whether a trial has a result for each item of each value."""
    return bool(trial.full) and all(
        None not in trial.results.get(task, {}).get(value.metric, (None,)) for value in values for task in value.weights
    )
