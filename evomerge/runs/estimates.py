"""Values of candidates on all search items, by item response theory: what estimates rest on, and how far off they are.

In: a problem, and a judge. Out: estimates, from the answers of the base, of each row of task vectors by itself with the
weight 1, and of some constants: these models are scored once on all search items, and remembered like those of a
report. Each of them is then left out in turn, to see how far its estimates are off.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from evomerge.common.errors import ConfigError, LogError
from evomerge.common.names import listed
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.estimates import MERGED, Answers, Estimate, calibrate
from evomerge.fitness.finite import named
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.scoring import check_finite, explained
from evomerge.search.evaluators.units import Model
from evomerge.search.journal import read_log
from evomerge.searchers.base import Part
from evomerge.selection.judge import Judge
from evomerge.trials import Trial

ALIKE = 2e-5
"""So far apart estimates may be that rest on the same answers, on two kinds of machines."""
SAMPLES = 20
"""By so many samples of each model estimates are compared with what they estimate."""


def check_estimate(problem: Problem, subset: Subset, parts: Sequence[Part]) -> None:
    """Refuse estimates where there is nothing to estimate, or nothing to do it by.

    Args:
        problem: what is searched.
        subset: chooses its search items.
        parts: what the searcher will ask for.

    Raises:
        ConfigError: it is so, or a constant that estimates rest on is outside of the bounds.
    """
    form, every = problem.sampling.estimate, sum(map(len, problem.items["search"].values()))
    if form is None:
        return
    low, high = problem.space.weight.low, problem.space.weight.high
    if outside := [one for one in problem.sampling.others if not low <= one <= high]:
        raise ConfigError(
            f"fitness.estimate_from has {outside[0]:g}, and no candidate has a weight outside of [{low:g}, {high:g}]: "
            f"write constants within these bounds, or wider ones (space.bounds)."
        )
    if not problem.fitness.pure:
        raise ConfigError(
            f"fitness.estimate={form} rests on what base and experts answer, and under this fitness they may answer "
            f"something else when the search is resumed: leave it out."
        )
    if all(part.gradient for part in parts):
        raise ConfigError(
            f"fitness.estimate={form} has nothing to estimate, as this search takes steps of a gradient alone: "
            f"leave it out."
        )
    if subset.size >= every:
        raise ConfigError(
            f"fitness.estimate={form} has nothing to estimate, as a candidate is scored on up to all {every} search "
            f"items: lower fitness.items, or leave it out."
        )
    if form in MERGED and len(problem.space.rows) < 2:
        raise ConfigError(
            f"fitness.estimate={form} makes the ability of a merge of those of several experts, and here is one row: "
            f"write fitness.estimate={form.replace('m', '')}."
        )


def estimated(problem: Problem, judge: Judge, reporter: Progress) -> Estimate | None:
    """Return what estimates values on all search items, when it is known how far it is off; None where nothing is
    estimated.

    Args:
        problem: what is searched; it is warned where the mean of a sample is nearer.
        judge: scores base, rows and constants.
        reporter: tells the user.

    Raises:
        EvomergeError: one of them has no score, or its answers are neither right nor wrong.
    """
    form, metric = problem.sampling.estimate, problem.goal.metric
    if form is None:
        return None
    ids = {task: [item.id for item in items] for task, items in problem.items["search"].items()}
    models, rows = _models(problem), dict[str, np.ndarray]()
    with reporter.working(f"scoring {listed(list(models))} on all {sum(map(len, ids.values())):,} search items"):
        for name, model in models.items():
            why = f"fitness.estimate={form} rests on {name}, which"
            with named(why), explained(f"{why} cannot be scored"):
                outcome = judge.on_search(model)
                check_finite(outcome, metric)
            rows[name] = np.concatenate([outcome.results[task][metric] for task in ids])
            if wrong := int((~np.isin(rows[name], (0, 1))).sum()):
                raise ConfigError(
                    f"fitness.estimate={form} is for right and wrong answers, and {metric} of {name} is neither "
                    f"1 nor 0 for {wrong} items: write fitness.metric=accuracy or another such metric, or leave it out."
                )
    answers = Answers(ids, rows, list(map(_alone, problem.space.rows)))
    with reporter.working("fitting the items, and comparing estimates with values on all of them"):
        _calibrate(problem, form, answers, reporter)
        return Estimate(form, metric, answers)


def _models(problem: Problem) -> dict[str, Model]:
    """Return the models whose answers are known, by name: the base, rows by themselves, and constants."""
    rows, constant = problem.space.rows, problem.space.constant
    alone = {_alone(row): constant(weights) for row, weights in zip(rows, np.eye(len(rows)), strict=True)}
    return {"base": "base", **alone, **{f"constant {one:g}": constant(one) for one in problem.sampling.others}}


def _alone(row: str) -> str:
    return f"{row} alone"


def _calibrate(problem: Problem, form: str, answers: Answers, reporter: Progress) -> None:
    """Say how far estimates are off, and warn where means over samples of the same size are nearer."""
    objective = problem.goal.objective(problem.goal.metric, answers.ids)
    drawn = Subset(problem.items["search"], problem.sampling.search, problem.sampling.seed, rotate=True)
    samples = [drawn(number) for number in range(SAMPLES)]
    found = calibrate(form, problem.goal.metric, answers, samples, lambda outcome: objective(outcome)[0][0])
    if found is None:
        reporter.say(f"note: nobody can say how far estimates by {form} are off: no model can be left out")
        return
    reporter.say(f"note: {found.said}")
    if found.worse:
        problem.warnings.append(f"{found.said}: leave fitness.estimate out")


def check_estimated(problem: Problem, estimate: Estimate | None, log: Path) -> None:
    """Refuse to go on with a log whose values are other estimates than those of today.

    Args:
        problem: what is searched.
        estimate: of values on all search items, if they are estimated.
        log: the trial log.

    Raises:
        LogError: it is such a one.
    """
    if estimate is None:
        return
    objective = problem.goal.objective(problem.goal.metric, problem.items["search"])
    for line in read_log(log):
        if line["kind"] != "trial" or line["status"] != "ok" or line.get("gradient"):
            continue
        trial = Trial.from_record(line)
        rows = {task: {name: np.array(row) for name, row in rows.items()} for task, rows in trial.results.items()}
        values, _ = objective(estimate(Outcome(trial.items, rows, None, trial.weights)))
        if not np.allclose(values, trial.values or (), rtol=0, atol=ALIKE):
            raise LogError(
                f"{log}: the value of candidate {trial.index} of generation {trial.batch} is no estimate by what "
                f"base and experts answer today. Go on where the search began, or begin it here in another "
                f"run directory (hydra.run.dir=runs/another)."
            )
