"""What scores the splits of a problem: the items of each, the fitness on them, and the objective."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np
import torch

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import ADAPTIVE, DISAGREEMENT, STRATIFIED, UNIFORM, stratified, uniform
from evomerge.fitness.finite import named
from evomerge.fitness.items import HELD_OUT, Item
from evomerge.fitness.objectives import Objective
from evomerge.fitness.sampling import Subset
from evomerge.fitness.values import DISTANCE
from evomerge.models.guard import Guard
from evomerge.models.live import LiveModel
from evomerge.problem import Problem, Sampling
from evomerge.search.evaluators.blocks import score_now
from evomerge.search.evaluators.scoring import LiveFitness, check_finite, explained, prepare
from evomerge.search.evaluators.units import Scorer

DRAWS = {STRATIFIED: stratified, UNIFORM: uniform, DISAGREEMENT: None, ADAPTIVE: None}
"""By the name that `Sampling.by` has; None for those that models must be scored for."""
APPROXIMATELY = "search, approximately"
"""Under this name stands what scores candidates on search items, where that is done in a narrower dtype. All other
models are scored exactly on them."""
Scoring = Callable[[Mapping[str, list[str]]], Outcome]
"""Scores what is in the live model on items by task: a `LiveFitness`, say."""


def make_subsets(problem: Problem) -> dict[str, Subset]:
    """Return what chooses the items of each split; see `subsets_of`.

    Raises:
        ConfigError: items are to be drawn by what experts say of them, and a task has none, or they may say something
            else each time.
    """
    if problem.sampling.by == DISAGREEMENT:
        if alone := [task for task in problem.items["search"] if task not in problem.experts]:
            raise ConfigError(
                f"fitness.sampling=disagreement compares base and expert on the items of every task, and {alone[0]} "
                f"has no expert: write fitness.tasks.{alone[0]}.expert=..., or fitness.sampling=stratified."
            )
        if not problem.fitness.pure:
            raise ConfigError(
                "fitness.sampling=disagreement draws items by what base and experts say of them, and under this "
                "fitness they may say something else when the search is resumed: write fitness.sampling=stratified."
            )
    return subsets_of(problem.items, problem.sampling)


def subsets_of(items: Mapping[str, Mapping[str, Sequence[Item]]], sampling: Sampling) -> dict[str, Subset]:
    """Return what chooses the items of each split, and of tasks that are held out, if there are any; those that judge
    are sampled alike for every seed.
    """
    judging = [split for split in ("report", HELD_OUT) if split in items]
    return {
        "search": Subset(
            *(items["search"], sampling.search, sampling.seed, sampling.rotates, "fitness.items"),
            draw=DRAWS[sampling.by],
            growth=sampling.growth,
        ),
        "select": Subset(items["select"], sampling.select, 0, setting="fitness.select_items"),
        **{split: Subset(items[split], sampling.report, 0, setting="fitness.report_items") for split in judging},
    }


def live_fitness(problem: Problem, items: Mapping[str, Sequence[Item]]) -> LiveFitness:
    """Prepare the items of a split, once."""
    prepared = prepare(problem.fitness, problem.live.processor, items)
    weights = {DISTANCE: problem.merger.distance} if problem.takes_distance else {}
    return LiveFitness(problem.live.model, problem.fitness, prepared, problem.merger.guard, weights=weights)


def approximately(problem: Problem, score: LiveFitness) -> LiveFitness:
    """Return what scores the live model as it is then, in the narrower dtype that the search asks for: on a copy.

    Args:
        problem: what is searched.
        score: scores the search items exactly.
    """
    live, dtype = problem.live, getattr(torch, str(problem.sampling.approximate))
    model = live.narrowed(dtype)
    renew = _writer(live, model)
    return LiveFitness(model, score.fitness, score.prepared, Guard(model, renew, live.tensors()), renew, score.weights)


def _writer(live: LiveModel, model: torch.nn.Module) -> Callable[[], None]:
    """Return what writes a live model into a copy of it that has other dtypes."""
    copies, own = {**dict(model.named_parameters()), **dict(model.named_buffers())}, live.tensors()

    @torch.no_grad()
    def write() -> None:
        for name, tensor in copies.items():
            tensor.copy_(own[name])

    return write


def in_checkpoints_dtype(live: LiveModel, score: LiveFitness) -> Scoring:
    """Return what scores a live model as it is then, but computes in the dtype of its checkpoint: on a copy.

    Args:
        live: computes in a wider dtype.
        score: scores it.
    """

    def scored(ids: Mapping[str, Sequence[str]]) -> Outcome:
        model = live.as_written()
        guard = Guard(model, _writer(live, model), live.tensors())
        return LiveFitness(model, score.fitness, score.prepared, guard, weights=score.weights)(ids)

    return scored


def make_objective(problem: Problem, scorer: Scorer, subset: Subset, blocks: int = 1) -> Objective:
    """Build the objective; with `normalised`, base and experts are scored on the items of the first generation, and the
    base where something is to be forgotten or kept.

    Args:
        problem: what is searched.
        scorer: scores base and experts.
        subset: chooses the items of a generation.
        blocks: into how many they are cut.
    """
    goal, sample, ends, known = problem.goal, subset.sample(0), None, None
    ids = sample.ids
    if goal.forget or goal.constraints:
        known = _scored_first("There is nothing to hold candidates against: the", "base", scorer, ids, blocks, None)
        known = sample.weighed(known)
    if goal.normalised:
        if missing := [task for task in ids if task not in problem.experts]:
            raise ConfigError(
                f"objective.normalised needs the expert of every task; {missing[0]} has none: write "
                f"fitness.tasks.{missing[0]}.expert=..."
            )
        why = "Scores cannot be normalised: the"
        found = [_scored_first(why, who, scorer, ids, blocks, goal.metric) for who in ("base", "experts")]
        base, best = (sample.weighed(outcome).scores() for outcome in found)
        ends = {task: (base[task][goal.metric], best[task][goal.metric]) for task in ids}
    return goal.objective(goal.metric, ids, ends, known)


def _scored_first(
    why: str,
    who: Literal["base", "experts"],
    scorer: Scorer,
    ids: Mapping[str, list[str]],
    blocks: int,
    metric: str | None,
) -> Outcome:
    """Score models that the objective needs, before any candidate.

    Raises:
        EvomergeError: they have no score, or none in the metric that is a number; the message begins with `why`.
    """
    with named(f"{why} {who}"), explained(f"{why} fitness fails on the {who}"):
        try:
            outcome = score_now(scorer, who, ids, blocks, first=True)
        except TimeoutError as error:
            raise EvomergeError(f"{why} {who} {error}.") from error
        check_finite(outcome, metric)
    return outcome


def score_experts(problem: Problem, score: Scoring, ids: Mapping[str, list[str]]) -> Outcome:
    """Score each task's items with its own expert, and put the base back; tasks without an expert are left out.

    Raises:
        NotFinite: what an expert says is not; the message names it.
    """
    items: dict[str, list[str]] = {}
    results: dict[str, Mapping[str, np.ndarray]] = {}
    try:
        for expert in problem.vectors.experts:
            mine = {task: chosen for task, chosen in ids.items() if problem.experts.get(task) == expert}
            if mine:
                problem.become(expert)
                with named(f"the expert {expert}"):
                    outcome = score(mine)
                items |= outcome.items
                results |= outcome.results
    finally:
        problem.become(None)
    known = [task for task in ids if task in items]
    return Outcome({task: items[task] for task in known}, {task: results[task] for task in known})
