"""Models scored side by side: recipes, model directories, constants, the base, experts, on the items of one split.

In: a problem, and models by the names that people give them. Out: the mean score of each with its
standard error, and the paired difference of each to the first; of a model that has no score, the reason. All are scored
on the same items, those on which a search judges its finalists (`judge.py`), and outcomes are remembered under the same
names: what a search has scored on all items of the split is not scored again.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from functools import partial

from evomerge.common.digests import digest
from evomerge.common.errors import CommandError, ConfigError, EvomergeError, MergeError, NotFinite
from evomerge.common.limits import TimeLimit
from evomerge.common.names import dtype_name
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.capabilities import check_items, measures
from evomerge.fitness.items import HELD_OUT
from evomerge.fitness.objectives import task_weights
from evomerge.problem import Problem, without_compute
from evomerge.search.evaluators.scoring import check_finite
from evomerge.search.evaluators.splits import (
    Scoring,
    in_checkpoints_dtype,
    live_fitness,
    make_subsets,
    score_experts,
)
from evomerge.search.stopping import Stopped
from evomerge.selection.comparison import Comparison
from evomerge.selection.contenders import Contender, in_place, of_directory, of_recipe, of_soup
from evomerge.selection.ensemble import of_ensemble
from evomerge.selection.forgetting import forgetting_of
from evomerge.selection.marks import Marks, marks_of
from evomerge.selection.named import Model
from evomerge.selection.remember import remembered
from evomerge.selection.statistics import Paired, Score, paired, score_of
from evomerge.selection.workers import Workers, at_once, by_workers
from evomerge.space.named import name_coefficients


def evaluate(
    problem: Problem,
    models: Mapping[str, Model],
    split: str,
    reporter: Progress,
    limit: TimeLimit | None = None,
    workers: Workers | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Comparison:
    """Score models on the items of a split and compare each with the first.

    Every model is found and checked before the first is scored; the base is in the live model afterwards. Where models
    are scored in another dtype than that of the checkpoint, the first is scored in that one as well, and stands last.

    Args:
        problem: what is searched; the live model must hold the base. The metric is that of its report.
        models: by the names that they shall have.
        split: `search`, `select` or `report`; or `held_out`, the report items of tasks that the search never sees.
        reporter: tells the user what goes on.
        limit: of the time of a candidate; a model may take longer by as much as there are more items.
        workers: score all models side by side; None for one after the other, here.
        stopping: whether somebody has asked to stop; looked at before each model.

    Raises:
        Stopped: somebody has; what was scored is remembered.
        EvomergeError: a model belongs to another base or architecture, or the fitness refuses items or settings.
    """
    if split not in problem.items:
        raise ConfigError("No task is held out of the search: write fitness.held_out=[task], or another split.")
    subset, goal = make_subsets(problem)[split], problem.goal
    ids, metric = subset(0), goal.report_metric
    weights = None if split == HELD_OUT else goal.counts(ids)
    task_weights(weights, ids)  # one for a task that is not there is refused now
    with reporter.bars():
        contenders = {name: contender_of(model, problem, reporter) for name, model in models.items()}
    score, limit = live_fitness(problem, problem.items[split]), limit or TimeLimit()
    timed = partial(limit.first, share=subset.size / (problem.sampling.search or subset.size))
    check_items(problem.fitness, problem.live.model, score.prepared, ids, split)
    if workers:
        timed = at_once  # workers have limits of their own
        contenders = {
            name: by_workers(workers, model, contenders[name], problem, split, ids) for name, model in models.items()
        }
    outcomes: dict[str, Outcome | str] = {}
    for number, (name, contender) in enumerate(contenders.items(), 1):
        if stopping():
            raise Stopped
        with reporter.working(f"scoring {name} on {subset.size} {split} items ({number} of {len(contenders)})"):
            outcomes[name] = outcome_of(contender, problem, score, ids, metric, timed)
    known = marks_of(problem)
    marks = {name: [*_marks(model, known), *contenders[name].marks] for name, model in models.items()}
    if problem.live.compute:
        (first, contender), own = next(iter(contenders.items())), dtype_name(problem.live.dtype)
        again, name = replace(contender, about=without_compute(contender.about)), f"{first} in {own}"
        if workers:
            again = by_workers(workers, models[first], again, problem, split, ids, written=True)
        with reporter.working(f"scoring {first} once more, in {own}, the dtype of the checkpoint"):
            written = in_checkpoints_dtype(problem.live, score)
            outcomes[name], marks[name] = outcome_of(again, problem, written, ids, metric, timed), marks[first]
    forgetting = None
    if goal.forget and split != HELD_OUT:
        with reporter.working("scoring the base"):  # most often it is remembered
            reference = contender_of(Model("base"), problem, reporter)
            if workers:
                reference = by_workers(workers, Model("base"), reference, problem, split, ids)
            base = outcome_of(reference, problem, score, ids, metric, timed)
        whole = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Outcome)}
        forgetting = forgetting_of(whole, base, metric, goal) if isinstance(base, Outcome) else None
    return Comparison(
        split,
        metric,
        measures(problem.fitness, metric, ids),
        subset.size,
        *compare(outcomes, ids, metric, weights),
        {name: texts for name, texts in marks.items() if texts},
        {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, str)},
        forgetting,
        problem.reports_distance,
        digest(ids),
    )


def compare(
    outcomes: Mapping[str, Outcome | str], tasks: Collection[str], metric: str, weights: Mapping[str, float] | None
) -> tuple[dict[str, Score], dict[str, Paired]]:
    """Return the score of each model, and of all but the first the paired difference to the first.

    Args:
        outcomes: of each model, on the same items; or the reason why it has no score.
        tasks: all tasks; a model that lacks one has no mean and no difference, since it would be one over fewer tasks.
        metric: which of the fitness.
        weights: of the tasks in the mean; None for equal ones.
    """
    scored = {name: outcome for name, outcome in outcomes.items() if isinstance(outcome, Outcome)}
    whole = {name: outcome for name, outcome in scored.items() if set(outcome.results) == set(tasks)}
    scores = {name: score_of(outcome, metric, weights) for name, outcome in scored.items()}
    scores |= {name: replace(score, mean=None, se=None) for name, score in scores.items() if name not in whole}
    first, *others = outcomes
    both = {
        name: paired(whole[name], whole[first], metric, weights) for name in others if {name, first} <= whole.keys()
    }
    return (
        {name: scores.get(name, Score(None, None)) for name in outcomes},
        {name: both.get(name, Paired(None, None)) for name in others},
    )


def contender_of(model: Model, problem: Problem, reporter: Progress) -> Contender:
    """Return what a person has named, ready to be scored.

    Raises:
        EvomergeError: it belongs to another base or architecture, or the settings do not know it.
    """
    if model.kind == "recipe":
        return of_recipe(model.value, problem, model.factor, model.row)
    if model.kind == "directory":
        return of_directory(model.value, problem, reporter)
    if model.kind == "soup":
        return of_soup(model.value, problem)
    if model.kind == "ensemble":
        return of_ensemble(problem)
    about, space = problem.contents, problem.space
    if model.kind == "experts":
        if not problem.experts:
            raise ConfigError(
                "No task has an expert, so `experts` has no score: write fitness.tasks.<task>.expert=..., or name an "
                "expert, which is then scored on all tasks."
            )
        return Contender({"model": {"experts": problem.experts}, **about}, partial(score_experts, problem))
    if model.kind == "constant":
        coefficients = problem.space.constant(model.value)
        named = name_coefficients(coefficients, space.groups, space.rows)
        return in_place(partial(problem.merger.apply, coefficients), named, about)
    return in_place(partial(problem.become, model.value), {"expert": model.value} if model.value else "base", about)


def _marks(model: Model, marks: Marks) -> list[str]:
    """Return what is otherwise in a row than its name says."""
    match model.kind:
        case "experts":
            return marks.of_experts()
        case "expert":
            return marks.of_expert(model.value)
        case "directory":
            return marks.of_directory(model.value)
    return marks.of_merge()


def outcome_of(
    contender: Contender,
    problem: Problem,
    score: Scoring,
    ids: Mapping[str, list[str]],
    metric: str,
    timed: Callable[[Callable[[], Outcome]], Outcome],
) -> Outcome | str:
    """Return the outcome of a contender, under the name by which `judge.py` remembers it, or the reason why it has no
    score, and put the base back. It is computed within `timed`, which breaks off what takes too long.
    """

    def compute() -> Outcome:
        try:
            return timed(lambda: contender.score(score, ids))
        finally:
            problem.become(None)

    try:
        if problem.fitness.pure:
            description = {**contender.about, "items": ids, **problem.circumstances}
            outcome = remembered(problem.opening.cache, description, compute)
        else:
            outcome = compute()
        check_finite(outcome, metric)
    except (NotFinite, MergeError, CommandError) as error:  # of this model alone
        return str(error)
    except EvomergeError:  # of items or settings: no model would have a score
        raise
    except Exception as error:  # whatever a model or a user's fitness may raise
        return f"{type(error).__name__}: {error}"
    return outcome
