"""What a search depends on: names and hashes, no paths and no clocks.

In: the problem and the settings of its search. Out: the identity of the search, which stands in the header of its trial
log. A setting or a file that changes results and is missing here would mix two searches.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.code import code_of, is_ours
from evomerge.common.digests import digest
from evomerge.common.limits import AUTO
from evomerge.fitness.items import Item
from evomerge.problem import Problem
from evomerge.runs.closed_forms import CLOSED
from evomerge.runs.earlier import NEGATED, counted_of
from evomerge.runs.objectives import objective_identity, several
from evomerge.runs.racing import racing_identity
from evomerge.runs.sampled import sampling_identity
from evomerge.runs.starts import text_of
from evomerge.runs.targets import find_class
from evomerge.searchers.archive import SIZE
from evomerge.searchers.spread import START
from evomerge.searchers.topk import WEIGHTS

LATER = ("only", "sum", "map", "masks")
"""Settings of spaces that earlier versions had none of: without them, a search is the one that it was."""
FORGETTING = ("forget", "keep")
"""Settings of the objective that count where something is to be forgotten."""
SINCE = {"lag": 0, "incumbents": SIZE, "first": START, "akin": WEIGHTS, "share": 1}
"""Settings of searchers that earlier versions had none of, as they search without them."""
SEVERAL = ("values", "constraints", "choose", "sure")
"""Settings of the objective that earlier versions had none of; the last two count when the search is over."""


def search_identity(
    problem: Problem,
    settings: Mapping[str, Any],
    learned: Mapping[str, Sequence[Item]] | None = None,
) -> dict[str, Any]:
    """Return what makes this search this search.

    Args:
        problem: what is searched.
        settings: its settings; `auto` blocks are one.
        learned: the inputs that a gradient learns from, by task; None where none does.
    """
    space, start = problem.space, settings["start"]
    inputs = {task: digest_items(items) for task, items in (learned or {}).items()}
    blocks = (settings.get("evaluator") or {}).get("blocks")
    recipe = Path(start) if isinstance(start, str) and start not in CLOSED else None
    return {
        **problem.contents,
        "items": {task: digest_items(items) for task, items in problem.items["search"].items()},
        "space": {
            **{name: value for name, value in settings["space"].items() if name not in LATER or value},
            "coordinates": list(space.names),
            "box": digest([space.low.tolist(), space.high.tolist()]),
        },
        "searcher": counted_of(_as_ever(_with_code(settings["searcher"], "searcher")), several(settings)),
        "objective": {"metric": settings["fitness"]["metric"], **_objective(settings, problem)},
        "sample": [settings["fitness"]["items"], settings["fitness"]["rotate"]],
        **sampling_identity(settings, problem.sampling.growth),
        **({"blocks": blocks} if blocks not in (None, AUTO, 1) else {}),  # in one, it is the search that it always was
        **racing_identity(settings),
        **({"loss": [_with_code(settings["loss"], "loss"), inputs]} if learned else {}),
        "start": f"recipe {digest(text_of(start))}" if recipe is not None and recipe.is_file() else start,
        "seed": settings["seed"],
    }


def _objective(settings: Mapping[str, Any], problem: Problem) -> dict[str, Any]:
    """Return the settings of the objective that count; with the metric of the condition, where there is one."""
    given = {name: value for name, value in settings["objective"].items() if name not in SEVERAL}
    own = objective_identity(settings)
    if given.get("forget"):
        first = problem.negated if settings["start"] == "constants" and problem.space.dim > 1 else ()
        rows = {NEGATED: list(first)} if first else {}
        return {**given, "condition": settings["fitness"]["report_metric"], **rows, **own}
    return {**{name: value for name, value in given.items() if name not in FORGETTING}, **own}


def _with_code(settings: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a group, with a hash of the code of a class that is not ours."""
    code = code_of(find_class(settings["_target_"], group))
    return {**settings, **({"code": code} if code else {})}


def _as_ever(searcher: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a searcher, and of those it is made of, without those that earlier versions had none of,
    where they change nothing and the class is ours. Of somebody else's class, a lag of 0 may be another search than
    what it does without.
    """
    target = searcher.get("_target_")
    ours = target is not None and is_ours(find_class(target, "searcher"))
    return {
        name: _as_ever(value) if isinstance(value, Mapping) else value
        for name, value in searcher.items()
        if not (ours and name in SINCE and value == SINCE[name])
    }


def digest_items(items: Iterable[Item]) -> str:
    """Return a short hash of items in their order; their ids are hashes of their content."""
    return digest([item.id for item in items])
