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
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import __version__
from evomerge.assembly import Assembly
from evomerge.evaluator import Scorer
from evomerge.fingerprint import fingerprint
from evomerge.fitness.base import Outcome
from evomerge.fitness.objectives import task_weights
from evomerge.fitness.sampling import Subset
from evomerge.progress import Reporter
from evomerge.remember import remembered
from evomerge.sources import head_identity

NOT_SCORING = ("metric", "report_metric", "tasks", "items", "rotate", "select_items", "report_items")
"""Settings of a fitness that choose items or numbers, but do not change a per-item result."""
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
    candidates: Iterable[str],
    score: Callable[[str], Outcome],
    metric: str,
    weights: Mapping[str, float] | None = None,
) -> tuple[str, dict[str, float]]:
    """Return the name of the best candidate on the select split and the mean of each; the first of equals wins.

    Args:
        candidates: their names.
        score: scores the one with that name on the select split.
        metric: which metric decides.
        weights: of the tasks.
    """
    means = {name: summary(score(name), metric, weights)["mean"] for name in candidates}
    return max(means, key=lambda name: means[name] if math.isfinite(means[name]) else -math.inf), means


def select(
    assembly: Assembly,
    settings: Mapping[str, Any],
    incumbents: Mapping[str, np.ndarray],
    scorers: Mapping[str, Scorer],
    cache: Path,
    reporter: Reporter,
) -> dict[str, Any]:
    """Choose the winner on the select split and score it once on the report split, beside what it must beat.

    Both splits are sampled alike for every seed, so that runs of a sweep can be compared, and what is the same for
    all of them is scored once (`remember.py`).

    Args:
        assembly: the parts of the search.
        settings: its settings.
        incumbents: the searcher's finalists, points by name.
        scorers: score the live model on the items of a split.
        cache: where outcomes are remembered.
        reporter: tells the user what goes on.

    Returns:
        The summary's `report`, `paired`, `metric`, `select` and `items`, and the winner's `coefficients`.
    """
    fitness, weights = settings["fitness"], settings["objective"]["weights"]
    metric = fitness["report_metric"]
    sizes = {"select": fitness["select_items"], "report": fitness["report_items"]}
    ids = {split: Subset(assembly.items[split], size, seed=0)(0) for split, size in sizes.items()}

    def scored(coefficients: Mapping[str, np.ndarray], split: str) -> Outcome:
        assembly.merger.apply(coefficients)
        return scorers[split](ids[split])

    def once(name: str, split: str, compute: Callable[[], Outcome]) -> Outcome:
        if not assembly.fitness.pure:
            return compute()
        return remembered(cache, {"model": name, "ids": ids[split], **_surroundings(assembly, settings)}, compute)

    constants = {
        str(c): assembly.coefficients(np.full(len(assembly.space.experts), c))
        for c in CONSTANTS
        if _within(assembly, c)
    }
    finalists = {name: assembly.space.decode(x) for name, x in incumbents.items()}
    with reporter.working(
        f"choosing the best of {len(constants)} constants and of {len(finalists)} finalists on the select split"
    ):
        constant, constant_scores = choose(
            constants, lambda c: once(c, "select", lambda: scored(constants[c], "select")), metric, weights
        )
        winner, finalist_scores = choose(finalists, lambda name: scored(finalists[name], "select"), metric, weights)
    with reporter.working("scoring winner, best constant, experts and base on the report split"):
        outcomes = {
            "winner": scored(finalists[winner], "report"),
            "best_constant": once(constant, "report", lambda: scored(constants[constant], "report")),
        }
        assembly.merger.restore()
        outcomes["base"] = once("base", "report", lambda: scorers["report"](ids["report"]))
        outcomes["experts"] = once(
            "experts", "report", lambda: score_experts(assembly, scorers["report"], ids["report"])
        )
    order = [name for name in ("base", "experts", "best_constant", "winner") if outcomes[name].results]
    return {
        "report": {name: summary(outcomes[name], metric, weights) for name in order},
        "paired": {"winner_vs_best_constant": paired(outcomes["winner"], outcomes["best_constant"], metric, weights)},
        "metric": metric,
        "select": {"winner": winner, "finalists": finalist_scores, "constant": constant, "constants": constant_scores},
        "items": {split: sum(map(len, chosen.values())) for split, chosen in ids.items()},
        "coefficients": {name: values.tolist() for name, values in finalists[winner].items()},
    }


def score_experts(assembly: Assembly, score: Scorer, ids: Mapping[str, list[str]]) -> Outcome:
    """Score each task's items with its own expert, and put the base back."""
    items: dict[str, list[str]] = {}
    results: dict[str, Mapping[str, np.ndarray]] = {}
    for k, expert in enumerate(assembly.space.experts):
        mine = {task: chosen for task, chosen in ids.items() if assembly.experts.get(task) == expert}
        if mine:
            one_hot = {"weight": np.eye(len(assembly.space.experts))[k], "density": np.array(1.0)}
            shape = (len(assembly.space.groups), len(assembly.space.experts))
            assembly.merger.apply(
                {variable.name: np.broadcast_to(one_hot[variable.name], shape) for variable in assembly.space.variables}
            )
            outcome = score(mine)
            items |= outcome.items
            results |= outcome.results
    assembly.merger.restore()
    return Outcome(
        {task: items[task] for task in ids if task in items}, {task: results[task] for task in ids if task in items}
    )


def _within(assembly: Assembly, constant: float) -> bool:
    """Whether a constant lies within the bounds that the search has for weights."""
    weight = next(variable for variable in assembly.space.variables if variable.name == "weight")
    return weight.low <= constant <= weight.high


def _surroundings(assembly: Assembly, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return all that an outcome depends on beside the model's name and the items: contents, settings, versions and
    the kind of machine.
    """
    granularity = settings["space"]["granularity"]
    return {
        "base": assembly.vectors.base.sha256,
        "experts": {name: [expert.sha256, name] for name, expert in assembly.vectors.experts.items()},
        "tasks": {name: [task.expert, head_identity(task)] for name, task in assembly.sources.tasks.items()},
        "method": [settings["method"], granularity if granularity.startswith("chunk") else "whole tensors"],
        "others": {variable.name: variable.start for variable in assembly.space.variables if variable.name != "weight"},
        "fitness": {name: settings["fitness"][name] for name in settings["fitness"] if name not in NOT_SCORING},
        "evomerge": __version__,
        "fingerprint": fingerprint(),
    }


def _weighted(values: Mapping[str, np.ndarray], weights: Mapping[str, float] | None) -> dict[str, Any]:
    share = task_weights({task: w for task, w in weights.items() if task in values} if weights else None, values)
    means = {task: float(np.mean(v)) for task, v in values.items()}
    with np.errstate(invalid="ignore"):  # infinite results have no variance
        variances = {task: float(np.var(v, ddof=1)) / len(v) if len(v) > 1 else math.nan for task, v in values.items()}
    mean = sum(share[task] * means[task] for task in values)
    return {"mean": mean, "se": math.sqrt(sum(share[task] ** 2 * variances[task] for task in values)), "tasks": means}
