"""Any point of a run, of a search that is complete, was stopped, or goes on: by the name of its trial or as a finalist.

In: a `Run`, and for coefficients the parts of its search, since only its own space can decode a point. Out: a `Point`,
and its recipe. The finalists are those of the searcher, which is rebuilt and told what the log holds, as a resumed
search does; nothing is scored.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from evomerge.common.digests import digest
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.names import unknown
from evomerge.common.progress import Progress, Silent
from evomerge.problem import Problem
from evomerge.recipes.handover import make_recipe
from evomerge.recipes.recipe import Recipe
from evomerge.runs.akin import products_of
from evomerge.runs.build import baseline_name, build_problem, find_baselines, find_start, make_searcher
from evomerge.runs.directory import Run
from evomerge.runs.earlier import NEGATED
from evomerge.runs.fronts import find_point, recipe_scores
from evomerge.runs.paths import from_its_start
from evomerge.runs.readable import readable
from evomerge.runs.starts import digests_of
from evomerge.search.log import TOLERANCE
from evomerge.searchers.archive import unfinished
from evomerge.searchers.base import Incumbent, lag_of
from evomerge.selection.summary import START
from evomerge.space.named import array_coefficients
from evomerge.trials import Batch, Trial, finite

CONSTANT = "constant "
"""How the selection names a constant coefficient among its finalists: `constant 0.4`, `constant -0.4 of mood`."""


@dataclass(frozen=True, eq=False)
class Point:
    """A point of a run's space.

    Attributes:
        name: `trial 3.1`, `finalist best`.
        x: float64 (dim,).
        value: what it reached, on items that `about` names; None where nobody knows.
        about: the same and more as plain data, for the scores of a recipe.
    """

    name: str
    x: np.ndarray
    value: float | None
    about: dict[str, Any] = field(default_factory=dict)


def open_problem(run: Run, reporter: Progress) -> Problem:
    """Build the parts of a run's search anew, on the CPU, and check that they are those that were searched.

    Raises:
        EvomergeError: sources are gone, or are not what they were.
    """
    settings = from_its_start(run.settings, run.path)
    settings["model"] = {**settings["model"], "device": "cpu", "device_map": None}
    try:
        with reporter.bars():
            problem = build_problem(settings, reporter)
    except EvomergeError as error:
        least = "" if run.recipe is None else f" Its winner stands in {run.path / 'recipe.yaml'}."
        raise ConfigError(
            f"The sources of the run {run.path} are not there as they were, and without them its points are only "
            f"numbers. Paths in its config.yaml are those of the directory in which it was started: go there, or put "
            f"the sources back.{least} What was found: {error}"
        ) from error
    vectors, space = problem.vectors, problem.space
    now = {
        "the base": vectors.base.sha256,
        **{f"the expert {name}": expert.sha256 for name, expert in vectors.experts.items()},
        "the coefficient space": [list(space.names), digest([space.low.tolist(), space.high.tolist()])],
    }
    before = {
        "the base": run.identity["base"],
        **{f"the expert {name}": sha256 for name, sha256 in run.identity["experts"]},
        "the coefficient space": [run.coordinates, run.identity["space"]["box"]],
    }
    if changed := [what for what in {**before, **now} if before.get(what) != now.get(what)]:
        raise ConfigError(
            f"{' and '.join(changed)} of the run {run.path} changed since it was searched, so its points do not stand "
            f"for the same models any more. Put back what its config.yaml names."
        )
    return problem


def find_trial(run: Run, name: str) -> Point:
    """Return a trial by its name; all of them count from 0.

    Args:
        run: its run.
        name: `3.1`, point 1 of batch 3; `17`, point 17 of all; or `step_40`, the point of that step along a gradient.

    Raises:
        ConfigError: there is no such trial, or it has no result yet.
    """
    places = [(batch.index, i) for batch in run.batches for i in range(len(batch.points))]
    steps = [(batch.index, 0) for batch in run.batches if batch.gradient]
    names = {
        **{f"step_{number}": place for number, place in enumerate(steps)},
        **{str(number): place for number, place in enumerate(places)},
        **{f"{batch}.{index}": (batch, index) for batch, index in places},
    }
    if name not in names:
        last = "{}.{}".format(*places[-1]) if places else "none"
        raise ConfigError(
            f"The run {run.path} has no trial '{name}': write BATCH.INDEX, such as 3.1, or a number, such as 17, or "
            f"step_40 in a search by gradient. It has {len(places)} trials, counted from 0, the last is {last}, and "
            f"{len(steps)} of them are steps."
        )
    batch, index = names[name]
    trial = run.batches[batch].trials[index]
    if trial is None:
        raise ConfigError(f"Trial {batch}.{index} of the run {run.path} has no result yet: wait for it.")
    return _point(run, trial)


def best_trial(run: Run) -> Point:
    """Return the trial with the highest value on the search items; of equals the first.

    Raises:
        ConfigError: nothing was scored yet, or all trials are steps of a gradient.
    """
    scored = [t for b in run.batches if not b.gradient for t in b.trials if t is not None and t.full]
    if any(len(trial.values or ()) > 1 for trial in scored):
        raise ConfigError(
            f"The search {run.path} has several values, so no trial of it is the best: name a point of its front "
            f"(--point 1), a finalist or a trial."
        )
    if not scored:
        if any(batch.gradient for batch in run.batches):
            raise ConfigError(
                f"The trials of {run.path} are steps along a gradient, each with the loss on other inputs, so none of "
                f"them is the best. Name a step (--trial step_40), or one of the points that the selection compares "
                f"(--finalist step_40)."
            )
        raise ConfigError(f"No candidate of {run.path} has a score yet: wait for one, or look at its trials.jsonl.")
    return _point(run, max(scored, key=lambda trial: trial.full[0] if trial.full else -math.inf))


def find_finalist(run: Run, problem: Problem, name: str) -> Point:
    """Return one of the points among which the selection chooses, or would choose now: the searcher's incumbents, and a
    constant.

    Args:
        run: the run.
        problem: what is searched.
        name: as summary.json has it: `best`, `mean`, `step_40`, `constant 0.4`.

    Raises:
        ConfigError: there is none of that name.
        EvomergeError: the searcher does not ask for the points that the log holds.
    """
    finalists = {name: one.x for name, one in _incumbents(run, problem).items()}
    summary = run.summary if is_current(run) else None
    selected = summary.select.finalists if summary else {}
    if name.startswith(CONSTANT) and name in selected:
        rows = summary.forgetting.negated if summary and summary.forgetting else ()
        weight = problem.space.flat(float(name.removeprefix(CONSTANT).partition(" of ")[0]), rows)
        finalists[name] = problem.space.nearest({"weight": weight})
    if name.startswith(START) and name in selected:
        here = from_its_start(run.settings, run.path)
        both = zip(run.settings.get("baselines") or [], here.get("baselines") or [], strict=True)
        asked = [start for given, start in both if baseline_name(given) == name]
        if summary and summary.files.get(name) not in (None, *digests_of(asked).values()):
            raise ConfigError(
                f"{asked[0]} has changed since the run {run.path} judged it, so what it says now is not what "
                f"has the value {selected[name]}. Put back what it said; or run the command of this run again, which "
                f"judges it as it is now."
            )
        points = find_baselines({**here, "baselines": asked}, problem, Silent())
        finalists |= dict.fromkeys([name], *points.values())
    if name not in finalists:
        raise ConfigError(f"{run.path}: {unknown('finalist', name, {**finalists, **selected})}")
    about: dict[str, Any] = {"note": "chosen by name; never scored on the report split"}
    if summary and name in selected:
        scored = summary.select.seen.get(name, summary.items["select"])  # runs of version 0.2 dropped nobody
        about |= {"split": "select", "items": scored, "metric": summary.metric}
    value = selected.get(name)
    return Point(f"finalist {name}", finalists[name], value, {"point": f"finalist {name}", **about, "value": value})


def is_current(run: Run) -> bool:
    """Whether the run has a summary, and no trial is younger than it."""
    return run.summary is not None and run.summary.trials == sum(1 for _ in run.trials())


def recipe_of(run: Run, problem: Problem, point: Point) -> Recipe:
    """Return the recipe of a point, without heads.

    Args:
        run: its run.
        problem: what is searched.
        point: the point.
    """
    return make_recipe(problem, problem.space.decode(point.x), finite(point.about), {})


def find_point_recipe(run: Run, name: str, parts: Callable[[], Problem]) -> Recipe:
    """Return the recipe of a point of the run's front: the winner's as it stands, another one without heads.

    Args:
        run: its run.
        name: `3` or `point_3`.
        parts: builds what is searched, where it is needed.

    Raises:
        ConfigError: there is no such point.
        EvomergeError: sources are gone, or are not what they were.
    """
    point = find_point(run, name)
    if run.recipe and run.summary and run.summary.front and point.name == run.summary.front.chosen:
        return run.recipe
    problem = parts()
    coefficients = array_coefficients(point.coefficients, problem.space.groups, problem.space.rows)
    scores = recipe_scores(run.summary, point) if run.summary else {}
    return make_recipe(problem, coefficients, finite(scores), {})


def _point(run: Run, trial: Trial) -> Point:
    batch = run.batches[trial.batch]
    name = f"trial {trial.batch}.{trial.index}"
    objective = run.identity["objective"]
    losses = [metric for scores in trial.scores.values() for metric in scores]  # of a step: one and the same
    metric = (losses or ["loss"])[0] if batch.gradient else objective["metric"]
    about = {
        "point": name,
        "note": "chosen by its name, not on the select split; never scored on the report split",
        "split": "the inputs of this step" if batch.gradient else "search",
        "items": trial.spent,
        "metric": metric,
        "objective": "minus the loss" if batch.gradient else _objective(objective),
        "value": trial.full[0] if trial.full and len(trial.full) == 1 else None,
        "tasks": {task: scores.get(metric) for task, scores in trial.scores.items()},
    }
    if trial.values and len(trial.values) > 1:
        about["values"] = readable(run.settings["objective"].get("values"), trial.scores, trial.values)
    if trial.violations:
        about["violations"] = list(trial.violations)
    if trial.error:
        about["error"] = trial.error
    if trial.status == "censored":
        about["race"] = "dropped before it was scored on all items; the scores are those on the items that it saw"
    return Point(name, batch.points[trial.index], about["value"], about)


def _objective(objective: Mapping[str, Any]) -> str:
    """Return what makes a value of the scores of tasks, in words."""
    if forget := objective.get("forget"):
        return f"minus the mean of {', '.join(forget)}, keeping {objective['keep']:.4g} of the others"
    return objective["aggregate"]


def _incumbents(run: Run, problem: Problem) -> dict[str, Incumbent]:
    """Rebuild the searcher, tell it the log, and return what it has found, as a resumed search would."""
    start = find_start(from_its_start(run.settings, run.path), problem, Silent(), began=True)
    negated = run.identity["objective"].get(NEGATED, ())  # earlier versions took all experts away
    gram = products_of(run.settings, problem, Silent())
    searcher = make_searcher(run.settings, problem.space, start, problem.objectives, negated, gram)
    ahead = deque(run.batches)
    for told, batch in enumerate(run.batches):
        while ahead and (
            ahead[0].index == told or (ahead[0].index - told <= lag_of(searcher) and searcher.stop() is None)
        ):
            _check_asked(searcher.ask(), ahead.popleft(), run)
        if not batch.complete:
            return searcher.incumbents() | unfinished(batch)
        searcher.tell(batch)
    return searcher.incumbents()


def _check_asked(asked: Batch, logged: Batch, run: Run) -> None:
    """Refuse a searcher that does not ask for what the log holds.

    Raises:
        EvomergeError: it asks for other points.
    """
    if asked.points.shape != logged.points.shape or not np.allclose(asked.points, logged.points, 0, TOLERANCE):
        raise EvomergeError(
            f"The searcher asks for other points than generation {logged.index} of {run.path} holds: its settings "
            f"or libraries are not those of the run. Name a trial instead: --trial {logged.index}.0."
        )
