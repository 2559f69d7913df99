"""What to try first on these models, from what was compared on other ones, and how little that was.

In: how many experts there are, the cosines of their task vectors, and the barriers between them where lines were
scored. Out: one sentence or two. The figures in it are those of experiments/methods.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from evomerge.inspection.clusters import ALIKE
from evomerge.selection.curves import Curve

SEEN = 0.06
"""The highest cosine between two experts of all suites that were compared."""
RUINED = 0.02
"""The mean cosine lay above it where large weights ruined the models, and below it elsewhere."""
COMPARE = "evomerge compare tells which of them is best on your models and tasks"


def first_try(cosines: np.ndarray, lines: Sequence[Curve] = ()) -> str:
    """Return what to try first; empty where there is no expert.

    Args:
        cosines: of the task vectors, (K, K); NaN with one that is zero.
        lines: between pairs of models, where they were scored.
    """
    number = len(cosines)
    if number == 0:
        return ""
    if number == 1:
        return "one expert: searcher=grid space=model finds its weight; comparisons here had two experts or more"
    pairs = cosines[np.triu_indices(number, 1)]
    pairs = pairs[np.isfinite(pairs)]
    return "; ".join([_method(number, float(pairs.mean()) if len(pairs) else 0.0), *_barriers(lines)])


def _method(number: int, cosine: float) -> str:
    """Return which method comes first."""
    if cosine >= ALIKE:
        return (
            f"the experts changed alike (mean cosine {cosine:.2f}): an average (start=1/K), or a search from there; no "
            f"suite that was compared here had such experts (its cosines went up to {SEEN})"
        )
    if number == 2:
        return (
            "two experts: weights of 0.3, 0.5, 0.7 and 1 for both (evomerge compare); over 16 pairs here no number of "
            "this page told which of them merge badly"
        )
    if cosine >= RUINED:
        return (
            f"transform=iso_c or wudi, 9 and 6 points above plain task vectors on the image classifiers here, whose "
            f"mean cosine was 0.03 (yours: {cosine:.3f}), and weights from 0.1 to 3; one such suite is little, and "
            f"{COMPARE}"
        )
    return (
        f"transform=iso_c with weights up to 3, 5 and 2 points above plain task vectors on both text suites here, "
        f"whose mean cosines were below 0.01 (yours: {cosine:.3f}); two suites are few, and {COMPARE}"
    )


def _barriers(lines: Sequence[Curve]) -> list[str]:
    """Return what barriers say, where there are any lines."""
    if any(not line.flat for line in lines):
        return ["with a barrier between experts, try weights below 0.4 as well"]
    if lines:
        return ["no barrier is no promise: a pair without one lost 29 points here"]
    return []
