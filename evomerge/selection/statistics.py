"""Scores and paired differences of models, with standard errors.

In: per-item outcomes. Out: means over tasks and their standard errors: of a task's mean, s/√n over its items; of the
weighted mean over tasks, √Σ w² se²; of a difference, the same on per-item differences.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import task_weights


def summary(outcome: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return `{"mean", "se", "tasks": {task: score}, "tasks_se": {task: its standard error}}` of one model."""
    return _weighted({task: metrics[metric] for task, metrics in outcome.results.items()}, weights)


def paired(one: Outcome, other: Outcome, metric: str, weights: Mapping[str, float] | None = None) -> dict[str, Any]:
    """Return `{"diff", "se", "tasks", "tasks_se"}` of one model minus another on the same items.

    Raises:
        ValueError: the outcomes are not of the same items.
    """
    if {task: list(ids) for task, ids in one.items.items()} != {task: list(ids) for task, ids in other.items.items()}:
        raise ValueError("paired statistics need outcomes on the same items in the same order")
    differences = {task: one.results[task][metric] - other.results[task][metric] for task in one.results}
    result = _weighted(differences, weights)
    return {"diff": result.pop("mean"), **result}


def _weighted(values: Mapping[str, np.ndarray], weights: Mapping[str, float] | None) -> dict[str, Any]:
    given = {task: weight for task, weight in (weights or {}).items() if task in values}
    share = task_weights(given if any(given.values()) or len(given) < len(values) else None, values)
    means = {task: float(np.mean(v)) for task, v in values.items()}
    with np.errstate(invalid="ignore", over="ignore"):  # infinite results have no variance, huge ones an infinite one
        variances = {task: float(np.var(v, ddof=1)) / len(v) if len(v) > 1 else math.nan for task, v in values.items()}
    mean = sum(share[task] * means[task] for task in values)
    return {
        "mean": mean,
        "se": math.sqrt(sum(share[task] ** 2 * variances[task] for task in values)),
        "tasks": means,
        "tasks_se": {task: math.sqrt(variance) for task, variance in variances.items()},
    }
