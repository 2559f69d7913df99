"""The setting `start` where it names weights in closed form: of task vectors, of checkpoints, or of experts' scores.

In: a name, or a name with its settings, `{ema: {decay: 0.9}}`, and what is searched. Out: a weight for each group and
row. Those of task vectors are in `merging/starts.py`, those of checkpoints in `merging/trajectories.py`; `cocktail`
scores every expert on the search items, as LM-Cocktail does (Xiao et al. 2023, arXiv 2311.13534).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from evomerge.common.arguments import check_arguments, check_names
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.limits import TimeLimit
from evomerge.common.names import unknown
from evomerge.common.progress import Progress
from evomerge.merging.methods.linear import Linear
from evomerge.merging.starts import STARTS, Cocktail, lines
from evomerge.merging.trajectories import SCHEDULES, Schedule
from evomerge.problem import Problem
from evomerge.runs.targets import find_class
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.selection.evaluation import contender_of, outcome_of
from evomerge.selection.named import Model
from evomerge.selection.statistics import score_of
from evomerge.selection.workers import Workers, at_once, by_workers

SCORED: dict[str, type[Cocktail]] = {"cocktail": Cocktail}
"""Those that need what each expert reaches."""
CLOSED = (*STARTS, *SCHEDULES, *SCORED)
"""All of them, by the names that `start` gives them."""
UNIFORM = "1/K"
FORMS = (UNIFORM, *CLOSED)
"""All starts that need no number, no search and no file."""


def check_untransformed(settings: Mapping[str, Any], began: bool, reporter: Progress) -> None:
    """Refuse closed forms where transforms change the experts first: they are made for the experts as they are. Where
    a method is no sum of task vectors, say that they are made for one.

    Args:
        settings: of a search.
        began: whether the run has begun: one of an earlier version may have begun with such a start, and goes on so.
        reporter: is told so then.

    Raises:
        ConfigError: start or baselines name one, and there is a transform.
    """
    chain = settings.get("transform") or ()
    steps = " + ".join(find_class(str(step["_target_"]), "transform").name for step in chain)
    method = str(settings["method"]["_target_"]).rpartition(".")[2]
    given = settings.get("baselines")
    asked = [("start", settings["start"]), *(("baselines", one) for one in (given if isinstance(given, list) else ()))]
    for setting, start in asked:
        if not isinstance(start, Mapping) and start not in FORMS:
            continue
        if not steps:
            if method != Linear.__name__:
                reporter.say(
                    f"note: {setting}: {said(start)} is made for a sum of task vectors, and {method} merges "
                    f"otherwise: its weights make another merge than that of its paper"
                )
            continue
        made = f"is made for the experts as they are, and the search changes them first ({steps})"
        if began and setting == "start":
            reporter.say(f"note: start={said(start)} {made}: its weights make another merge. This run began so")
            continue
        raise ConfigError(
            f"{setting}: {said(start)} {made}, so its weights would make another merge: write transform=none; or, for "
            f"these transforms, a number in its place, such as 1."
        )


def closed_form(
    start: Any,
    settings: Mapping[str, Any],
    problem: Problem,
    reporter: Progress,
    workers: Workers | None = None,
    began: bool = False,
) -> np.ndarray | None:
    """Return the weights of a closed form, float64 (G, K); None where `start` names none.

    Args:
        start: as it was written.
        settings: of the search.
        problem: what is searched.
        reporter: is told when all task vectors are read, or experts scored.
        workers: score experts; None where this process does.
        began: whether the run has begun, so that one of an earlier version goes on as it was.

    Raises:
        ConfigError: it has no such settings, or does not fit what is searched.
        EvomergeError: an expert cannot be scored.
    """
    if not (isinstance(start, Mapping) or start in CLOSED):
        return None
    name, given = named(start, CLOSED, "start")
    groups = problem.space.groups
    if name in STARTS:
        if given:
            raise ConfigError(f"start={name} has no settings: leave out {', '.join(map(str, given))}.")
        if STARTS[name].weights is lines and not began and not any(group.depth for group in groups):
            raise ConfigError(
                f"start={name} grows with the depth, and no group of this space has one, so it would be 1/K: write "
                f"space=layer, or start=1/K."
            )
        with reporter.working(f"reading the task vectors for start={name}"):
            return STARTS[name].weights(problem.rows, groups)
    if list(problem.space.rows) != list(problem.sources.experts):
        raise ConfigError(
            f"start={name} has a weight for each expert, and transform= made other rows of them "
            f"({', '.join(problem.space.rows)}): leave out the transform, or write start=constants."
        )
    if name in SCORED:
        weights = _made(SCORED[name], name, given).weights(_losses(settings, problem, reporter, workers))
    elif settings["model"].get("trajectory"):
        weights = schedule_of(start).weights(len(problem.space.rows))
    else:
        raise ConfigError(
            f"start={name} weighs the checkpoints of one training run: name them in place of experts, such as "
            f"'model.trajectory=run/checkpoint-*'."
        )
    return np.tile(weights, (len(groups), 1))


def is_scored(start: Any) -> bool:
    """Whether a start needs to know what each expert reaches."""
    name = next(iter(start), None) if isinstance(start, Mapping) else start
    return isinstance(name, str) and name in SCORED


def said(start: Any) -> str:
    """Return a start in a few characters: `metagpt`, `ema(decay=0.9)`, `0.4`."""
    if not isinstance(start, Mapping):
        return str(start)
    name, settings = named(start, CLOSED, "start")
    own = ", ".join(f"{key}={value}" for key, value in settings.items())
    return f"{name}({own})" if own else name


def schedule_of(given: Any) -> Schedule:
    """Return how checkpoints are weighed: a name, or a name with its settings.

    Raises:
        ConfigError: it is neither.
    """
    name, settings = named(given, SCHEDULES, "weights of checkpoints")
    return _made(SCHEDULES[name], name, settings)


def named(given: Any, known: Collection[str], what: str) -> tuple[str, Mapping[str, Any]]:
    """Return the name and the settings of a closed form.

    Args:
        given: a name, or {name: settings}.
        known: the names that there are.
        what: the closed forms, in a message.

    Raises:
        ConfigError: it is neither, or no such name.
    """
    pairs = [*given.items()] if isinstance(given, Mapping) else [(given, None)]
    if len(pairs) != 1 or not isinstance(pairs[0][1], Mapping | None):
        raise ConfigError(
            f"{what}: {given} is none of them: write one name with its settings, {{ema: {{decay: 0.9}}}}."
        )
    ((name, settings),) = pairs
    if name not in [*known]:
        raise ConfigError(f"{what}: {unknown('name', str(name), known)}")
    return name, settings or {}


def _made(kind: Any, name: str, settings: Mapping[str, Any]) -> Any:
    check_names(kind, list(settings), name)
    check_arguments(kind, settings, name)
    return kind(**settings)


def _losses(settings: Mapping[str, Any], problem: Problem, reporter: Progress, workers: Workers | None) -> np.ndarray:
    """Return minus what each expert reaches on the search items of a candidate, (K,): of the metric of the search."""
    subset, metric = make_subsets(problem)["search"], problem.goal.metric
    ids, score = subset(0), live_fitness(problem, problem.items["search"])
    timed = at_once if workers else TimeLimit(settings["time_limit"]).first
    models = {name: Model("expert", name) for name in problem.sources.experts}
    experts = {name: contender_of(model, problem, reporter) for name, model in models.items()}
    if workers:  # they begin with all of them
        experts = {
            name: by_workers(workers, models[name], one, problem, "search", ids) for name, one in experts.items()
        }
    found = []
    for name, expert in experts.items():
        with reporter.working(f"scoring {name} on {subset.size} search items for start=cocktail"):
            outcome = outcome_of(expert, problem, score, ids, metric, timed)
        if isinstance(outcome, str):
            raise EvomergeError(
                f"start=cocktail needs a score of every expert, and {name} has none: {outcome.rstrip('.')}. Write "
                f"start=constants."
            )
        found.append(-(score_of(outcome, metric, problem.goal.weights).mean or 0.0))
    return np.array(found)
