"""What a searcher is told of the rows that are weighed, where it goes by how they lie to each other.

In: settings of a search, and what is searched. Out: the inner products of all rows, group by group. They are read once,
and are as much of a search as its weights: of rows that transforms made, and in the form in which these are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from evomerge.common.progress import Progress
from evomerge.merging.starts import products
from evomerge.problem import Problem
from evomerge.searchers.topk import TASK_VECTORS


def products_of(settings: Mapping[str, Any], problem: Problem, reporter: Progress) -> np.ndarray | None:
    """Return the inner products of all rows in each group, float64 (G, K, K); None where the searcher asks for none.

    Args:
        settings: of the search.
        problem: what is searched.
        reporter: is told when all task vectors are read.
    """
    if settings["searcher"].get("akin") != TASK_VECTORS:
        return None
    with reporter.working("reading the task vectors for their kinship"):
        return np.stack([products(problem.rows, group.spans) for group in problem.space.groups])
