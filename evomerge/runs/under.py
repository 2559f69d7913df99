"""A problem under another method, other transforms or another space: the same live model, base, experts and items.

In: a problem, the settings from which it was made, and those that are to be others. Out: the problem of these. So a
comparison has all methods on one model, and workers follow it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from evomerge.common.progress import Progress
from evomerge.models.buffers import RECALIBRATE
from evomerge.problem import Problem
from evomerge.runs.build import recalibrate, written_of
from evomerge.runs.config import build
from evomerge.runs.families import Opened
from evomerge.runs.given import make_merge


def problem_under(before: Problem, settings: Mapping[str, Any], own: Mapping[str, Any], reporter: Progress) -> Problem:
    """Return the problem under other settings.

    Args:
        before: shares its live model, base, experts and items.
        settings: from which it was made.
        own: `method`, `transform` and `space`, as far as they are to be others.
        reporter: tells of what is prepared.

    Raises:
        EvomergeError: these settings do not fit the models.
    """
    all_of_them = {**settings, **own}
    family = Opened(
        before.sources, all_of_them["model"], before.live, before.vectors.base, dict(before.vectors.experts)
    )
    merge = make_merge(family, build(all_of_them["method"], "method"), all_of_them, reporter)
    problem = replace(
        before,
        vectors=merge.vectors,
        rows=merge.rows,
        space=merge.space,
        method=merge.method,
        merger=merge.merger,
        written=written_of(all_of_them),
        transforms=merge.transforms,
    )
    if problem.buffers == RECALIBRATE:
        recalibrate(problem)
    return problem
