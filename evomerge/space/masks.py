"""Masks over weights: a coordinate says whether a weight counts, and its gradient is that of a share of the weight.

In: weights w and masks p, (G, K) each. Out: w where p is above one half, 0 elsewhere; and gradients back to both. That
of p is straight-through, w·∂L/∂(w·p), as if nothing were rounded: so AdaRank learns which singular values of an expert
are merged (Lee et al. 2025, arXiv 2503.22178). Its p is the sigmoid of a tenth of a number m, which begins at ±0.1;
there the sigmoid is nearly a line, and Adam takes the same steps whatever the scale, so p = 0.5 + m stands for it here.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.common.names import matching
from evomerge.space.variable import Variable

MASK = "mask"
MASKED = Variable(MASK, 0.0, 1.0, 0.6, share=True)
"""What stands beside the variables of a method where weights have masks."""
ON = 0.5
"""Above it, a weight counts."""


def switched(weights: np.ndarray, masks: np.ndarray) -> np.ndarray:
    """Return the weights that count, and 0 for the others, (G, K)."""
    return np.where(masks > ON, weights, 0.0)


def switched_back(gradient: np.ndarray, weights: np.ndarray, masks: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the gradients with respect to weights and to masks from the one with respect to weights that count."""
    return switched(gradient, masks), gradient * weights


def always_on(entries: Sequence[str], patterns: Sequence[str]) -> dict[str, float]:
    """Return entry name -> 1 for the masks of rows that have none to search.

    Args:
        entries: names of the masks, `mask/group/row`.
        patterns: of the rows whose masks are searched.

    Raises:
        SpaceError: a pattern matches no row.
    """
    row_of = {entry: entry.rpartition("/")[2] for entry in entries}
    rows = list(dict.fromkeys(row_of.values()))
    chosen = {row for pattern in patterns for row in matching(pattern, rows, "masks")}
    return {entry: 1.0 for entry, row in row_of.items() if row not in chosen}
