"""The sum of all that the experts changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.common import WEIGHT, weights
from evomerge.merging.sites import Together


class Linear(Formed):
    """Task arithmetic: θ = θ₀ + Σ_k λ_k τ_k (Ilharco et al. 2023, section 2).

    In float32, the sum first, then θ₀, as mergekit adds them: on CPUs both merge to the same bits, of up to 255
    experts.
    """

    name = "linear"
    title = "the base plus the weighted sum of the experts' differences to it (task arithmetic)"
    paper = "Ilharco et al. 2023, arXiv 2212.04089"
    mergekit: str | None = "task_arithmetic"
    variables = (WEIGHT,)
    linear = True
    form = Form()

    def numbers(self, together: Together, prepared: Any, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return the weights."""
        return Numbers(weights(together, coefficients))
