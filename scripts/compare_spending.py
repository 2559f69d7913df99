"""What searches that spend less are worth, end to end: `python scripts/compare_spending.py --out DIR --arm … -- …`.

In: settings of a search, and arms, each with settings of its own; all are held against the first, and each other.
Each arm is searched with each seed by the command `evomerge search` in `DIR/ARM-sSEED`, so a killed comparison goes on
where it was. Out: tables of what each arm has spent and what its winners are worth on the report items, which no search
and no choice has seen.

The difference of two arms is the mean over seeds and items of the difference of their winners of one seed. Its standard
error is that over items, since more seeds do not make the items more: it says what these seeds are worth on other items
of these tasks. That over seeds, in brackets, says what other seeds would be worth on these. `--metric log_probability`
compares the same winners by another number of the same answers, which tells more where answers are right or wrong.

    python scripts/compare_spending.py --out runs/spending --seeds 1 2 3 \\
        --arm full budget=100 --arm candidates budget=25 --arm items budget=100 fitness.items=25 \\
        -- model=text model.suite=suites/demo searcher=cmaes space=layer
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from evomerge import load
from evomerge.cli.progress import Reporter
from evomerge.common.files import write_atomically
from evomerge.common.names import unknown
from evomerge.fitness.base import Outcome
from evomerge.problem import Problem
from evomerge.runs.directory import read_summary
from evomerge.runs.responses import responses_cost
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.journal import read_log
from evomerge.selection.evaluation import contender_of, outcome_of
from evomerge.selection.named import find_model
from evomerge.selection.statistics import Paired, paired, plus_minus
from evomerge.selection.summary import Summary
from evomerge.trials import finite


@dataclass(frozen=True)
class Line:
    """One arm with one seed.

    Attributes:
        candidates: that were scored.
        searched: item evaluations of the search, with those of base and experts where items are drawn by what they say.
        chosen: those of the choice on the select items, the constants among them.
        seen: the best score of a candidate on the items that it was searched on, in the metric of the report.
        select: that of the winner on the select items.
        report: that of the winner on the report items.
        gain: winner minus best constant, on the report items.
        promised: the same on the select items, by which both were chosen.
    """

    candidates: int
    searched: int
    chosen: int
    seen: float
    select: float
    report: float
    gain: float
    promised: float


@dataclass(frozen=True)
class Difference:
    """One arm minus another on the report items.

    Attributes:
        mean: over seeds, paired by items.
        seeds: that of each seed.
    """

    mean: Paired
    seeds: list[float]

    @property
    def text(self) -> str:
        """The mean with its error over items, and in brackets that over seeds."""
        over = f" ({np.std(self.seeds, ddof=1) / np.sqrt(len(self.seeds)):.4f})" if len(self.seeds) > 1 else ""
        return f"{plus_minus(self.mean.diff, self.mean.se, '+')}{over}"


def main(argv: Sequence[str] | None = None) -> None:
    """Search what was not searched yet, print the tables, and write all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="setting=value", help="of all searches: model=text ...")
    parser.add_argument("--arm", nargs="+", action="append", required=True, metavar="WORD", help="NAME setting=value …")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--metric", help="of the differences on report items; that of the report, if left out")
    parser.add_argument("--out", type=Path, required=True, help="a directory for the runs and results.json")
    options = parser.parse_args(argv)
    arms = {name: settings for name, *settings in options.arm}
    if len(arms) < 2 or len(arms) < len(options.arm):
        parser.error("--arm is needed twice or more, with another name each time")
    runs = {name: [options.out / f"{name}-s{seed}" for seed in options.seeds] for name in arms}
    for number, seed in enumerate(options.seeds):
        for name, settings in arms.items():
            _search(runs[name][number], [*options.settings, *settings, f"seed={seed}"])
    lines = dict[str, list[Line]]()
    for name, paths in runs.items():
        problem = load(paths[0]).problem  # of an arm: its seeds change none of what is asked of it
        lines[name] = [_line(run, problem) for run in paths]
    differences = _differences(runs, options.metric)
    content = {
        "settings": options.settings,
        "arms": arms,
        "seeds": options.seeds,
        "lines": {name: [asdict(line) for line in each] for name, each in lines.items()},
        "differences": {
            name: {to: {**asdict(found.mean), "seeds": found.seeds} for to, found in each.items()}
            for name, each in differences.items()
        },
    }
    write_atomically(options.out / "results.json", json.dumps(finite(content), indent=1) + "\n")
    print("\n".join([*_worth(lines, differences), "", *_between(differences), "", *_bias(lines)]))


def _search(run: Path, settings: Sequence[str]) -> None:
    if read_summary(run) is None:
        command = [sys.executable, "-m", "evomerge", "search", *settings, f"hydra.run.dir={run}"]
        subprocess.run(command, check=True, stdout=2)  # what a search prints is no table of this one


def _summary(run: Path) -> Summary:
    if (summary := read_summary(run)) is None:
        raise SystemExit(f"{run} has no summary: its search did not end. Run the same command again.")
    return summary


