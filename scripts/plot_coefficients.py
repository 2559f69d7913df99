"""Coefficients by depth: `python scripts/plot_coefficients.py runs/a runs/b --out coefficients.png`.

In: run directories with a `recipe.yaml`. Out: a picture with two panels for each run. One has a line for each expert,
the mean over the groups of each block (every group counts the same, a bias like a matrix); embeddings and head stand
apart. The other is a heat map of groups and experts, depth upwards. Depth is read from the names of the groups; where
they have none (space=model), the groups stand side by side. Embeddings and head are left out where they are 0 for all
experts: nobody tuned them. The published shape (AdaMerging, Yang et al. 2024) rises with depth.
"""

from __future__ import annotations

import argparse
import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evomerge.common.errors import ConfigError, EvomergeError
from evomerge.common.names import unknown
from evomerge.recipes.recipe import Recipe
from evomerge.report.places import OUTSIDE, GroupPlace, places_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

COLUMNS = 3
"""How many runs at most stand beside each other."""


def draw(recipes: Mapping[str, Recipe], variable: str = "weight") -> Figure:
    """Draw the coefficients of some recipes, by name.

    Raises:
        ConfigError: a recipe has no such variable, or matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure  # without pyplot, which has a global state
    except ImportError:
        raise ConfigError("Plots need matplotlib, and that is not installed: pip install 'evomerge[plot]'") from None
    for name, recipe in recipes.items():
        if variable not in recipe.coefficients:
            raise ConfigError(f"{name}: {unknown('variable', variable, recipe.coefficients)}")
    values = [x for recipe in recipes.values() for row in recipe.coefficients[variable].values() for x in row.values()]
    low, high = min(0.0, *values), max(0.0, *values) or 1.0
    experts = list(dict.fromkeys(expert for recipe in recipes.values() for expert in recipe.experts))
    colors = {expert: f"C{i % 10}" for i, expert in enumerate(experts)}
    rows = math.ceil(len(recipes) / COLUMNS)
    columns = math.ceil(len(recipes) / rows)
    figure = Figure(figsize=(10, 6.5 * rows if len(recipes) > 1 else 4), dpi=100, layout="constrained")
    if len(recipes) == 1:
        pairs = [tuple(figure.subplots(1, 2))]
    else:
        axes = figure.subplots(2 * rows, columns, squeeze=False, height_ratios=[2, 3] * rows)
        pairs = [(axes[2 * row, column], axes[2 * row + 1, column]) for row in range(rows) for column in range(columns)]
    for lines, heat in pairs[len(recipes) :]:
        lines.set_axis_off()
        heat.set_axis_off()
    image = None
    for (name, recipe), (lines, heat) in zip(recipes.items(), pairs, strict=False):
        coefficients = recipe.coefficients[variable]
        places = [place for place in places_of(coefficients) if not _untouched(place, coefficients)]
        lines.set_title("\n".join(textwrap.wrap(name, 34)), fontsize=9)
        _draw_lines(lines, places, coefficients, colors)
        lines.set_ylim(low - 0.05 * (high - low), high + 0.05 * (high - low))
        image = _draw_heat(heat, places, coefficients, list(recipe.experts), (low, high))
    for lines, heat in pairs[: len(recipes) : columns]:
        lines.set_ylabel(f"{variable}, mean of the block")
        heat.set_ylabel("block, depth upwards")
    if image is not None:
        figure.colorbar(image, ax=[heat for _, heat in pairs[: len(recipes)]], label=variable, aspect=20 * rows)
    handles = {line.get_label(): line for lines, _ in pairs[: len(recipes)] for line in lines.get_lines()}
    shown = [expert for expert in experts if expert in handles]
    figure.legend([handles[expert] for expert in shown], shown, loc="outside upper center", ncols=min(6, len(shown)))
    return figure


def _untouched(place: GroupPlace, coefficients: Mapping[str, Mapping[str, float]]) -> bool:
    return place.name in OUTSIDE and not any(any(coefficients[group].values()) for group in place.groups)


def _draw_lines(
    axes: Axes, places: list[GroupPlace], coefficients: Mapping[str, Mapping[str, float]], colors: Mapping[str, Any]
) -> None:
    """Draw the mean of each place, a line for each expert."""
    for expert in next(iter(coefficients.values())):
        means = [float(np.mean([coefficients[group][expert] for group in place.groups])) for place in places]
        for axis in dict.fromkeys(place.axis for place in places):
            at = [i for i, place in enumerate(places) if place.axis == axis]
            axes.plot(at, [means[i] for i in at], ".-", color=colors[expert], label=expert)
    step = math.ceil(len(places) / 14)
    axes.set_xticks(range(0, len(places), step), [place.label for place in places[::step]], fontsize=8)
    axes.set_xlabel("block" if any(place.axis for place in places) else "group")
    axes.grid(alpha=0.3)


def _draw_heat(
    axes: Axes,
    places: list[GroupPlace],
    coefficients: Mapping[str, Mapping[str, float]],
    experts: list[str],
    limits: tuple[float, float],
) -> AxesImage:
    """Draw every coefficient, a row for each group; ticks are the middles of the blocks."""
    groups = list(dict.fromkeys(group for place in places for group in place.groups))
    image = axes.imshow(
        np.array([[coefficients[group][expert] for expert in experts] for group in groups]),
        **{"aspect": "auto", "origin": "lower", "interpolation": "nearest", "vmin": limits[0], "vmax": limits[1]},
    )
    ticks = {float(np.mean([groups.index(group) for group in place.groups])): place.label for place in places}
    if len(ticks) < len(places):  # groups of several blocks
        ticks = {i: group.rpartition(".")[2] for i, group in enumerate(groups)}
    step = math.ceil(len(ticks) / 26)
    axes.set_yticks(list(ticks)[::step], list(ticks.values())[::step], fontsize=8)
    for place in places[1:]:
        axes.axhline(groups.index(place.groups[0]) - 0.5, color="white", linewidth=0.5)
    turned = {"rotation": 40, "ha": "right"} if len(experts) > 3 else {}
    axes.set_xticks(range(len(experts)), experts, fontsize=8, **turned)
    return image


def main() -> None:
    """Read the recipes and write the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("runs", nargs="+", type=Path, help="run directories")
    parser.add_argument("--out", type=Path, default=Path("coefficients.png"))
    parser.add_argument("--variable", default="weight")
    arguments = parser.parse_args()
    try:
        names = [run.resolve().name for run in arguments.runs]
        if len(set(names)) < len(names):
            names = [str(run) for run in arguments.runs]
        recipes = {name: _read(run / "recipe.yaml") for name, run in zip(names, arguments.runs, strict=True)}
        draw(recipes, arguments.variable).savefig(arguments.out)
    except (EvomergeError, OSError) as error:
        raise SystemExit(str(error)) from None


def _read(file: Path) -> Recipe:
    if not file.is_file():
        raise ConfigError(f"{file} is not there: name the directory of a search that has ended, such as runs/<name>.")
    try:
        return Recipe.from_yaml(file.read_text(encoding="utf-8"))
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


if __name__ == "__main__":
    main()
