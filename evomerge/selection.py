"""Selection and honest numbers: which incumbent wins, and what it is worth on items that nothing has looked at.

In: per-item outcomes of models on the select and the report split. Out: scores with standard errors, and paired
differences on the same items. The loop never picks its own winner: the finalists (the searcher's incumbents) are scored
on the select split, the best of them is the winner, and it is scored once on the report split beside the best constant
(itself chosen on select), the experts and the base.

Standard errors: of a task's mean, s/√n over its items; of the weighted mean over tasks, √Σ w² se²; of a difference, the
same on per-item differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import task_weights

CONSTANTS = tuple(round(0.1 * i, 1) for i in range(1, 16))
"""The constants among which the best one is chosen, those within the bounds of the weight."""


def summary(outcome: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return `{"mean", "se", "tasks": {task: score}}` of one model."""
    return _weighted({task: metrics[metric] for task, metrics in outcome.results.items()}, weights)


def paired(one: Outcome, other: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> dict[str, float]:
    """Return `{"diff", "se"}` of one model minus another on the same items.

    Raises:
        ValueError: the outcomes are not of the same items.
    """
    if {task: list(ids) for task, ids in one.items.items()} != {task: list(ids) for task, ids in other.items.items()}:
        raise ValueError("paired statistics need outcomes on the same items in the same order")
    differences = {task: one.results[task][metric] - other.results[task][metric] for task in one.results}
    result = _weighted(differences, weights)
    return {"diff": result["mean"], "se": result["se"]}


def choose(
    candidates: Mapping[str, Any],
    score: Callable[[Any], Outcome],
    metric: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[str, dict[str, float]]:
    """Return the name of the best candidate on the select split and the mean of each; the first of equals wins.

    Args:
        candidates: what `score` takes, by name.
        score: scores one of them on the select split.
        metric: which metric decides.
        weights: of the tasks.
    """
    means = {name: summary(score(candidate), metric, weights)["mean"] for name, candidate in candidates.items()}
    return max(means, key=lambda name: means[name] if math.isfinite(means[name]) else -math.inf), means


def _weighted(values: Mapping[str, np.ndarray], weights: Mapping[str, float] | None) -> dict[str, Any]:
    share = task_weights(weights, values)
    means = {task: float(np.mean(v)) for task, v in values.items()}
    with np.errstate(invalid="ignore"):  # infinite results have no variance
        variances = {task: float(np.var(v, ddof=1)) / len(v) if len(v) > 1 else math.nan for task, v in values.items()}
    mean = sum(share[task] * means[task] for task in values)
    return {"mean": mean, "se": math.sqrt(sum(share[task] ** 2 * variances[task] for task in values)), "tasks": means}
