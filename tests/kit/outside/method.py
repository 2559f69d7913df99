"""A method: the weighted sum of the task vectors, no element of it further from 0 than a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from evomerge.space.variable import Variable


class Limited:
    name = "limited"
    title = "the weighted sum of the experts' differences to the base, no element further than a limit"
    paper = "nowhere"
    mergekit: str | None = None
    variables = (Variable("weight", 0.0, 1.5, 0.5),)
    elementwise = True
    linear = False

    def __init__(self, limit: float = 0.01) -> None:
        self._limit = limit

    def prepare(self, row: str, span: Any, delta: Any) -> Any:
        return delta

    def merge(self, base: Tensor, prepared: Sequence[Any], coefficients: Mapping[str, np.ndarray], out: Tensor) -> None:
        out.zero_()
        for weight, delta in zip(coefficients["weight"].tolist(), prepared, strict=True):
            delta.over(base).add_to(out, weight)
        out.clamp_(-self._limit, self._limit).add_(base)