def _line(run: Path, problem: Problem) -> Line:
    """Return what a run has spent and found."""
    summary = _summary(run)
    trials = [line for line in read_log(run / "trials.jsonl") if line["kind"] == "trial"]
    scores = [found for line in trials if (found := _mean_score(line, summary.metric, problem)) is not None]
    found, gain, constant = summary.winner.mean, summary.gain.diff, summary.select.constants[summary.select.constant]
    return Line(
        len(trials),
        responses_cost(problem) + sum(len(ids) for line in trials for ids in line["items"].values()),
        sum(summary.select.seen.values()),
        max(scores, default=float("nan")),
        summary.select.value,
        float("nan") if found is None else found,
        float("nan") if gain is None else gain,
        float("nan") if constant is None else summary.select.value - constant,
    )


def _mean_score(line: Mapping[str, Any], metric: str, problem: Problem) -> float | None:
    """Return the score of a candidate on the items that it was searched on, by the weights of items and tasks."""
    scores = line["scores"] if line["status"] == "ok" else {}
    if not scores or any(each.get(metric) is None for each in scores.values()):
        return None
    weights = problem.goal.counts(scores) or dict.fromkeys(scores, 1.0)
    return float(np.average([scores[task][metric] for task in weights], weights=list(weights.values())))


def _differences(runs: Mapping[str, Sequence[Path]], metric: str | None) -> dict[str, dict[str, Difference]]:
    """Return each arm minus those before it on the report items, the outcomes of its seeds averaged item by item."""
    problem, reporter = load(next(iter(runs.values()))[0]).problem, Reporter()
    ids, metric = make_subsets(problem)["report"](0), metric or problem.goal.report_metric
    if metric not in problem.fitness.metrics:
        raise SystemExit(f"--metric {metric}: {unknown('metric', metric, problem.fitness.metrics)}")
    score = live_fitness(problem, problem.items["report"])

    def outcome(run: Path) -> Outcome:
        contender = contender_of(find_model(str(run), ()), problem, reporter)
        found = outcome_of(
            contender, problem, score, ids, metric, lambda compute: compute()
        )  # remembered by the search
        if isinstance(found, str):
            raise SystemExit(f"the winner of {run} has no score: {found}")
        return found

    outcomes = {name: [outcome(run) for run in paths] for name, paths in runs.items()}
    names, weights = list(outcomes), problem.goal.counts(ids)

    def difference(name: str, other: str) -> Difference:
        both = zip(outcomes[name], outcomes[other], strict=True)
        seeds = [paired(one, another, metric, weights).diff for one, another in both]
        mean = paired(_mean(outcomes[name], metric), _mean(outcomes[other], metric), metric, weights)
        return Difference(mean, [float("nan") if each is None else each for each in seeds])

    return {
        name: {other: difference(name, other) for other in names[:number]}
        for number, name in enumerate(names)
        if number
    }


def _mean(outcomes: Sequence[Outcome], metric: str) -> Outcome:
    results = {
        task: {metric: np.mean([outcome.results[task][metric] for outcome in outcomes], axis=0)}
        for task in outcomes[0].results
    }
    return Outcome(outcomes[0].items, results)


def _worth(lines: Mapping[str, Sequence[Line]], differences: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    first = next(iter(lines))
    heads = ("arm", "candidates", "item evaluations", "choosing", "report", "over the best constant", f"minus {first}")
    table = [f"| {' | '.join(heads)} | by seed |", f"|{'---|' * 8}"]
    for name, each in lines.items():
        found = differences.get(name, {}).get(first)
        table.append(
            f"| {name} | {_mean_of(each, 'candidates'):.0f} | {_mean_of(each, 'searched'):,.0f} "
            f"| {_mean_of(each, 'chosen'):,.0f} | {_mean_of(each, 'report'):.4f} | {_mean_of(each, 'gain'):+.4f} "
            f"| {found.text if found else ''} "
            f"| {', '.join(f'{value:+.4f}' for value in found.seeds) if found else ''} |"
        )
    return table


def _between(differences: Mapping[str, Mapping[str, Difference]]) -> list[str]:
    """Return what each arm is worth beside those that stand before it."""
    others = [*next(iter(differences.values())), *list(differences)[:-1]]
    table = [f"| arm | {' | '.join(f'minus {name}' for name in others)} |", f"|{'---|' * (1 + len(others))}"]
    for name, each in differences.items():
        cells = [each[to].text if to in each else "" for to in others]
        table.append(f"| {name} | {' | '.join(cells)} |")
    return table


def _bias(lines: Mapping[str, Sequence[Line]]) -> list[str]:
    """Return whether what was chosen by promises too much: over seeds, with the standard error of the mean.

    Select and report items are the same for all seeds, so a difference of the two splits looks like a promise; it is
    not in the last column, where the best constant is taken away on both.
    """
    promises: dict[str, Callable[[Line], float]] = {
        "best seen - report": lambda line: line.seen - line.report,
        "select - report": lambda line: line.select - line.report,
        "gain on select - on report": lambda line: line.promised - line.gain,
    }
    table = [f"| arm | {' | '.join(promises)} |", f"|{'---|' * (1 + len(promises))}"]
    for name, each in lines.items():
        cells = []
        for promise in promises.values():
            gap = np.array([promise(line) for line in each])
            se = float(gap.std(ddof=1) / np.sqrt(len(gap))) if len(gap) > 1 else float("nan")
            cells.append(plus_minus(float(gap.mean()), se, "+"))
        table.append(f"| {name} | {' | '.join(cells)} |")
    return table


def _mean_of(lines: Sequence[Line], what: str) -> float:
    return float(np.mean([getattr(line, what) for line in lines]))


if __name__ == "__main__":
    main()
