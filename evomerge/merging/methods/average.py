"""The weighted average of models themselves: Σ_k w_k θ_k / Σ_k w_k, a model soup (Wortsman et al. 2022, section 2).

In: as for the other methods. The base counts only where it is one of the rows, with a task vector of zero. Products are
added unrounded, in the order of the rows, as mergekit's `linear` adds them: on CPUs both merge to the same bits, if the
base is the first row or none. No kernel is compiled for it; the plain form makes all candidates.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from evomerge.common.errors import MergeError
from evomerge.merging.kernels.form import Form, Numbers
from evomerge.merging.method import Formed
from evomerge.merging.methods.common import SHARE, SLIGHT
from evomerge.merging.sites import Together


class Average(Formed):
    """Average the models, by their weights."""

    name = "average"
    title = "the weighted average of the models themselves (model soup)"
    paper = "Wortsman et al. 2022, arXiv 2203.05482"
    mergekit: str | None = "linear"
    variables = (SHARE,)
    form = Form(join="mean", divide=True)

    def numbers(self, together: Together, prepared: Any, coefficients: Mapping[str, np.ndarray]) -> Numbers:
        """Return the weights, that of the rows which are the base here, and the sum of all.

        Raises:
            MergeError: the weights of a group sum to nothing.
        """
        weights = torch.tensor(coefficients["weight"], dtype=torch.float32)
        totals = weights.sum(dim=1)
        if not bool((totals.abs() > SLIGHT).all()):
            raise MergeError(
                "The weights of a group sum to 0, and an average divides by their sum: write bounds above 0 in "
                "space.bounds, or another weight."
            )
        groups, rows = together.places
        absent = weights[torch.from_numpy(groups[:, 0].copy())]
        absent.scatter_(1, torch.from_numpy(rows.copy()), 0.0)
        return Numbers(
            weights.numpy()[groups, rows],
            base=absent.sum(dim=1).numpy(),
            divisor=totals.numpy()[groups[:, 0]],
        )
