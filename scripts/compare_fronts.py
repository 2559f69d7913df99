"""What the fronts of several searchers are worth on items that none has seen: `python scripts/compare_fronts.py`.

In: settings of a search, and arms, each with settings of its own. An arm is searched with each seed; all of a seed have
the same search items and the same number of candidates. `--sums` gives an arm of one value so many weights of the tasks
in turn, each with its share of the candidates: once all alike, then each task four times as much as the others. Of all
that an arm has scored, the points that no other one dominates are handed over, those that lie apart where they are more
than `--points`; they are scored on the select items, and those that nothing dominates there on the report items. An arm
of one value without `--sums` hands over its best points, and the best of them on select is reported.

Out: for each arm and seed, the item evaluations of the search, and the hypervolume of its front on the report items, in
the metric of the report: of scores between base (0) and expert (1) of each task, above -0.5 in each. Then how far each
arm differs from the first one (`front_differences.py`). With `--kept TASK` the smallest share of the base's score that
a reported point keeps on that task as well. What was scored is remembered, so a killed comparison goes on.

    python scripts/compare_fronts.py --out runs/fronts --seeds 1 2 3 --arm random searcher=random \\
        --arm nsga2 searcher=nsga2 --arm sums objective=mean searcher=cmaes --sums sums \\
        -- model=text model.suite=suites/demo objective=pareto space=layer budget=60 fitness.items=24
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from front_differences import Difference, Scores, difference, flat_task, volume

from evomerge.cli.progress import Reporter
from evomerge.cli.settings import compose_settings
from evomerge.common.errors import ConfigError
from evomerge.common.files import write_atomically
from evomerge.common.limits import AUTO
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.runs.build import build_problem, find_start, make_searcher
from evomerge.runs.config import check, plain
from evomerge.runs.identity import search_identity
from evomerge.runs.sampled import check_approximate
from evomerge.search.evaluators.mixed import make_evaluators
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import APPROXIMATELY, approximately, live_fitness, make_subsets
from evomerge.search.journal import read_log
from evomerge.search.log import TrialLog
from evomerge.search.loop import search
from evomerge.search.stopping import Budget, Interrupt
from evomerge.searchers.archive import Archive
from evomerge.searchers.base import Elite
from evomerge.searchers.domination import ranks
from evomerge.selection.choosing import objective_of
from evomerge.selection.judge import Judge
from evomerge.trials import Batch, Trial

MORE = 4.0
"""How much more a task weighs in a weighted sum that is for it."""


@dataclass(frozen=True)
class Line:
    """One arm with one seed.

    Attributes:
        evaluations: of items, in the search.
        points: how many are reported.
        hypervolume: of these on the report items.
        scores: of each of them, by task.
        kept: the smallest share of the base's score that one of them keeps on the task of `--kept`.
    """

    evaluations: int
    points: int
    hypervolume: float
    scores: list[dict[str, float]]
    kept: float | None = None


@dataclass(frozen=True)
class Arm:
    """How an arm is searched.

    Attributes:
        name: what it is called.
        settings: all of them.
        summed: whether it is a number of weighted sums.
    """

    name: str
    settings: Sequence[str]
    summed: bool


def main(argv: Sequence[str] | None = None) -> None:
    """Search what was not searched yet, print the table, and write all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="setting=value", help="of all searches: model=text ...")
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar="WORD", help="NAME setting=value …")
    parser.add_argument("--sums", nargs="*", default=[], metavar="NAME", help="arms that are weighted sums")
    parser.add_argument("--kept", metavar="TASK", help="of which the share of the base's score is told")
    parser.add_argument("--points", type=int, default=8, help="that an arm hands over at most")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--out", type=Path, required=True, help="a directory for the logs and results.json")
    options = parser.parse_args(argv)
    if strange := [name for name in options.sums if name not in {name for name, *_ in options.arm}]:
        parser.error(f"--sums {strange[0]}: there is no such arm")
    _check_tasks(parser, options)
    lines, tables = dict[str, list[Line]](), dict[str, list[Scores]]()
    for seed in options.seeds:
        for name, *own in options.arm:
            arm = Arm(name, [*options.settings, *own, f"seed={seed}"], name in options.sums)
            line, scores = _line(arm, options.out / f"{name}-s{seed}", options.points, options.kept)
            lines.setdefault(name, []).append(line)
            tables.setdefault(name, []).append(scores)
            print(f"{name}, seed {seed}: {line.hypervolume:.4f} of {line.points} points", flush=True)
    first, *others = tables
    apart = {name: difference(tables[name], tables[first]) for name in others}
    content = {
        "settings": options.settings,
        "arms": {name: [asdict(line) for line in each] for name, each in lines.items()},
        "minus": {first: {name: asdict(each) for name, each in apart.items()}},
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_atomically(options.out / "results.json", json.dumps(content) + "\n")
    print("\n".join([*_table(lines, options.seeds), *_differences(first, apart)]))


def _check_tasks(parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
    """Refuse values of the user's own, since the tasks are the values here, and a task of `--kept` that is none."""
    arms = {name: plain(compose_settings([*options.settings, *own])) for name, *own in options.arm}
    for name, settings in arms.items():
        if settings["objective"].get("values"):
            parser.error(f"the arm {name} has objective.values: here every task is a value, so leave it out")
        if settings["fitness"].get("approximate") == AUTO:
            parser.error(f"the arm {name} has fitness.approximate=auto, another dtype on another day: write bfloat16")
    if options.kept is not None:  # all arms have the same tasks, or their fronts could not be held side by side
        tasks = list(build_problem(next(iter(arms.values())), Reporter()).items["report"])
        if options.kept not in tasks:
            parser.error(f"--kept {options.kept}: there is no such task; there are {', '.join(tasks)}")


def _line(arm: Arm, directory: Path, count: int, kept: str | None) -> tuple[Line, Scores]:
    """Search one arm with one seed, and report its front: what it is worth, and the scores by item that say it."""
    parts = list(_parts(arm))
    problems, batches = [], list[Batch]()
    for number, settings in enumerate(parts):
        problem, found = _searched(settings, directory / f"{number}.jsonl")
        batches += [Batch(len(batches) + i, batch.points, batch.trials) for i, batch in enumerate(found)]
        problems.append(problem)
    problem = problems[0]
    fitnesses = {split: live_fitness(problem, items) for split, items in problem.items.items()}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    points = _handed_over(batches, problem, arm.summed or problem.goal.several, count)
    outcomes = _reported(problem, judge, points, arm.summed)
    evaluations = sum(trial.spent for batch in batches for trial in batch.trials if trial)
    return _worth(problem, judge, outcomes, evaluations, kept)


def _parts(arm: Arm) -> Iterator[dict[str, Any]]:
    """Yield the settings of each search of an arm: one, or one for each weights of the tasks."""
    settings = plain(compose_settings(arm.settings))
    if not arm.summed:
        yield settings
        return
    tasks = list(build_problem(settings, Reporter()).items["search"])
    for one in (None, *tasks):
        objective = {**settings["objective"], "weights": {one: MORE} if one else None}
        yield {**settings, "objective": objective, "budget": settings["budget"] // (len(tasks) + 1)}


def _searched(settings: Mapping[str, Any], path: Path) -> tuple[Problem, list[Batch]]:
    """Search, as far as it was not done, and return what is searched and all that was scored."""
    check(settings)
    if settings["fitness"]["estimate"]:
        raise ConfigError("Values are scored here, and not estimated: leave fitness.estimate out.")
    problem, reporter = build_problem(settings, Reporter()), Reporter()
    start = find_start(settings, problem, reporter)
    searcher = make_searcher(settings, problem.space, start, problem.objectives)
    fitnesses = {split: live_fitness(problem, items) for split, items in problem.items.items()}
    check_approximate(settings, problem.live, problem.fitness)
    if problem.sampling.approximate:
        fitnesses[APPROXIMATELY] = approximately(problem, fitnesses["search"])
    subset = make_subsets(problem)["search"]
    _, _, evaluate = make_evaluators(problem, SerialScorer(problem, fitnesses), subset, None)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TrialLog(path, search_identity(problem, settings), {}) as log:
        search(searcher, evaluate, log, Budget(settings["budget"]))
    batches = dict[int, Batch]()
    for line in read_log(path):
        if line["kind"] == "ask":
            batches[line["batch"]] = Batch(line["batch"], np.array(line["points"]))
        elif line["kind"] == "trial":
            trial = Trial.from_record({name: value for name, value in line.items() if name != "crc"})
            batches[trial.batch].trials[trial.index] = trial
    return problem, list(batches.values())


def _handed_over(batches: Sequence[Batch], problem: Problem, several: bool, count: int) -> list[np.ndarray]:
    """Return the points of the front of all that was scored, or the best of one value."""
    tasks, metric = list(problem.items["search"]), problem.goal.metric
    found = Archive(count, len(tasks)) if several else Elite(count)
    for batch in batches:
        trials = [
            t and (_by_task(t, tasks, metric) if several and not problem.goal.several else t) for t in batch.trials
        ]
        found.update(Batch(batch.index, batch.points, trials))
    return [one.x for one in found.incumbents().values()]


def _by_task(trial: Trial, tasks: Sequence[str], metric: str) -> Trial:
    """Return a trial of one value with the scores of the tasks as its values."""
    values = tuple(trial.scores[task][metric] for task in tasks) if trial.values else None
    return Trial(trial.batch, trial.index, trial.status, values, trial.violations)  # pyright: ignore[reportArgumentType]


def _reported(problem: Problem, judge: Judge, points: Sequence[np.ndarray], summed: bool) -> list[Outcome]:
    """Return the outcomes on report of the points that nothing dominates on select, or of the best one there."""
    tasks, metric, objective = (
        list(problem.items["select"]),
        problem.goal.report_metric,
        objective_of(judge, problem.goal),
    )
    outcomes = [judge.merged(judge.decode(x), "select") for x in points]
    told = [objective(outcome) for outcome in outcomes]
    values = np.array([values for values, _ in told])
    if summed:
        values = np.array([[outcome.scores()[task][metric] for task in tasks] for outcome in outcomes])
    violated = np.array([sum(max(lacks, 0.0) for lacks in violations) for _, violations in told])
    several = summed or problem.goal.several
    front = np.flatnonzero(ranks(values, violated) == 0).tolist()
    chosen: list[int] = front if several else [int(values[:, 0].argmax())]
    return [judge.merged(judge.decode(points[i]), "report") for i in chosen]


def _worth(
    problem: Problem, judge: Judge, outcomes: Sequence[Outcome], evaluations: int, kept: str | None
) -> tuple[Line, Scores]:
    """Return what the reported points of an arm are worth."""
    metric, base, experts = problem.goal.report_metric, judge.base("report"), judge.experts("report")
    rows = [base, experts, *outcomes]
    tables = {task: np.array([one.results[task][metric] for one in rows]) for task in experts.results}
    if flat := flat_task(tables):
        raise SystemExit(f"The expert of {flat} is no better than the base on report: take more report items.")
    scores = [{task: row[metric] for task, row in outcome.scores().items()} for outcome in outcomes]
    share = None
    if kept is not None:
        known = base.scores()[kept][metric]
        share = 1 + (min(one[kept] for one in scores) - known) / abs(known)
    return Line(evaluations, len(scores), volume(tables), scores, share), tables


def _table(lines: Mapping[str, Sequence[Line]], seeds: Sequence[int]) -> Iterator[str]:
    """Yield the lines of a table, an arm each."""
    told = any(line.kept is not None for each in lines.values() for line in each)
    named = ", ".join(map(str, seeds))
    yield f"| arm | item evaluations | points | hypervolume, seeds {named} | mean |{' kept |' * told}"
    yield f"|---|---|---|---|---|{'---|' * told}"
    for name, each in lines.items():
        found = [line.hypervolume for line in each]
        kept = ", ".join(f"{line.kept:.3f}" for line in each if line.kept is not None)
        yield (
            f"| {name} | {np.mean([line.evaluations for line in each]):,.0f} | "
            f"{np.mean([line.points for line in each]):.1f} | {', '.join(f'{one:.3f}' for one in found)} | "
            f"{np.mean(found):.3f} |{f' {kept} |' * told}"
        )


def _differences(first: str, apart: Mapping[str, Difference]) -> Iterator[str]:
    """Yield the lines of a table of differences to the first arm; none where there is no other one."""
    if not apart:
        return
    yield f"\n| hypervolume minus that of {first} | by seed | mean | ± seeds | ± items |"
    yield "|---|---|---|---|---|"
    for name, found in apart.items():
        seeds = "" if found.between_seeds is None else f"{found.between_seeds:.3f}"
        by_seed = ", ".join(f"{one:+.3f}" for one in found.seeds)
        yield f"| {name} | {by_seed} | {found.mean:+.3f} | {seeds} | {found.between_items:.3f} |"


if __name__ == "__main__":
    main()
