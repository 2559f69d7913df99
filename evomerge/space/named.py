"""Coefficients as arrays and by names: what merges candidates wants arrays, what people read wants names.

In: {variable: (G, K)}, and the groups and rows that it belongs to. Out: {variable: {group: {expert: value}}},
as a recipe has it; and back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from evomerge.space.groups import Group

Coefficients = dict[str, dict[str, dict[str, float]]]
"""{variable: {group: {expert: value}}}."""


def name_coefficients(coefficients: Mapping[str, Any], groups: Sequence[Group], rows: Sequence[str]) -> Coefficients:
    """Return coefficients by names.

    Args:
        coefficients: {variable: (G, K)}, arrays or lists of lists.
        groups: G of them.
        rows: K names.
    """
    return {
        variable: {
            group.name: dict(zip(rows, map(float, line), strict=True))
            for group, line in zip(groups, values, strict=True)
        }
        for variable, values in coefficients.items()
    }


def array_coefficients(
    named: Mapping[str, Mapping[str, Mapping[str, float]]], groups: Sequence[Group], rows: Sequence[str]
) -> dict[str, np.ndarray]:
    """Return {variable: float64 (G, K)} of coefficients by names."""
    return {
        variable: np.array([[values[group.name][row] for row in rows] for group in groups], dtype=np.float64)
        for variable, values in named.items()
    }
