"""What base and experts say of the search items, where items are drawn by how far they disagree.

In: a problem, what chooses its search items, and a judge. Out: the same choice, informed: base and experts are scored
once on all search items, each task with its own expert, and remembered like the models of a report. That costs item
evaluations, which count in `budget.items`, as do those by which values are estimated (`estimates.py`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.common.errors import ConfigError, LogError
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import ADAPTIVE, DISAGREEMENT, UNIFORM, ByDisagreement
from evomerge.fitness.finite import named
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.scoring import check_finite, explained
from evomerge.search.journal import read_log
from evomerge.searchers.base import Part
from evomerge.selection.judge import Judge

WHY = "fitness.sampling=disagreement scores base and experts on all search items, and the"


def responses_cost(problem: Problem) -> int:
    """Return the item evaluations that are paid before the first candidate."""
    sampling = problem.sampling
    of_experts = 1 if sampling.by == DISAGREEMENT else 0
    alone = len(problem.space.rows) + len(sampling.others) if sampling.estimate else 0
    models = of_experts + alone + bool(of_experts or alone)  # the base, once
    return models * sum(map(len, problem.items["search"].values()))


def check_compared(problem: Problem, parts: Sequence[Part]) -> None:
    """Refuse to score base and experts where no candidate is scored on the items that are drawn by what they say.

    Args:
        problem: what is searched.
        parts: what the searcher will ask for.

    Raises:
        ConfigError: it is so.
    """
    if problem.sampling.by == DISAGREEMENT and all(part.gradient for part in parts):
        raise ConfigError(
            f"fitness.sampling={DISAGREEMENT} draws the search items of candidates, and this search takes steps of a "
            f"gradient alone: leave it out."
        )


def informed(problem: Problem, subset: Subset, judge: Judge, reporter: Progress) -> Subset:
    """Return what chooses search items, once it knows what base and experts say of them, if it must know.

    Args:
        problem: what is searched.
        subset: chooses its search items.
        judge: scores base and experts.
        reporter: tells the user.

    Raises:
        EvomergeError: base or experts have no score, or none that is a number.
    """
    if problem.sampling.by != DISAGREEMENT:
        return subset
    cost, outcomes = 2 * sum(map(len, problem.items["search"].values())), list[Outcome]()
    with reporter.working(f"scoring base and experts on all search items, {cost:,} item evaluations"):
        for who in ("base", "experts"):
            with named(f"{WHY} {who}"), explained(f"{WHY} fitness fails on the {who}"):
                outcomes.append(judge.on_search(who))
                check_finite(outcomes[-1], problem.goal.metric)
    base, experts = outcomes
    return subset.informed(ByDisagreement(disagreement(base, experts, problem.goal.metric)))


def check_drawn(problem: Problem, subset: Subset, log: Path) -> None:
    """Refuse to go on with a log whose generations saw other items than those that are drawn for them now.

    Args:
        problem: what is searched.
        subset: chooses its search items, and knows what base and experts say of them.
        log: the trial log.

    Raises:
        LogError: it is such a one.
    """
    if problem.sampling.by != DISAGREEMENT:
        return
    before, drawn = 0, dict[int, Mapping[str, Sequence[str]]]()
    for line in read_log(log):
        if line["kind"] == "ask" and not line.get("gradient"):
            drawn[line["batch"]] = subset.sample(line["batch"], before, len(line["points"])).ids
            before += len(line["points"])
        elif line["kind"] == "trial" and (ids := drawn.get(line["batch"])):
            if all(set(seen) <= set(ids[task]) for task, seen in line["items"].items()):
                continue
            raise LogError(
                f"{log}: generation {line['batch']} was scored on other items than those that are drawn for it now. "
                f"fitness.sampling=disagreement draws them by what base and experts say, and another kind of machine "
                f"says it in other last digits. Go on where the search began, or begin it here in another run "
                f"directory (hydra.run.dir=runs/another)."
            )


def disagreement(base: Outcome, experts: Outcome, metric: str) -> Mapping[str, np.ndarray]:
    """Return how far base and expert are apart on each item, float64 (n,) by task."""
    return {task: np.abs(experts.results[task][metric] - rows[metric]) for task, rows in base.results.items()}


def sampling_text(problem: Problem) -> str:
    """Return how the items of a generation are chosen, as a sentence; nothing where it is as usual."""
    sampling, said = problem.sampling, list[str]()
    if sampling.by == UNIFORM:
        said.append("search items are drawn uniformly")
    if sampling.by == ADAPTIVE:
        said.append("search items are drawn anew for every generation, by how far candidates before it were apart")
    if sampling.by == DISAGREEMENT:
        said.append(
            "search items are drawn by the disagreement of base and experts, which were scored on all of them first"
        )
    if sampling.estimate:
        said.append(
            f"values are estimates on all search items ({sampling.estimate}), from the answers of base and experts, "
            f"which were scored on all of them first"
        )
    if cost := responses_cost(problem):
        said[-1] += f" ({cost:,} item evaluations)"
    if sampling.growth:
        said.append(f"the first generation has {sampling.growth.first:.3g} of those that the last one has")
    return "; ".join(said)
