"""What a search is made of, before a candidate is scored.

In: settings as plain containers, who scores, and how the run began. Out: `Ready`, or a refusal of whatever can be
refused now: settings that do not go together, sources, items that cannot be read, sizes of samples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from evomerge.common.limits import TimeLimit
from evomerge.common.progress import Progress
from evomerge.fitness.base import Fitness
from evomerge.fitness.capabilities import Checking, check_items
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.runs.akin import products_of
from evomerge.runs.budget import check_budget, grown
from evomerge.runs.build import build_problem, find_start, make_searcher, sampling_of, unscored
from evomerge.runs.closed_forms import is_scored
from evomerge.runs.computing import Begun, check_kept, kept
from evomerge.runs.engine import of_this_process
from evomerge.runs.estimates import check_estimate
from evomerge.runs.evaluator import Plan
from evomerge.runs.given import Given
from evomerge.runs.identity import search_identity
from evomerge.runs.learning import check_learning, find_learning
from evomerge.runs.responses import check_compared, responses_cost
from evomerge.runs.sampled import approximated, check_approximate
from evomerge.runs.starts import Arrays
from evomerge.search.evaluators.scoring import LiveFitness
from evomerge.search.evaluators.splits import APPROXIMATELY, approximately, live_fitness, make_subsets
from evomerge.search.learning import Learning
from evomerge.search.stopping import fixed
from evomerge.searchers.base import Searcher, parts_of


@dataclass(frozen=True)
class Ready:
    """What a search is made of.

    Attributes:
        settings: with those of the run's beginning in place of what a resume must not change.
        compute: the dtype to score in, as it was asked for.
        problem: what is searched.
        searcher: proposes coefficients.
        late: whether its start, and the baselines, are found by workers, when there are some.
        fitnesses: of each split.
        subsets: choose the items of each split.
        learning: what a gradient learns from; None for a searcher by values.
        limit: of the time of a candidate.
        identity: what makes this search another one than a search with other settings.
    """

    settings: Mapping[str, Any]
    compute: str | None
    problem: Problem
    searcher: Searcher
    late: bool
    fitnesses: Mapping[str, LiveFitness]
    subsets: Mapping[str, Subset]
    learning: Learning | None
    limit: TimeLimit
    identity: dict[str, Any]

    @property
    def sizes(self) -> dict[str, int]:
        """How many items of each split are scored."""
        return {split: subset.size for split, subset in self.subsets.items()}

    @property
    def judged(self) -> list[Mapping[str, Any]]:
        """The items of every split that judges finalists."""
        return [subset(0) for split, subset in self.subsets.items() if split != "search"]


def make_ready(
    settings: dict[str, Any],
    fitness: Fitness,
    plan: Plan,
    before: Begun | None,
    reporter: Progress,
    given: Given | None,
) -> Ready:
    """Return what a search is made of.

    Args:
        settings: checked ones, as plain containers.
        fitness: of these settings.
        plan: who scores.
        before: how the run began, if it goes on.
        reporter: tells the user what goes on.
        given: what need not be made of the settings.

    Raises:
        EvomergeError: something is wrong with settings or sources.
    """
    compute = settings["model"].get("compute")
    settings = kept(settings, before)
    settings["evaluator"] = {**settings["evaluator"], "blocks": plan.blocks}
    check_learning(settings, fitness)
    limit = TimeLimit(settings["time_limit"])
    with reporter.bars():
        problem = build_problem(of_this_process(settings, plan), reporter, fitness, given)
    check_kept(problem.live, before)
    settings, said = approximated(settings, problem.live, fitness, before, plan.gpus)
    if said:
        reporter.say(f"fitness.approximate=auto: {said}")
        problem = replace(problem, sampling=sampling_of(settings))
    check_approximate(settings, problem.live, fitness)
    late = plan.workers > 0 and any(map(is_scored, [settings["start"], *(settings["baselines"] or [])]))
    start = _start(settings, problem, late, reporter, before is not None)
    gram = products_of(settings, problem, reporter)
    searcher = make_searcher(settings, problem.space, start, problem.objectives, problem.negated, gram)
    if before is None and not late and (note := unscored(settings, problem, start, gram)):
        reporter.say(note)
    fitnesses = {split: live_fitness(problem, items) for split, items in problem.items.items()}  # refuses bad items
    if problem.sampling.approximate and not plan.workers:
        fitnesses[APPROXIMATELY] = approximately(problem, fitnesses["search"])
    make_subsets(problem)  # refuses bad sizes
    learning = find_learning(problem, settings, reporter, not plan.workers) if searcher.needs.gradient else None
    step = learning and learning.inputs * len(learning.items)
    parts = parts_of(searcher, settings["budget"])
    problem = grown(problem, settings, parts, step)
    identity = search_identity(problem, settings, learning and learning.items)
    subsets = make_subsets(problem)
    check_compared(problem, parts)
    check_estimate(problem, subsets["search"], parts)
    check_budget(settings, parts, fixed(subsets["search"].size, step), responses_cost(problem))
    return Ready(settings, compute, problem, searcher, late, fitnesses, subsets, learning, limit, identity)


def _start(settings: Mapping[str, Any], problem: Problem, late: bool, reporter: Progress, began: bool) -> Arrays | None:
    """Return the points that a searcher begins with; where workers score them first, something in place of them."""
    if late:
        return None if settings["start"] == "constants" else {}
    return find_start(settings, problem, reporter, began=began)


def check_splits(ready: Ready, reporter: Progress) -> None:
    """Refuse items of any split that cannot be scored: what judges at the end is looked at before the search.

    Raises:
        SuiteError: there are some.
    """
    problem, learning = ready.problem, ready.learning
    if not isinstance(problem.fitness, Checking):
        return
    found = [(split, ready.fitnesses[split].prepared, subset.every()) for split, subset in ready.subsets.items()]
    if learning:
        learned = {task: [item.id for item in items] for task, items in learning.items.items()}
        found.append(("learned", learning.prepared, learned))
    with reporter.working("preparing the items of all splits"):
        for split, prepared, ids in found:
            check_items(problem.fitness, problem.live.model, prepared, ids, split)
