"""Fronts of several arms in pairs of tasks: `python scripts/plot_fronts.py runs/fronts/results.json --out fronts.png`.

In: what `compare_fronts.py` wrote. Out: a picture with a panel for each two tasks: the reported points of each arm, all
seeds together, by their scores on the report items.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MARKS = "osD^vP*X"
"""Of the arms, in turn."""


def draw(arms: Mapping[str, Sequence[Mapping[str, Any]]], chosen: Sequence[str]) -> Figure:
    """Draw the points of some arms.

    Args:
        arms: name -> what it found with each seed, as `results.json` has it.
        chosen: the names of those that are drawn.

    Raises:
        ConfigError: there is no such arm, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which has a global state
    except ImportError:
        raise ConfigError("Plots need matplotlib, and that is not installed: pip install 'evomerge[plot]'") from None
    for name in chosen:
        if name not in arms:
            raise ConfigError(unknown("arm", name, arms))
    pairs = list(combinations(arms[chosen[0]][0]["scores"][0], 2))
    figure = Figure(figsize=(4 * len(pairs), 4), dpi=100, layout="constrained")
    for axes, (one, other) in zip(figure.subplots(1, len(pairs), squeeze=False)[0], pairs, strict=True):
        for i, name in enumerate(chosen):
            points = [scores for line in arms[name] for scores in line["scores"]]
            at = [scores[one] for scores in points], [scores[other] for scores in points]
            axes.plot(*at, MARKS[i % len(MARKS)], color=f"C{i % 10}", markersize=5, alpha=0.7, label=name)
        axes.set_xlabel(one)
        axes.set_ylabel(other)
        axes.grid(alpha=0.3)
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=min(6, len(chosen)))
    return figure


def main(argv: Sequence[str] | None = None) -> None:
    """Read the results and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("results", type=Path, help="results.json of compare_fronts.py")
    parser.add_argument("--out", type=Path, default=Path("fronts.png"))
    parser.add_argument("--arms", nargs="+", help="which arms are drawn; all where none is named")
    options = parser.parse_args(argv)
    try:
        arms = json.loads(options.results.read_text(encoding="utf-8"))["arms"]
        draw(arms, options.arms or list(arms)).savefig(options.out)
    except (ConfigError, OSError, ValueError, KeyError) as error:
        raise SystemExit(f"{options.results}: {error}") from None


if __name__ == "__main__":
    main()
