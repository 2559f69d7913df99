"""What a search may do about noise: leaders scored again, samples that grow where ranks are noise, smoothed finalists.

In: the points and trials of a search. Out: other values, another number of items, or other finalists. The number of
items follows the idea of Hansen, Niederberger, Guzzella and Koumoutsakos (2009, A method for handling uncertainty in
evolutionary optimization): it grows while two measurements of the same points rank them differently.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
from scipy import stats

from evomerge.trials import Trial

AGREE, GROWS, SHRINKS = 0.5, 1.3, 1 / 1.1
"""The rank correlation of two halves of the items above which there are enough of them; by how much they change."""
NOISE = 0.3
"""The part of the variance of values that smoothing takes for noise."""


def with_leaders(trials: Sequence[Trial], again: Mapping[int, float]) -> list[Trial]:
    """Return trials of a generation with leaders at the mean of two values; the others move with them on average.

    Args:
        trials: with values.
        again: by index, what the leaders are worth on other items.
    """
    old = {trial.index: trial.values[0] for trial in trials if trial.values}
    moved = float(np.mean([(again[i] - old[i]) / 2 for i in again]))
    values = {i: (value + again[i]) / 2 if i in again else value + moved for i, value in old.items()}
    return [replace(trial, values=(values[trial.index],)) for trial in trials]


def next_size(trials: Sequence[Trial], metric: str, size: int, least: int, most: int) -> int:
    """Return on how many items the next generation is scored."""
    rows = [[np.array(each[metric], dtype=float) for each in trial.results.values()] for trial in trials]
    halves = np.array([[np.mean([row[k::2].mean() for row in every]) for every in rows] for k in (0, 1)])
    alike = np.corrcoef(stats.rankdata(halves, axis=1))[0, 1] >= AGREE
    return int(np.clip(size * (SHRINKS if alike else GROWS), least, most))


def smoothed(points: np.ndarray, values: np.ndarray, count: int) -> list[np.ndarray]:
    """Return the points that a regression over all trials takes for the best: the mean of a Gaussian process.

    Args:
        points: (n, dim).
        values: (n,).
        count: how many.
    """
    apart = ((points[:, None] - points[None]) ** 2).sum(-1)
    kernel = np.exp(-apart / np.median(apart[apart > 0])) + 0.2 * points @ points.T / points.shape[1]
    found = kernel @ np.linalg.solve(kernel + NOISE * np.eye(len(points)), values - values.mean())
    return [points[i] for i in np.argsort(-found)[:count]]
