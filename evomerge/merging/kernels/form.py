"""What a kernel must know of a method: which elements of each row it keeps, and how it joins what is kept.

A method that takes each element by itself is a `Form` and, for every candidate, some numbers for each span and row.
The plain reference (`plain.py`) and the compiled kernels are written for forms, so a method is not written twice.

    keep    all       every element
            largest   those whose magnitude is above a cut: TIES (Yadav et al. 2023)
            between   those above one cut and not above another: Breadcrumbs (Davari and Belilovsky 2024)
            drawn     those whose draw is below the density: DARE (Yu et al. 2024)
            ranked    those whose draw is below a chance that grows with the rank in the row: DELLA (Deep et al. 2024)
    join    sum       θ₀ + Σ_k w_k x_k
            elect     the same over the rows whose weighted element has the sign of the sum of all of these
            count     the same over those that have the sign of the majority
            blend     w_0 θ₀ + Σ_k w_k θ_k: of weights, not of task vectors
            mean      the same, each product added unrounded; no kernel is compiled for it
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Literal

import numpy as np

Keep = Literal["all", "largest", "between", "drawn", "ranked"]
Join = Literal["sum", "elect", "count", "blend", "mean"]

CANCELLED = 1e-3
"""The share of their magnitudes to which weights may cancel in a sum that divides."""


@dataclass(frozen=True)
class Form:
    """How spans are merged.

    Attributes:
        keep: which elements of a row take part.
        join: how they become the merged span.
        divide: whether the sum is divided: by the weights that agree (1 where none does) after an election, else by
            `Numbers.divisor`.
        scale: what the sum is multiplied by in the end, a number that float32 has; for `sum`, `elect` and `count`.
    """

    keep: Keep = "all"
    join: Join = "sum"
    divide: bool = False
    scale: float = 1.0

    @property
    def blends(self) -> bool:
        """Whether weights are joined, not task vectors, so that a weight of 0 does not leave the base."""
        return self.join in ("blend", "mean")

    @property
    def elects(self) -> bool:
        """Whether the rows elect a sign."""
        return self.join in ("elect", "count")


def _none() -> np.ndarray:
    return np.zeros(0)


@dataclass(frozen=True)
class Numbers:
    """The numbers of one candidate for S spans with R rows each; what its form does not use is left out.

    Attributes:
        weight: w, float32 (S, R).
        base: w_0 of `blend` and `mean`, float32 (S,).
        divisor: of a sum that is divided, float32 (S,).
        cut: bits and place of the cut above which elements are kept, uint32 (S, R, 2); see `task_vectors/orders.py`.
        upper: the same of the cut above which they are not, uint32 (S, R, 2).
        chance: of `drawn`: the density and what is kept is multiplied by; of `ranked`: the chance of rank 0, what each
            rank adds, and 1 where what is kept is divided by its chance, else 0; float32 (S, R, 2 or 3).
        keys: of the draws, uint32 (S, R, 2); see `task_vectors/draws.py`.
    """

    weight: np.ndarray
    base: np.ndarray = field(default_factory=_none)
    divisor: np.ndarray = field(default_factory=_none)
    cut: np.ndarray = field(default_factory=_none)
    upper: np.ndarray = field(default_factory=_none)
    chance: np.ndarray = field(default_factory=_none)
    keys: np.ndarray = field(default_factory=_none)

    def of(self, sites: slice) -> Numbers:
        """Return the numbers of some of the spans."""
        held = {each.name: getattr(self, each.name) for each in fields(self)}
        return Numbers(**{name: values[sites] if values.size else values for name, values in held.items()})
