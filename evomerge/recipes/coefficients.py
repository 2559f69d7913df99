"""The coefficients of a merge as a table with names: a row for each group, a column for each expert.

In: the coefficients of a recipe. Out: `Coefficients`, one for each variable (weight, density), which people can read, a
notebook can show, and numpy can take: `np.asarray(table)` is (G, K).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np

from evomerge.common.errors import ConfigError
from evomerge.common.names import unknown


@dataclass(frozen=True, eq=False)
class Coefficients:
    """The coefficients of one variable.

    Attributes:
        variable: its name.
        groups: the names of the rows, G of them.
        experts: the names of the columns, K of them.
        values: float64 (G, K).
    """

    variable: str
    groups: tuple[str, ...]
    experts: tuple[str, ...]
    values: np.ndarray

    @classmethod
    def of(cls, variable: str, rows: Mapping[str, Mapping[str, float]]) -> Coefficients:
        """Make a table of group -> expert -> value, as a recipe has it."""
        experts = tuple(next(iter(rows.values())))
        values = np.array([[row[expert] for expert in experts] for row in rows.values()])
        return cls(variable, tuple(rows), experts, values)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.values, dtype=dtype)

    def __getitem__(self, place: str | tuple[str, str]) -> Any:
        """Return the row of a group, expert -> value, or the value of a group and an expert."""
        group, expert = place if isinstance(place, tuple) else (place, None)
        if group not in self.groups:
            raise ConfigError(unknown("group", group, self.groups))
        if expert is not None and expert not in self.experts:
            raise ConfigError(unknown("expert", expert, self.experts))
        row = dict(zip(self.experts, self.values[self.groups.index(group)].tolist(), strict=True))
        return row if expert is None else row[expert]

    def __str__(self) -> str:
        names = [self.variable, *self.groups]
        columns = [[expert, *(f"{value:.4f}" for value in column)] for expert, column in self._columns()]
        cells = [[f"{name:<{max(map(len, names))}}" for name in names]]
        cells += [[f"{cell:>{max(map(len, column))}}" for cell in column] for column in columns]
        return "\n".join("  ".join(line) for line in zip(*cells, strict=True))

    __repr__ = __str__

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{escape(name)}</th>" for name in (self.variable, *self.experts))
        rows = "".join(
            f"<tr><th>{escape(group)}</th>{''.join(f'<td>{value:.4f}</td>' for value in row)}</tr>"
            for group, row in zip(self.groups, self.values.tolist(), strict=True)
        )
        return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"

    def _columns(self) -> zip[tuple[str, list[float]]]:
        return zip(self.experts, self.values.T.tolist(), strict=True)
