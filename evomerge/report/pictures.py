"""The pictures beside a page, for slides and papers: facts in, PNG files out.

Only this module needs matplotlib, the extra `plot`; a page is complete without its pictures.
Figures are made as objects; pyplot, which has a global state, is not used.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from matplotlib.colors import LinearSegmentedColormap, ListedColormap
from matplotlib.figure import Figure

from evomerge.report.colours import ANCHORS, MODELS
from evomerge.report.facts import MODELS as NAMES
from evomerge.report.facts import RunFacts
from evomerge.report.fronts import axis_label
from evomerge.report.grids import CoefficientMap
from evomerge.report.scales import robust, shade
from evomerge.report.sweep import ranked, short_names
from evomerge.report.wording import metric, valued

if TYPE_CHECKING:
    from matplotlib.axes import Axes

DPI = 150
HELD = "#d5d5d5"
"""The colour of coefficients that were held."""
WINNER, CONSTANT, GREY = MODELS["winner"], MODELS["best_constant"], MODELS["base"]


def of_run(facts: RunFacts, found: Sequence[CoefficientMap], directory: Path) -> None:
    """Write convergence, coefficients and tasks of a run, as far as they are there, and remove what is not."""
    panels = [(f"{facts.name}: {grid.variable} of {grid.of}", grid) for grid in found]
    one = not facts.value_names
    _write(directory / "convergence.png", lambda: convergence(facts), one and bool(facts.scored or facts.losses))
    _write(directory / "front.png", lambda: front(facts), facts.front is not None)
    _write(directory / "coefficients.png", lambda: coefficients(panels), bool(panels))
    _write(directory / "tasks.png", lambda: tasks(facts), facts.summary is not None)


def of_sweep(facts: Sequence[RunFacts], best: Sequence[tuple[str, list[CoefficientMap]]], directory: Path) -> None:
    """Write convergence, coefficients of the best and the gains of several runs."""
    panels = [(f"{name}: {grid.variable}", grid) for name, found in best for grid in found]
    order, names = ranked(facts), short_names(facts)
    drawn = any((f.scored and not f.value_names) or f.losses for f in facts)
    _write(directory / "convergence.png", lambda: overlay(facts, names), drawn)
    _write(directory / "coefficients.png", lambda: coefficients(panels), bool(panels))
    _write(directory / "gains.png", lambda: gains(order, names), bool(order))


def convergence(facts: RunFacts) -> Figure:
    """Candidates by value, the loss of gradient steps, and the finalists on the select split, one above the other."""
    judged = [f for f in facts.finalists if f.select is not None and not f.name.startswith(("constant ", "start "))]
    kinds = [
        kind for kind, there in (("scored", facts.scored), ("losses", facts.losses), ("finalists", judged)) if there
    ]
    figure, panels = _panels(len(kinds))
    for kind, axes in zip(kinds, panels, strict=True):
        if kind == "scored":
            dots = np.array([(dot.number, dot.value) for dot in facts.scored])
            _limit(axes, dots[:, 1])
            axes.plot(*dots.T, ".", color=GREY, alpha=0.7, label="a candidate")
            if facts.noise:
                best = facts.best_so_far[-1][1]
                axes.axhspan(
                    best - facts.noise.difference, best, color=WINNER, alpha=0.14, label="within one se of the best"
                )
            if facts.censored:
                dropped = [(dot.number, dot.value) for dot in facts.censored]
                axes.plot(*np.array(dropped).T, ".", mfc="white", color=GREY, label="dropped by a race", zorder=1)
            axes.step(*np.array(facts.best_so_far).T, where="post", color=WINNER, label="best so far")
            for i, (first, last, mean) in enumerate(facts.means):
                label = "mean of a batch" if i == 0 else None
                axes.plot([first - 0.4, last + 0.4], [mean, mean], color=CONSTANT, label=label)
            axes.set_ylabel(f"{valued(facts, facts.metric)}\non the search items")
        elif kind == "losses":
            axes.plot(
                [d.number for d in facts.losses], [d.value for d in facts.losses], ".", color=GREY, label="a step"
            )
            axes.plot(*np.array(facts.smooth_losses).T, color=WINNER, label="mean of the last ten")
            axes.set_ylabel(f"{facts.loss}\nof a step")
        else:
            x = [finalist.number or facts.last for finalist in judged]
            axes.plot(x, [f.select or 0.0 for f in judged], "o", mfc="white", color=WINNER, label="a finalist")
            won = [(at, f.select or 0.0) for at, f in zip(x, judged, strict=True) if f.winner]
            if won:
                axes.plot(*won[0], "o", color=WINNER, label="the winner")
            if (level := facts.best_constant_on_select) is not None:
                axes.axhline(level, color=CONSTANT, linestyle="--", label="best constant")
            axes.set_ylabel(f"{valued(facts, facts.measured, select=True)}\non the select items")
        axes.set_xlim(0, facts.last + 1)
        axes.legend(frameon=False, fontsize=8)
    panels[-1].set_xlabel("candidate")
    figure.suptitle(facts.name, fontsize=10)
    return figure


def front(facts: RunFacts) -> Figure:
    """The points of the front in each two values on the report split, with standard errors."""
    assert facts.front is not None
    found, pairs = facts.front, list(combinations(facts.front.values, 2))
    rows, columns = math.ceil(len(pairs) / 3), min(len(pairs), 3)
    figure = Figure(figsize=(1 + 3.6 * columns, 0.6 + 3.4 * rows), dpi=DPI, layout="constrained")
    models = {"base": [found.base], "best_constant": [found.best_constant], "experts": found.experts}
    for axes, (one, other) in zip(figure.subplots(rows, columns, squeeze=False).flat, pairs, strict=False):
        for kind, each in {**models, "winner": found.points}.items():
            for model in (model for model in each if {one, other} <= model.report.keys()):
                scores = [model.report[name] for name in (one, other)]
                (x, y), errors = ([np.nan if s.mean is None else s.mean for s in scores]), [s.se or 0.0 for s in scores]
                face = "white" if kind == "winner" and model.name != found.chosen else MODELS[kind]
                style = {"fmt": "s" if kind == "base" else "o", "color": MODELS[kind], "mfc": face, "elinewidth": 0.6}
                axes.errorbar(x, y, xerr=errors[0], yerr=errors[1], **style)
                if kind == "winner":
                    number = model.name.removeprefix("point_")
                    axes.annotate(number, (x, y), (4, 4), textcoords="offset points", size=7)
        axes.set_xlabel(axis_label(found, one), fontsize=8)
        axes.set_ylabel(axis_label(found, other), fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{facts.name}: the front on the report items, ± se; {found.chosen} is the winner", fontsize=9)
    return figure


def overlay(facts: Sequence[RunFacts], names: dict[str, str]) -> Figure:
    """The best so far of runs by value, and the losses of those by gradient, a panel for each quantity."""
    found: dict[str, list[tuple[str, np.ndarray]]] = {}
    for one in facts:
        if one.losses:
            title = f"{one.loss},\nmean of the last ten steps"
            found.setdefault(title, []).append((names[one.name], np.array(one.smooth_losses)))
        if one.by_value and not one.value_names:
            title = f"best {metric(one.metric)} so far,\non the search items"
            found.setdefault(title, []).append((names[one.name], np.array(one.best_so_far)))
    figure, panels = _panels(max(len(found), 1))
    for axes, (title, lines) in zip(panels, found.items(), strict=False):
        _limit(axes, np.concatenate([points[:, 1] for _, points in lines]))
        for name, points in lines:
            axes.plot(*points.T, label=name)
        axes.set_ylabel(title)
        axes.legend(frameon=False, fontsize=7, ncols=1 + len(lines) // 8)
    panels[-1].set_xlabel("candidate")
    return figure


def coefficients(panels: Sequence[tuple[str, CoefficientMap]]) -> Figure:
    """Heat maps side by side, depth upwards; those with the same centre, or none, have colours in common."""
    figure = Figure(figsize=(1.2 + 3.4 * len(panels), 5.6), dpi=DPI, layout="constrained")
    centres = {grid.centre for _, grid in panels}
    one = len({grid.variable for _, grid in panels}) == len(centres) == 1
    every = [x for _, grid in panels for x in grid.values]
    drawn = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, (title, grid) in zip(drawn, panels, strict=True):
        scale = shade(every if one else grid.values, grid.centre)
        data = np.array([[np.nan if c.value is None or c.frozen else c.value for c in row.cells] for row in grid.rows])
        both = LinearSegmentedColormap.from_list("evomerge", ANCHORS["light"])
        above = ListedColormap(both(np.linspace(0.5, 1, 128)))
        colors = (above if scale.centre is None else both).with_extremes(bad=HELD)
        limits = {"vmin": scale.low, "vmax": scale.high}
        image = axes.imshow(data, cmap=colors, aspect="auto", origin="lower", interpolation="nearest", **limits)
        blocks = [row.block or row.label for row in grid.rows]
        first = [i for i, block in enumerate(blocks) if i == 0 or blocks[i - 1] != block]
        middles = [(a + b - 1) / 2 for a, b in zip(first, [*first[1:], len(blocks)], strict=True)]
        step = max(1, len(first) // 30)
        axes.set_yticks(middles[::step], [blocks[i] for i in first][::step], fontsize=7)
        axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=7, rotation=40, ha="right")
        axes.set_title("\n".join(textwrap.wrap(title, 34)), fontsize=8)
        for i in first[1:] if len(first) < len(blocks) else ():
            axes.axhline(i - 0.5, color="white", linewidth=1)
        figure.colorbar(image, ax=axes, shrink=0.6).ax.tick_params(labelsize=7)
    return figure


def tasks(facts: RunFacts) -> Figure:
    """Base, best constant, winner and experts on the report split, with standard errors where they are known."""
    assert facts.summary is not None
    report = facts.summary.report
    groups = ["negated mean" if facts.forget else "mean", *facts.summary.base.tasks]
    figure, (axes,) = _panels(1, width=max(6.5, 1.1 * len(groups)))
    for i, name in enumerate(row for row in NAMES if row in report):
        row = report[name]
        scores = [row.mean, *(row.tasks.get(task) for task in groups[1:])]
        errors = [row.se, *(row.tasks_se.get(task) for task in groups[1:])]
        places = np.arange(len(groups)) + 0.2 * (i - 1.5)
        axes.bar(places, [np.nan if v is None else v for v in scores], 0.18, color=MODELS[name], label=NAMES[name])
        axes.errorbar(
            places,
            [np.nan if v is None else v for v in scores],
            [np.nan if e is None else e for e in errors],
            fmt="none",
            color="black",
            linewidth=0.8,
        )
    axes.set_xticks(range(len(groups)), groups, fontsize=8)
    axes.set_ylabel(f"{metric(facts.plain)} on the report items, ± se")
    figure.legend(loc="outside upper center", ncols=4, frameon=False, fontsize=8)
    return figure


def gains(order: Sequence[RunFacts], names: dict[str, str]) -> Figure:
    """Winner minus best constant of each run, with two standard errors, best on the select split above."""
    figure = Figure(figsize=(7, 1.2 + 0.32 * len(order)), dpi=DPI, layout="constrained")
    axes = figure.subplots()
    for i, one in enumerate(reversed(order)):
        assert one.summary is not None
        diff, se = one.summary.gain.diff, one.summary.gain.se
        error = None if se is None else 2 * se
        axes.errorbar(
            np.nan if diff is None else diff,
            i,
            xerr=error,
            fmt="o",
            color=WINNER,
            capsize=3,
        )
    axes.axvline(0, color=GREY, linewidth=1)
    axes.set_yticks(range(len(order)), [names[one.name] for one in reversed(order)], fontsize=8)
    axes.set_xlabel("winner − best constant on the report items, ± 2 se")
    return figure


def _panels(count: int, width: float = 7.0) -> tuple[Figure, Sequence[Axes]]:
    figure = Figure(figsize=(width, 1.0 + 2.4 * count if count > 1 else 4.0), dpi=DPI, layout="constrained")
    panels = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", alpha=0.3)
        axes.set_axisbelow(True)
    return figure, panels


def _limit(axes: Axes, values: np.ndarray) -> None:
    """Leave out of the axis what lies far below the rest."""
    shown, below = robust(values.tolist())
    if below:
        room = 0.05 * (shown[-1] - shown[0])
        axes.set_ylim(shown[0] - room, shown[-1] + room)


def _write(file: Path, draw: Callable[[], Figure], there: bool) -> None:
    if not there:
        file.unlink(missing_ok=True)
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    draw().savefig(file, metadata={"Software": None})
