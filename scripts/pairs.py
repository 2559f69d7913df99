"""What tells beforehand which two experts may be merged: `python scripts/pairs.py model=text --out pairs.json`.

In: settings of a search. Each two experts are merged alone, with the best of a few constants on the select items of
their two tasks; what that costs is the mean over both of own expert minus merge. Out: a table of the pairs, and how
well the barrier on the search items (`selection/curves.py`), cosine, kinship, distance and signs of the task vectors
rank that cost: Spearman's correlation. Pairs that share an expert are not independent, so the chance of a correlation
as large is that over all orders of the experts (Mantel 1967), not of the pairs.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations, permutations
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from evomerge.cli.progress import Reporter
from evomerge.cli.settings import compose_settings
from evomerge.common.files import write_atomically
from evomerge.fitness.objectives import Objective
from evomerge.inspection.geometry import measure
from evomerge.problem import Problem
from evomerge.runs.build import build_problem
from evomerge.runs.config import plain
from evomerge.search.evaluators.serial import SerialScorer
from evomerge.search.evaluators.splits import live_fitness, make_subsets
from evomerge.search.stopping import Interrupt
from evomerge.selection.curves import curves
from evomerge.selection.judge import Judge
from evomerge.selection.racing import choose
from evomerge.selection.statistics import paired
from evomerge.trials import finite

CONSTANTS = (0.3, 0.5, 0.7, 1.0)
HIGH = ("barrier", "above_mean", "distance", "opposite")
"""What should be high where merging costs much; the others should be low."""
LOW = ("cosine", "kinship")
COSTS = ("cost", "cost_loss")


def main(argv: Sequence[str] | None = None) -> None:
    """Measure all pairs, print both tables, and write all of it."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("settings", nargs="+", metavar="setting=value", help="of a search: model=text ...")
    parser.add_argument("--out", type=Path, help="a JSON file for what was measured")
    options = parser.parse_args(argv)
    settings, reporter = plain(compose_settings(options.settings)), Reporter()
    experts, rows = measured(settings, reporter)
    correlations = {f"{cost}/{name}": mantel(rows, name, cost, experts) for cost in COSTS for name in (*HIGH, *LOW)}
    if options.out:
        content = {"settings": options.settings, "experts": experts, "pairs": rows, "correlations": correlations}
        write_atomically(options.out, json.dumps(finite(content), indent=1) + "\n")
    for line in (*_pairs(rows), "", *_correlations(correlations)):
        print(line)


def measured(settings: Mapping[str, Any], reporter: Reporter) -> tuple[list[str], list[dict[str, Any]]]:
    """Return the names of the experts, and a row for each two of them."""
    with reporter.bars():
        whole = build_problem(settings, reporter)
    vectors, rows, experts = whole.vectors, [], list(whole.vectors.rows)
    found, *others = measure(vectors.base, list(vectors.experts.values()), vectors.parameters).values()
    for other in others:
        found += other
    for pair in combinations(experts, 2):
        j, k = map(experts.index, pair)
        of_two = {**settings, "model": {**settings["model"], "experts": list(pair)}}
        with reporter.bars():
            problem = build_problem(of_two, reporter)
        (line,) = curves(problem, [pair], reporter)
        row = {"pair": pair, **costs(problem)}
        row |= {"barrier": line.barrier, "barrier_se": line.se, "above_mean": line.above_mean}
        row |= {"cosine": float(found.cosines[j, k]), "kinship": float(found.pearson[j, k])}
        row |= {"distance": float(found.distances[j, k]), "opposite": float(found.signs.pairs[j, k])}
        reporter.say(f"{pair[0]} and {pair[1]}: merging costs {row['cost']:.3f}")
        rows.append(row)
    return experts, rows


def costs(problem: Problem) -> dict[str, Any]:
    """Return what merging all experts of a problem costs: own experts minus the best constant, on the select items.

    The constant is the one that is best by the metric of the search; the cost in that metric is `cost_loss`, the one in
    the metric of reports `cost`.
    """
    goal, fitnesses = problem.goal, {"select": live_fitness(problem, problem.items["select"])}
    judge = Judge(problem, SerialScorer(problem, fitnesses), make_subsets(problem), Interrupt())
    constants = {f"{constant:g}": judge.constant(constant) for constant in CONSTANTS}

    def score(name: str, part: Any) -> Any:
        return judge.merged(constants[name], "select", part)

    best = choose(constants, score, Objective(goal.metric), judge.ids["select"], line=True)
    merge, experts = judge.merged(constants[best.name], "select"), judge.experts("select")
    problem.become(None)
    cost, loss = (paired(experts, merge, metric) for metric in (goal.report_metric, goal.metric))
    return {
        **{"constant": float(best.name), "cost": cost.diff, "cost_se": cost.se, "cost_loss": loss.diff},
        **{"cost_loss_se": loss.se, "items": judge.sizes["select"]},
    }


def mantel(rows: Sequence[Mapping[str, Any]], one: str, other: str, experts: Sequence[str]) -> dict[str, float]:
    """Return Spearman's correlation of two numbers of pairs, and the share of the orders of the experts that give one
    as far from 0.

    Args:
        rows: one for each pair, with the names of its experts.
        one: a number of pairs,
        other: and another.
        experts: all of them.
    """
    size = len(experts)
    upper = np.triu_indices(size, 1)
    tables = []
    for name in (one, other):
        table = np.zeros((size, size))
        for row, rank in zip(rows, rankdata([row[name] for row in rows]), strict=True):
            j, k = map(experts.index, row["pair"])
            table[j, k] = table[k, j] = rank
        tables.append(table)
    if any(np.ptp(table[upper]) == 0 for table in tables):
        return {"rho": float("nan"), "p": 1.0, "orders": 0.0}  # all pairs alike: there is nothing to rank
    orders = permutations(range(size))  # the order as it is comes first
    drawn = [np.corrcoef(tables[0][np.ix_(order, order)][upper], tables[1][upper])[0, 1] for order in orders]
    share = np.mean(np.abs(drawn) >= abs(drawn[0]) - 1e-9)
    return {"rho": float(drawn[0]), "p": float(share), "orders": float(len(drawn))}


def _pairs(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    lines = ["| pair | λ | cost ± se | cost in loss ± se | barrier ± se | above the mean of ends | cosine | kinship |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in sorted(rows, key=lambda row: -row["cost"]):
        lines.append(
            f"| {' and '.join(row['pair'])} | {row['constant']:g} | {row['cost']:+.3f} ± {row['cost_se']:.3f} | "
            f"{row['cost_loss']:+.3f} ± {row['cost_loss_se']:.3f} | {row['barrier']:.3f} ± "
            f"{row['barrier_se'] or 0:.3f} | {row['above_mean']:+.3f} | {row['cosine']:.4f} | {row['kinship']:.4f} |"
        )
    return lines


def _correlations(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    lines = ["| | with the cost | p | with the cost in loss | p |", "|---|---|---|---|---|"]
    for name in (*HIGH, *LOW):
        cells = [found[f"{cost}/{name}"] for cost in COSTS]
        lines.append(f"| {name} | " + " | ".join(map(_correlation, cells)) + " |")
    return lines


def _correlation(found: Mapping[str, float]) -> str:
    return f"{found['rho']:+.2f} | {found['p']:.2f}" if found["orders"] else "all alike |"


if __name__ == "__main__":
    main()
