"""What the score of a choice promises: `python scripts/check_promise.py RUN [RUN ...] [--draws 1000]`.

In: run directories of ended searches of one problem. Out: how far the score by which a winner is chosen lies above what
it is worth on other items. Select and report items are the same for all seeds, so the difference of these two scores
says which of the two splits is easier, the same for all of them. Here both are put together and divided anew, by
chance, into parts as large as they were, for each draw: the best finalist on one part is chosen, and scored on the
other. What is left on average is the optimism of a choice among so many.

Every finalist that the search handed over is scored on all items of both splits; scores stay in the cache of the run.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from evomerge import load
from evomerge.cli.progress import Reporter
from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.fitness.objectives import task_weights
from evomerge.problem import Problem
from evomerge.runs.directory import Run, open_run
from evomerge.runs.points import find_finalist
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.selection.contenders import in_place
from evomerge.selection.evaluation import outcome_of
from evomerge.selection.statistics import plus_minus
from evomerge.space.named import name_coefficients

SPLITS = ("select", "report")


def main(argv: Sequence[str] | None = None) -> None:
    """Score the finalists of each run, and print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="the directory of a search that has ended")
    parser.add_argument("--draws", type=int, default=1000, help="how often the items are divided (1000)")
    options = parser.parse_args(argv)
    rows, reporter = list[tuple[int, float, float]](), Reporter()
    try:
        problem = load(options.runs[0]).problem
        for number, path in enumerate(options.runs):
            answers = _answers(open_run(path), problem, reporter)
            rng = np.random.default_rng(number)
            rows.append(promise(answers, task_weights(problem.goal.counts(answers), answers), options.draws, rng))
    except EvomergeError as error:
        raise SystemExit(f"error: {error}") from error
    print("| run | finalists | promised - kept | one draw differs by |")
    print("|---|---|---|---|")
    for path, (finalists, bias, spread) in zip(options.runs, rows, strict=True):
        print(f"| {path.name} | {finalists} | {bias:+.4f} | {spread:.4f} |")
    biases = np.array([bias for _, bias, _ in rows])
    se = float(biases.std(ddof=1) / np.sqrt(len(biases))) if len(biases) > 1 else float("nan")
    print(f"| all | | {plus_minus(float(biases.mean()), se, '+')} | |")


def promise(
    answers: Mapping[str, Sequence[np.ndarray]], weights: Mapping[str, float], draws: int, rng: np.random.Generator
) -> tuple[int, float, float]:
    """Return how many finalists there are, how much more the score of a choice says than other items keep on average,
    and the standard deviation of that over draws.

    Args:
        answers: by task, those to select items and those to report items, each (finalists, items).
        weights: of the tasks.
        draws: how often the items are divided.
        rng: divides them.
    """
    whole = {task: np.concatenate(parts, axis=1) for task, parts in answers.items()}
    gaps = list[float]()
    for _ in range(draws):
        promised = kept = np.zeros(1)
        for task, found in whole.items():
            order = rng.permutation(found.shape[1])
            chosen = order[: answers[task][0].shape[1]]
            left = order[len(chosen) :]
            promised = promised + weights[task] * found[:, chosen].mean(1)
            kept = kept + weights[task] * found[:, left].mean(1)
        best = int(np.argmax(promised))
        gaps.append(float(promised[best] - kept[best]))
    return len(next(iter(whole.values()))), float(np.mean(gaps)), float(np.std(gaps, ddof=1))


def _answers(run: Run, problem: Problem, reporter: Reporter) -> dict[str, list[np.ndarray]]:
    """Return what the finalists of a run say of the items of both splits, by task.

    Raises:
        ConfigError: the search has not ended, or a finalist has no score.
    """
    if run.summary is None:
        raise ConfigError(f"{run.path} has no summary, since its search did not end: run its command again.")
    metric, subsets = problem.goal.report_metric, make_subsets(problem)
    found = {task: list[np.ndarray]() for task in subsets["report"](0)}
    points = {name: find_finalist(run, problem, name) for name in run.summary.select.finalists}
    for split in SPLITS:
        ids, score = subsets[split](0), live_fitness(problem, problem.items[split])
        rows = {task: list[np.ndarray]() for task in found}
        for name, point in points.items():
            coefficients = problem.space.decode(point.x)
            named = name_coefficients(coefficients, problem.space.groups, problem.space.rows)
            contender = in_place(partial(problem.merger.apply, coefficients), named, problem.contents)
            with reporter.working(f"{run.path.name}: {name} on {split} items"):
                outcome = outcome_of(contender, problem, score, ids, metric, lambda compute: compute())
            if isinstance(outcome, str):
                raise ConfigError(f"{name} of {run.path} has no score: {outcome}")
            for task, results in outcome.results.items():
                rows[task].append(np.asarray(results[metric]))
        for task, each in rows.items():
            found[task].append(np.stack(each))
    return found


if __name__ == "__main__":
    main()
