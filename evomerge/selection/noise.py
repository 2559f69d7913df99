"""The noise floor of a search: how much of its values is the sample of items, and how much is the candidates.

In: the trials of a search with their per-item results. Out: standard errors of a value and of a difference between two
candidates on the same items, and the share of the spread of values that such differences explain.

An item stands for c of the N items of its task (c = N/n where all stand for as many), so a task's mean over n items has
the variance n/(n−1) Σ c(c−1)/N² (x−x̄)²: that of sampling without replacement, which is nothing where all items were
scored (Särndal, Swensson and Wretman 1992, Model Assisted Survey Sampling, chapter 2). Strata make it smaller, so it is
an upper bound. The variance of the value is its sum over tasks, by the squares of their weights. Values of J candidates
on the same items share much of it: what is left of an item's results without their mean over the candidates makes the
differences. These have on average the variance 2 Σ v/(J−1), and the noise in the spread is half of that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from evomerge.fitness.objectives import task_weights
from evomerge.trials import Batch, Trial

LAST = 20
"""So many candidates at the end of a search are looked at, as far as they were scored on the same items."""
FEW = 5
"""Fewer of them say little; then those on the items before are looked at, if they are more."""


@dataclass(frozen=True)
class Noise:
    """What the sample of items does to values.

    Attributes:
        candidates: how many were looked at: the last ones on the same items.
        value: the standard error of a candidate's value.
        difference: that of a difference between two of them.
        share: the part of the spread of their values that is noise, from 0 to 1.
    """

    candidates: int
    value: float
    difference: float
    share: float

    @property
    def said(self) -> str:
        """What it comes to, as a sentence."""
        return (
            f"a value is known to ± {self.value:.4f}, a difference of two candidates on the same items to "
            f"± {self.difference:.4f}; of the spread of the last {self.candidates} candidates' values, "
            f"{self.share:.0%} is sampling noise"
        )


@np.errstate(over="ignore", invalid="ignore")  # the square of a huge number is infinite
def noise_of(
    batches: Sequence[Batch],
    metric: str,
    weights: Mapping[str, float] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Noise | None:
    """Return the noise at the end of a search; None where two candidates with different values cannot be compared,
    since each has items of its own, say; where the search ended with steps of a gradient; or where races have dropped
    some of the last: those that are left lie closer together than their generation did.

    Args:
        batches: of the search, with their trials; the value is a weighted mean over tasks of the mean of a metric.
        metric: that one.
        weights: of the tasks.
        sizes: the number of search items of each task; None where it is not known: there are then taken to be so many
            more than were scored that it does not matter.
    """
    trials = _last(batches, metric)
    if len(trials) < 2:
        return None
    values = np.array([trial.values[0] for trial in trials if trial.values])
    spread = float(np.var(values, ddof=1))
    if not spread > 0:
        return None
    each = left = 0.0
    for task, share in task_weights(weights, trials[0].results).items():
        rows = np.array([trial.results[task][metric] for trial in trials], dtype=np.float64)
        counts, stands = np.array(trials[0].weights.get(task) or [1.0] * rows.shape[1]), (sizes or {}).get(task)
        each += share**2 * float(variances(rows, counts, stands).mean())
        left += share**2 * float(variances(rows - rows.mean(0), counts, stands).sum())
    noise = left / (len(trials) - 1)
    if not math.isfinite(each + noise):
        return None
    return Noise(len(trials), math.sqrt(each), math.sqrt(2 * noise), min(1.0, noise / spread))


def _last(batches: Sequence[Batch], metric: str) -> list[Trial]:
    """Return the last trials with a value that were scored on the same items; none where these are long past, where a
    race has chosen among them or since, or where steps of a gradient came after them.
    """
    if batches and batches[-1].gradient:
        return []
    scored = [
        (place, trial)
        for place, batch in enumerate(batches)
        if not batch.gradient
        for trial in batch.trials
        if trial is not None
        and trial.status == "ok"
        and trial.results
        and all(None not in row.get(metric, (None,)) and len(row[metric]) > 1 for row in trial.results.values())
    ]
    alike = [list(group) for _, group in groupby(scored, key=lambda pair: pair[1].items)][-2:]
    last = max(reversed(alike), key=lambda group: min(len(group), FEW), default=[])[-LAST:]
    first = min((place for place, _ in [*scored[-LAST:], *last]), default=0)
    since = (trial for batch in batches[first:] for trial in batch.trials if trial is not None)
    return [] if any(trial.status == "censored" for trial in since) else [trial for _, trial in last]


def variances(rows: np.ndarray, counts: np.ndarray, size: int | None = None) -> np.ndarray:
    """Return the variance of the weighted mean of each row over items.

    Args:
        rows: float64 (J, n), n above 1.
        counts: (n,), how many items each stands for, in any unit.
        size: the number of items that they stand for together; None for very many.
    """
    n, part = rows.shape[1], counts / counts.sum()
    means = rows @ part
    own = part * (part - (1 / size if size else 0.0))  # c(c−1)/N²
    return n / (n - 1) * ((rows - means[:, None]) ** 2 @ np.maximum(own, 0.0))
