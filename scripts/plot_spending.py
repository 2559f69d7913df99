"""Quality against item evaluations: `python scripts/plot_spending.py experiments/affordable/README.md --out FILE.png`.

In: the tables of that page, as `simulate_affordable.py`, `simulate_searches.py` and `compare_spending.py` print them.
Out: a picture of texts (left) and images (right): what choices of single generations lose by rule, where
log-probability decides and where accuracy does; what whole searches lose in simulation, with screening and without;
and what winners of whole searches by CMA-ES and TPE gained on models. So picture and tables cannot differ.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from evomerge.common.errors import ConfigError, EvomergeError, SuiteError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

BY_LOG_PROBABILITY = {
    "fewer candidates, all items": "fewer candidates",
    "random subset": "random items",
    "stratified by class": "stratified",
    "expert disagreement": "disagreement",
    "racing": "racing",
    "racing, disagreement": "racing, disagreement",
    "halving, disagreement": "halving, disagreement: the best combination",
}
BY_ACCURACY = {
    "fewer candidates, all items": "fewer candidates",
    "random subset": "random items",
    "stratified by class": "stratified",
    "expert disagreement": "disagreement",
    "racing": "racing",
    "p-IRT": "p-IRT",
    "mp-IRT": "mp-IRT",
    "gmp-IRT, other merges": "gmp-IRT, other merges",
    "screening by log-probability": "screening by log-probability",
    "log-probability": "log-probability instead",
    "halving by log-probability, disagreement": "halving by it, disagreement: the best combination",
}
"""Rules that are drawn, of those in the tables, and what they are called."""
DECIDES = {"log-probability": BY_LOG_PROBABILITY, "accuracy": BY_ACCURACY}
SUITES = ("text", "images")
SEARCHES = {"CMA-ES, text": "CMA-ES, text", "CMA-ES, images": "CMA-ES", "TPE, text": "TPE, text", "TPE, images": "TPE"}
"""Whole searches on models; where their table is: under a heading, or headed so."""
FULL, QUARTER, TENTH = 1.0, 0.25, 0.1
CUT = "black"
"""The colour of what saves candidates; all else saves items."""

Row = list[str]


def tables_of(page: str) -> list[tuple[str, list[Row]]]:
    """Return the tables of a page: the heading above each, and its rows, the one with the names of columns first."""
    found, heading, rows = list[tuple[str, list[Row]]](), "", list[Row]()
    for line in [*page.splitlines(), ""]:
        if line.startswith("|"):
            cells = [cell.strip() for cell in line.strip("|").split("|")]
            rows += [] if set("".join(cells)) <= set("-: ") else [cells]
            continue
        if rows:
            found.append((heading, rows))
            rows = []
        if line.startswith("#"):
            heading = line.strip("# ")
    return found


def draw(page: str) -> Figure:
    """Draw the tables of a page.

    Raises:
        ConfigError: matplotlib is not installed.
        SuiteError: a table is missing.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which has a global state
    except ImportError:
        raise ConfigError("Plots need matplotlib, and that is not installed: pip install 'evomerge[plot]'") from None
    tables = tables_of(page)
    figure = Figure(figsize=(12, 21), dpi=75, layout="constrained")
    rows = figure.subplots(len(DECIDES) + 1 + len(SEARCHES) // 2, 2)
    regrets = [rows for _, rows in tables if rows[0][0] == "regret of the choice"]
    if len(regrets) < len(DECIDES) * len(SUITES):
        raise SuiteError("The page has no four tables of regret: give experiments/affordable/README.md.")
    for column, suite in enumerate(SUITES):
        for row, (decides, names) in enumerate(DECIDES.items()):
            title = f"{suite}: one generation, simulated; {decides} decides"
            _rules(rows[row, column], regrets[len(DECIDES) * column + row], names, title)
        _screened(rows[2, column], tables, suite)
    for axes, (name, where) in zip(rows[3:].flat, SEARCHES.items(), strict=True):
        _searches(axes, tables, name, where)
    return figure


def _rules(axes: Axes, rows: Sequence[Row], names: Mapping[str, str], title: str) -> None:
    """Draw the regret of rules, with its interval, over the share of item evaluations; at all of them it is 0."""
    shares = [float(cell.strip("%")) for cell in rows[0][1:]]
    known = {row[0]: [[float(x) for x in re.findall(r"-?\d*\.\d+", cell)[:3]] for cell in row[1:]] for row in rows[1:]}
    for number, (name, called) in enumerate(names.items()):
        if name not in known:
            raise SuiteError(f"The page has no row {name!r} in the table of {title}.")
        middles, lows, highs = np.array([*known[name], [0.0] * 3]).T
        at = [share * 1.015 ** (number - len(names) / 2) for share in [*shares, 100]]  # side by side
        errors = [middles - lows, highs - middles]
        colour = CUT if name == "fewer candidates, all items" else f"C{number - 1}"
        axes.errorbar(at, middles, yerr=errors, fmt=".-", linewidth=1, elinewidth=0.5, color=colour, label=called)
    axes.plot([100], [0.0], "*", color="black", markersize=9, label="full: all candidates on all items")
    _over_shares(axes, [*shares, 100])
    _finish(axes, title, "item evaluations, of all candidates on all items", "regret of the choice")


def _searches(axes: Axes, tables: Sequence[tuple[str, list[Row]]], name: str, where: str) -> None:
    """Draw what winners gained over the best constant, by item evaluations; those before a search count.

    The bars are standard errors of the difference to the full search.
    """
    rows = next((r for h, r in tables if where in (h, r[0][0]) and "item evaluations" in r[0]), None)
    if rows is None:
        raise SuiteError(f"The page has no table {where!r}.")
    columns = [rows[0].index(each) for each in ("item evaluations", "over the best constant", "minus full")]
    curves = dict[str, list[tuple[int, float, float]]]()
    for row in rows[1:]:
        spent, gained, error = (row[column] for column in columns)
        at = sum(int(part.replace(",", "")) for part in spent.split("+")), float(gained)
        curves.setdefault(_rule(row[0]), []).append((*at, float(error.split("±")[1]) if error else 0.0))
    full = curves.pop("full")
    for number, (rule, points) in enumerate(curves.items()):
        ends = full if rule in ("fewer candidates", "fixed items") else []  # the full search is what these come to
        spent, gained, errors = zip(*sorted([*points, *ends]), strict=True)
        at = [each * 1.015 ** (number - len(curves) / 2) for each in spent]
        colour = CUT if rule == "fewer candidates" else f"C{number - 1}"
        axes.errorbar(at, gained, yerr=errors, fmt=".-", linewidth=1, elinewidth=0.5, color=colour, label=rule)
    axes.plot(*np.array(full).T[:2], "*", color="black", markersize=9, label="full")
    axes.axhline(0, color="gray", linewidth=0.5)
    _over_shares(axes, [1000, 2500, 5000, 10_000], "{:,g}")
    title = f"{name}: whole searches on models, three seeds"
    _finish(axes, title, "item evaluations of a search", "accuracy over the best constant")


def _rule(arm: str) -> str:
    """Return how an arm saves: its name without the number of items."""
    if arm.startswith("full"):
        return "full"
    return re.sub(r"^(fewer items: \d+|\d+ items)", "", arm).strip(", ") or "fixed items"


def _screened(axes: Axes, tables: Sequence[tuple[str, list[Row]]], suite: str) -> None:
    """Draw what whole simulated searches lose, with half of each generation scored and with all of it."""
    rows = next((rows for _, rows in tables if rows[0] == ["search", *SUITES]), None)
    if rows is None:
        raise SuiteError("The page has no table of searches on texts and images that are screened.")
    names, column = [row[0] for row in rows], 1 + SUITES.index(suite)
    all_ = [names.index("25 items"), names.index("10 items (a tenth)")]
    for label, (quarter, less) in (("all scored", all_), ("half scored: screening", [place + 1 for place in all_])):
        known = [re.findall(r"[-+]?\.\d+", rows[which][column]) for which in (less, quarter)]
        values, errors = ([*(float(each[i]) for each in known), 0.0] for i in (0, 1))
        axes.errorbar([100 * TENTH, 100 * QUARTER, 100 * FULL], *(values, errors), fmt=".-", label=label)
    _over_shares(axes, [10, 25, 100])
    title = f"{suite}: whole searches by CMA-ES, simulated"
    _finish(axes, title, "item evaluations", "loss, in parts of the gain")


def _over_shares(axes: Axes, at: Sequence[float], text: str = "{:g} %") -> None:
    axes.set_xscale("log")
    axes.set_xticks(at, [text.format(each) for each in at])
    axes.minorticks_off()


def _finish(axes: Axes, title: str, across: str, up: str) -> None:
    axes.set_title(title, fontsize=10)
    axes.set_xlabel(across)
    axes.set_ylabel(up)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)


def main(argv: Sequence[str] | None = None) -> None:
    """Read the page and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("page", type=Path, help="experiments/affordable/README.md")
    parser.add_argument("--out", type=Path, default=Path("curves.png"))
    options = parser.parse_args(argv)
    try:
        draw(options.page.read_text(encoding="utf-8")).savefig(options.out)
    except (EvomergeError, OSError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
