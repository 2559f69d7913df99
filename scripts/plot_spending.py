"""Quality against item evaluations: `python scripts/plot_spending.py experiments/affordable/README.md --out FILE.png`.

In: the tables of that page, as `simulate_affordable.py`, `simulate_searches.py` and `compare_spending.py` print them.
Out: a picture of four panels: what choices of single generations lose by rule, where log-probability decides and where
accuracy does; what winners of whole searches gained on models; and what whole searches lose in simulation, with
screening and without. So picture and tables cannot differ.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

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
    "halving, disagreement": "halving, disagreement",
}
BY_ACCURACY = {
    "fewer candidates, all items": "fewer candidates",
    "random subset": "random items",
    "expert disagreement": "disagreement",
    "p-IRT": "p-IRT",
    "mp-IRT": "mp-IRT",
    "gmp-IRT, other merges": "gmp-IRT, other merges",
    "log-probability": "log-probability instead",
}
"""Rules that are drawn, of those in the tables, and what they are called."""
SEARCHES = {"text": "CMA-ES, text", "text, TPE": "TPE, text", "images": "CMA-ES", "images, TPE": "TPE"}
"""Whole searches on models; where their table is: under a heading, or headed so."""
FULL, QUARTER, TENTH = 1.0, 0.25, 0.1

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
    figure = Figure(figsize=(12, 9), dpi=80, layout="constrained")
    (first, second), (third, fourth) = figure.subplots(2, 2)
    regrets = [rows for _, rows in tables if rows[0][0] == "regret of the choice"]
    if len(regrets) < 2:
        raise SuiteError("The page has no two tables of regret: give experiments/affordable/README.md.")
    _rules(first, regrets[0], BY_LOG_PROBABILITY, "one generation, simulated: log-probability decides")
    _rules(second, regrets[1], BY_ACCURACY, "one generation, simulated: accuracy decides")
    _searches(third, tables)
    _screened(fourth, tables)
    return figure


def _rules(axes: Axes, rows: Sequence[Row], names: Mapping[str, str], title: str) -> None:
    """Draw the regret of rules, with its interval, over the share of item evaluations."""
    shares = [float(cell.strip("%")) for cell in rows[0][1:]]
    known = {row[0]: [[float(x) for x in re.findall(r"-?\d*\.\d+", cell)[:3]] for cell in row[1:]] for row in rows[1:]}
    for number, (name, called) in enumerate(names.items()):
        if name not in known:
            raise SuiteError(f"The page has no row {name!r} in the table of {title}.")
        middles, lows, highs = zip(*known[name], strict=True)
        at = [share * 1.015 ** (number - len(names) / 2) for share in shares]  # side by side
        errors = [[m - low for m, low in zip(middles, lows, strict=True)]]
        errors.append([high - m for m, high in zip(middles, highs, strict=True)])
        axes.errorbar(at, middles, yerr=errors, fmt=".-", linewidth=1, elinewidth=0.5, label=called)
    axes.set_xscale("log")
    axes.set_xticks(shares, [f"{share:g} %" for share in shares])
    axes.minorticks_off()
    _finish(axes, title, "item evaluations, of all candidates on all items", "regret of the choice")


def _searches(axes: Axes, tables: Sequence[tuple[str, list[Row]]]) -> None:
    """Draw what winners gained over the best constant, by item evaluations; those before a search count."""
    for number, (name, where) in enumerate(SEARCHES.items()):
        rows = next((r for h, r in tables if where in (h, r[0][0]) and "item evaluations" in r[0]), None)
        if rows is None:
            raise SuiteError(f"The page has no table {where!r}.")
        spent, gained = rows[0].index("item evaluations"), rows[0].index("over the best constant")
        costs = [sum(int(part.replace(",", "")) for part in row[spent].split("+")) for row in rows[1:]]
        axes.plot(costs, [float(row[gained]) for row in rows[1:]], "o", color=f"C{number}", label=name, markersize=4)
        for row, cost in zip(rows[1:], costs, strict=True):
            text = row[0].removeprefix("full: ").replace("fewer items: 25", "25 items")
            axes.annotate(
                text, (cost, float(row[gained])), (3, 2), textcoords="offset points", fontsize=6, color=f"C{number}"
            )
    axes.axhline(0, color="gray", linewidth=0.5)
    axes.set_xlim(500, 12_000)
    _finish(
        axes, "whole searches on models, three seeds", "item evaluations of a search", "accuracy over the best constant"
    )


def _screened(axes: Axes, tables: Sequence[tuple[str, list[Row]]]) -> None:
    """Draw what whole simulated searches lose, with half of each generation scored and with all of it."""
    rows = next((rows for _, rows in tables if rows[0] == ["search", "text", "images"]), None)
    if rows is None:
        raise SuiteError("The page has no table of searches on texts and images that are screened.")
    names = [row[0] for row in rows]
    all_ = [names.index("25 items"), names.index("10 items (a tenth)")]
    half = [place + 1 for place in all_]
    for column, place in enumerate(("text", "images"), start=1):
        for label, (quarter, less), line in (("all scored", all_, "--"), ("half scored", half, "-")):
            known = [re.findall(r"[-+]?\.\d+", rows[which][column]) for which in (less, quarter)]
            values, errors = ([*(float(each[i]) for each in known), 0.0] for i in (0, 1))
            axes.errorbar(
                [100 * TENTH, 100 * QUARTER, 100 * FULL],
                *(values, errors),
                fmt=f".{line}",
                color=f"C{column - 1}",
                label=f"{place}, {label}",
            )
    axes.set_xscale("log")
    axes.set_xticks([10, 25, 100], ["10 %", "25 %", "100 %"])
    axes.minorticks_off()
    _finish(axes, "whole searches, simulated: screening", "item evaluations", "loss, in parts of the gain")


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
