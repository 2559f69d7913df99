"""The coefficients of a run as grids of groups and experts, one for each variable.

In: `RunFacts`. Out: a `CoefficientMap` for each variable, rows in the order of depth, of the winner (from the recipe)
or, while there is none, of the point where the search stands (from the names of its coordinates,
`variable/group/expert`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from evomerge.recipes.recipe import Recipe
from evomerge.report.facts import RunFacts
from evomerge.report.places import OUTSIDE, GroupPlace, places_of
from evomerge.space.entries import tied_to

MANY = 600
"""Above so many groups, a row is the mean of a block."""
ROOMY, CLOSE = 40, 160
"""Up to so many rows there are numbers in the cells, and names at the rows."""
ALL = "all experts"


@dataclass(frozen=True)
class Cell:
    """A coefficient: its value, None where a search that goes on does not tell it, and whether it was held."""

    value: float | None
    frozen: bool


@dataclass(frozen=True)
class Row:
    """The coefficients of a group, or of several that are all held: full name, block, name within the block, cells."""

    name: str
    block: str
    label: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class CoefficientMap:
    """The coefficients of a variable.

    Attributes:
        variable: its name.
        of: which point they are of.
        columns: the experts.
        rows: from the first layer to the last.
        centre: the best constant, for weights, once it is known.
        note: what a reader must know about the rows, or nothing.
    """

    variable: str
    of: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    centre: float | None
    note: str

    @property
    def values(self) -> list[float]:
        """All that are not held."""
        return [c.value for row in self.rows for c in row.cells if c.value is not None and not c.frozen]

    @property
    def held(self) -> bool:
        """Whether any of them is."""
        return any(cell.frozen for row in self.rows for cell in row.cells)

    @property
    def size(self) -> str:
        """How much room a row has: `roomy` with numbers, `close` with its name, or `thin`."""
        return "roomy" if len(self.rows) <= ROOMY else "close" if len(self.rows) <= CLOSE else "thin"

    @property
    def turned(self) -> bool:
        """Whether the names of the columns must stand upright."""
        return len(self.columns) > 6 or max(map(len, self.columns)) > 10

    @property
    def downwards(self) -> list[tuple[Row, int]]:
        """The rows from the last layer to the first, the first of each block with the number of rows in it."""
        found: list[tuple[Row, int]] = []
        for _, members in groupby(reversed(self.rows), key=lambda row: row.block):
            rows = list(members)
            found += [(row, len(rows) if i == 0 else 0) for i, row in enumerate(rows)]
        return found


def grids(facts: RunFacts) -> list[CoefficientMap]:
    """Return the grids of a run; none if nothing was scored yet."""
    recipe = facts.run.recipe
    if facts.summary is not None and recipe is not None:
        return [_of_recipe(facts, recipe, variable) for variable in recipe.coefficients]
    standing = facts.standing()
    return _of_point(facts, *standing) if standing else []


def _of_recipe(facts: RunFacts, recipe: Recipe, variable: str) -> CoefficientMap:
    rows = recipe.coefficients[variable]
    shared = facts.settings["space"]["sharing"] == "shared"
    experts = list(recipe.row_names)
    frozen = frozen_in(facts, variable, rows)
    shown = experts[:1] if shared else experts
    cells = {g: tuple(Cell(row[e], (g, e) in frozen) for e in shown) for g, row in rows.items()}
    summary, constant = facts.summary, None
    if summary and variable == "weight" and not (summary.forgetting and summary.forgetting.negated):  # one for all
        constant = float(summary.select.constant)
    return grid_of(variable, "the winner", (ALL,) if shared else tuple(experts), cells, constant)


def frozen_in(facts: RunFacts, variable: str, rows: Mapping[str, Mapping[str, float]]) -> set[tuple[str, str]]:
    """Return the (group, expert) pairs that no coordinate moves."""
    if facts.settings["space"]["granularity"] == "line":  # its coordinates do not name groups
        still = [g for g in OUTSIDE if g in rows and not any(rows[g].values())]  # moved ones have the shallow value
        return {(group, expert) for group in still for expert in rows[group]}
    free, tied = set(facts.run.coordinates), facts.settings["space"]["tied"] or []
    return {
        (group, expert)
        for group, row in rows.items()
        for expert in row
        if f"{variable}/{group}/{expert}" not in free
        and f"{variable}/{group}/*" not in free
        and tied_to(f"{variable}/{group}/{expert}", tied) not in free
    }


def _of_point(facts: RunFacts, of: str, point: np.ndarray) -> list[CoefficientMap]:
    """Return the grids of a point, from the names of its coordinates."""
    if any(facts.settings["space"].get(name) is not None for name in ("sum", "map")):
        return []  # coordinates are amounts, and weights are made of them
    experts = [name for name, _ in facts.run.identity["experts"]]
    found: dict[str, dict[str, dict[str, float]]] = {}
    for coordinate, value in zip(facts.run.coordinates, point.tolist(), strict=True):
        variable, _, rest = coordinate.partition("/")
        group, _, expert = rest.rpartition("/")
        found.setdefault(variable, {}).setdefault(group, {})[expert] = value
    result = []
    for variable, rows in found.items():
        owners = dict.fromkeys(expert for row in rows.values() for expert in row)
        named = [owner for owner in owners if owner != "*"]  # rows that a transform made are no experts
        columns = (tuple(experts) if {*named} <= {*experts} else tuple(named)) if named else (ALL,)
        keys = columns if named else ("*",)
        cells = {
            group: tuple(Cell(row.get(k, row.get("*")), k not in row and "*" not in row) for k in keys)
            for group, row in rows.items()
        }
        result.append(grid_of(variable, of, columns, cells, None))
    return result


def grid_of(
    variable: str, of: str, columns: tuple[str, ...], cells: Mapping[str, tuple[Cell, ...]], centre: float | None
) -> CoefficientMap:
    """Return a grid, its groups in rows by depth; many of them by block.

    Args:
        variable: of the coefficients.
        of: what they are of.
        columns: their names.
        cells: of each group, one for each column.
        centre: see `CoefficientMap`.
    """
    places = places_of(cells)
    note = ""
    if len(cells) > MANY:
        note = f"Each row is the mean over the groups of a block; the {len(cells):,} single ones are in the recipe."
        rows = [Row(place.name, "", _short(place.name, places), _mean(place, cells)) for place in places]
        return CoefficientMap(variable, of, columns, tuple(rows), centre, note)
    if len(places) == len(cells) or sum(len(place.groups) for place in places) != len(cells):  # blocks, or runs of them
        rows = [Row(name, "", _short(name, places), row) for name, row in cells.items()]
        return CoefficientMap(variable, of, columns, tuple(rows), centre, note)
    rows = []
    for place in places:
        block = _short(place.name, places)
        mine = [(name, cells[name]) for name in place.groups]
        for still, members in groupby(mine, key=lambda pair: _still(pair[1])):
            names = [(name, row) for name, row in members]
            if still is not None and len(names) > 1:
                label = f"{len(names)} groups, held at {still:g}"
                rows.append(Row(f"{names[0][0]} … {names[-1][0]}", block, label, names[0][1]))
            else:
                rows += [Row(name, block, name.removeprefix(f"{place.name}."), row) for name, row in names]
    return CoefficientMap(variable, of, columns, tuple(rows), centre, note)


def _still(row: tuple[Cell, ...]) -> float | None:
    """The value at which a whole row is held, if it is."""
    values = {cell.value for cell in row}
    return next(iter(values)) if all(cell.frozen for cell in row) and len(values) == 1 else None


def _mean(place: GroupPlace, cells: Mapping[str, tuple[Cell, ...]]) -> tuple[Cell, ...]:
    columns = zip(*(cells[group] for group in place.groups), strict=True)
    found = []
    for column in columns:
        values = [cell.value for cell in column if cell.value is not None and not cell.frozen]
        held = next((cell.value for cell in column), None)
        found.append(Cell(float(np.mean(values)), False) if values else Cell(held, True))
    return tuple(found)


def _short(name: str, places: Sequence[GroupPlace]) -> str:
    """The name of a block without what all blocks begin with: `layer.5` of `encoder.layer.5`."""
    axes = {place.axis for place in places if place.name not in OUTSIDE}
    if len(axes) == 1:
        outer, _, _ = next(iter(axes)).rpartition(".")
        return name.removeprefix(f"{outer}.").replace(".", " ", 1) if outer else name.replace(".", " ", 1)
    return name
