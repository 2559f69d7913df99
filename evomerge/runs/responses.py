"""What base and experts say of all search items, where that decides which items are drawn, or what values are.

In: a problem, what chooses its search items, and a judge. Out: the same choice, informed by how far base and experts
disagree, each task with its own expert; or estimates of values on all items, from the answers of the base, of each row
of task vectors by itself with the weight 1, and of some constants. These models are scored once, and remembered like
those of a report. That costs item evaluations, which count in `budget.items`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evomerge.common.errors import ConfigError, LogError
from evomerge.common.names import listed
from evomerge.common.progress import Progress
from evomerge.fitness.base import Outcome
from evomerge.fitness.draws import ADAPTIVE, DISAGREEMENT, UNIFORM, ByDisagreement
from evomerge.fitness.estimates import MERGED, Answers, Estimate, calibrate
from evomerge.fitness.finite import named
from evomerge.fitness.sampling import Subset
from evomerge.problem import Problem
from evomerge.search.evaluators.scoring import check_finite, explained
from evomerge.search.evaluators.units import Model
from evomerge.search.journal import read_log
from evomerge.selection.judge import Judge
from evomerge.trials import Trial

WHY = "fitness.sampling=disagreement scores base and experts on all search items, and the"
ALIKE = 2e-5
"""So far apart estimates may be that rest on the same answers, on two kinds of machines."""
SAMPLES = 20
"""By so many samples of each model estimates are compared with what they estimate."""


def responses_cost(problem: Problem) -> int:
    """Return the item evaluations that are paid before the first candidate."""
    sampling = problem.sampling
    models = 2 if sampling.by == DISAGREEMENT else 0
    models += 1 + len(problem.space.rows) + len(sampling.others) if sampling.estimate else 0
    return models * sum(map(len, problem.items["search"].values()))


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


def check_estimate(problem: Problem, subset: Subset) -> None:
    """Refuse estimates where there is nothing to estimate, or nothing to do it by.

    Raises:
        ConfigError: it is so.
    """
    form, every = problem.sampling.estimate, sum(map(len, problem.items["search"].values()))
    if form is None:
        return
    if not problem.fitness.pure:
        raise ConfigError(
            f"fitness.estimate={form} rests on what base and experts answer, and under this fitness they may answer "
            f"something else when the search is resumed: leave it out."
        )
    if subset.size >= every:
        raise ConfigError(
            f"fitness.estimate={form} has nothing to estimate, as a candidate is scored on all {every} search items: "
            f"lower fitness.items, or leave it out."
        )
    if form in MERGED and len(problem.space.rows) < 2:
        raise ConfigError(
            f"fitness.estimate={form} makes the ability of a merge of those of several experts, and here is one row: "
            f"write fitness.estimate={form.removeprefix('g').removeprefix('m')}."
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
    models, rows = _models(problem, judge), dict[str, np.ndarray]()
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
    answers = Answers(ids, rows, problem.space.rows)
    with reporter.working("fitting the items, and comparing estimates with values on all of them"):
        _calibrate(problem, form, answers, reporter)
        return Estimate(form, metric, answers)


def _models(problem: Problem, judge: Judge) -> dict[str, Model]:
    """Return the models whose answers are known, by name: the base, rows by themselves, and constants."""
    models: dict[str, Model] = {"base": "base"}
    for number, row in enumerate(problem.space.rows):
        alone = {variable: values.copy() for variable, values in judge.constant(1.0).items()}
        alone["weight"][:, np.arange(len(problem.space.rows)) != number] = 0.0
        models[row] = alone
    return models | {f"constant {one:g}": judge.constant(one) for one in problem.sampling.others}


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
            drawn[line["batch"]] = subset.sample(line["batch"], before).ids
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
