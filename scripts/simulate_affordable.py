"""Compares rules that choose with fewer item evaluations: `python scripts/simulate_affordable.py text.npz`.

In: response banks (`response_bank.py`). Out: tables. A draw is a generation of candidates that searches asked for. Each
rule ranks it by answers to search items, for a share of what scoring all candidates on all items costs; its choice is
judged on select items (`affordable/figures.py` says how). The last tables say how far estimates of a value are from
that on all search items, and what racing takes where it may spend what it needs. Everything is drawn by seed: the same
bank gives the same tables.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from affordable.bank import Bank, known_one
from affordable.draws import RIGHT, Draw, Known, generations
from affordable.estimates import ESTIMATES
from affordable.figures import Judge, mark, shown
from affordable.rules import BINARY, RACES, chosen, everything, rules_for
from affordable.samples import even

from evomerge.common.errors import EvomergeError

SHARES = (0.05, 0.1, 0.15, 0.25, 0.5)
KINDS = ("cmaes", "tpe")
"""Of searches that are drawn where the user does not say otherwise, as far as the bank has them."""
BASELINE, STRATIFIED = "random subset", "stratified by class"
"""The rules that others, and item response theory, are held against."""


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables of each bank."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("banks", nargs="+", type=Path, help="as scripts/response_bank.py writes them")
    parser.add_argument("--metric", help="what decides (the metric of the bank's searches)")
    parser.add_argument("--kinds", nargs="+", help=f"of searches that are drawn ({' '.join(KINDS)})")
    parser.add_argument("--candidates", type=int, default=12, help="in a generation (12)")
    parser.add_argument("--parents", type=int, help="that a searcher learns from (half of the candidates)")
    parser.add_argument("--seeds", type=int, default=300, help="generations that are drawn (300)")
    parser.add_argument("--since", type=int, default=2, help="the first generation that is drawn (2)")
    parser.add_argument("--bootstraps", type=int, default=1000, help="for the intervals (1000)")
    options = parser.parse_args(argv)
    for name in ("candidates", "seeds", "bootstraps"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} {getattr(options, name)} is no number of them: write 1 or more")
    try:
        for path in options.banks:
            _show(path, options)
    except EvomergeError as error:
        raise SystemExit(f"error: {error}") from error


def _show(path: Path, options: argparse.Namespace) -> None:
    """Print the tables of a bank.

    Raises:
        EvomergeError: there is no bank, or it has not what was asked for.
    """
    bank = Bank.load(path)
    metric = known_one(path, "--metric", options.metric or bank.metric, bank.responses)
    there = list(dict.fromkeys(name.split()[0] for name in bank.searches))
    kinds = options.kinds or [kind for kind in KINDS if kind in there] or list(KINDS)
    for kind in kinds:
        known_one(path, "--kinds", kind, there)
    known = Known(bank, metric, bank.columns("search"))
    parents = options.parents or options.candidates // 2
    drawn = list(generations(known, kinds, options.candidates, parents, options.seeds, options.since))
    print(f"## {path.stem}: {known.metric} decides\n")
    compare(drawn, options.bootstraps)
    if known.metric == RIGHT:
        print("\n".join(errors(drawn)))


def compare(draws: Sequence[Draw], bootstraps: int) -> None:
    """Print what rules lose at equal cost, and what racing costs."""
    metric, full = draws[0].known.metric, [everything(draw) for draw in draws]
    judge = Judge(draws, full, metric, bootstraps)
    bank, first = draws[0].known.bank, draws[0]
    print(
        f"{len(draws)} draws of {len(first.rows)} candidates, {first.parents} parents, on {first.decides.shape[1]} "
        f"search items; best constant {bank.names[judge.constant]}, full choice above it by "
        f"{shown(judge.gain, '+', items=True)} on {len(bank.columns('select'))} select items.\n"
    )
    found = {
        (name, share): [chosen(rule, draw, int(share * draw.whole)) for draw in draws]
        for name, rule in rules_for(metric).items()
        for share in SHARES
    }
    names = list(rules_for(metric))
    for title, figure in (("regret of the choice", judge.regret), ("lost of the gain by parents", judge.lost)):
        _head(title, SHARES)
        base = {share: figure(found[BASELINE, share]) for share in SHARES}
        for name in names:
            cells = []
            for share in SHARES:
                figures = figure(found[name, share])
                cells.append(shown(figures) + mark(figures - base[share]))
            print(f"| {name} | " + " | ".join(cells) + " |")
        print()
    print(
        "Lower (−) or higher (+) than a random subset of equal cost: the 95 % interval of the difference over draws "
        "excludes 0; that over draws and items as well (−−, ++).\n"
    )
    if irt := [name for name in names if name in BINARY]:
        _head("lost, minus that by strata", SHARES)
        base = {share: judge.lost(found[STRATIFIED, share]) for share in SHARES}
        for name in irt:
            less = [judge.lost(found[name, share]) - base[share] for share in SHARES]
            print(f"| {name} | " + " | ".join(shown(each, "+") + mark(each) for each in less) + " |")
        print()
    print("| racing without a budget | item evaluations | regret | lost |\n|---|---|---|---|")
    for name, rule in RACES.items():
        choices = [rule(draw, draw.whole) for draw in draws]
        spent = np.mean([choice.spent / draw.whole for choice, draw in zip(choices, draws, strict=True)])
        print(f"| {name} | {spent:.0%} | {shown(judge.regret(choices))} | {shown(judge.lost(choices))} |")
    print()


def _head(first: str, shares: Sequence[float]) -> None:
    print(f"| {first} | " + " | ".join(f"{share:.0%}" for share in shares) + " |\n|---|" + "---|" * len(shares))


def errors(draws: Sequence[Draw]) -> list[str]:
    """Return a table of how far estimates of a value are from that on all search items: the root of the mean squared
    error, with the bias and the mean rank correlation within a generation; and whether it is lower (−) or higher (+)
    than that by strata, by an interval over draws.
    """
    lines = ["| error (bias; rank correlation) | " + " | ".join(f"{share:.0%}" for share in SHARES) + " |"]
    lines.append("|---|" + "---|" * len(SHARES))
    truth = np.array([draw.decides @ draw.known.shares for draw in draws])
    again = np.random.default_rng(0).integers(0, len(draws), (len(draws), 1000))
    strata = {share: _off(STRATIFIED, share, draws, truth)[0] for share in SHARES}
    for name in ESTIMATES:
        cells = []
        for share in SHARES:
            squares, bias, ranks = _off(name, share, draws, truth)
            difference = squares - strata[share]
            sign = mark(np.concatenate([[difference.mean()], difference[again].mean(axis=0)])[None])
            cells.append(f"{np.sqrt(squares.mean()):.4f} ({bias:+.4f}; {ranks:.2f}){sign}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return [*lines, ""]


def _off(name: str, share: float, draws: Sequence[Draw], truth: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Return the mean squared error of an estimate in each draw, its bias, and its mean rank correlation."""
    sizes = [sum(even(draw, int(share * draw.decides.shape[1]))) for draw in draws]
    found = np.array([ESTIMATES[name](draw, size) for draw, size in zip(draws, sizes, strict=True)])
    ranks = [_correlation(one, true) for one, true in zip(found, truth, strict=True)]
    return np.mean((found - truth) ** 2, axis=1), float(np.mean(found - truth)), float(np.nanmean(ranks))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    """Return Spearman's correlation; NaN where either is constant."""
    ranks = [np.array([np.mean((each < x) + 0.5 * (each == x)) for x in each]) for each in (one, other)]
    return float(np.corrcoef(ranks)[0, 1]) if all(each.std() > 0 for each in ranks) else float("nan")


if __name__ == "__main__":
    main()
