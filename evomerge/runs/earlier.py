"""What version 0.2 wrote, as this version says it: settings of a run directory, and identities in the header of a log.

A run of `dare_ties` is only reported, since its masks were others (`merging/earlier.py`).

In: the plain containers of a `config.yaml`, or of a header. Out: the same in today's words, so that a run of 0.2 is
reported, exported, evaluated and resumed as the search that it is. Two things have changed: classes lie in other
modules, and a transform stands beside the method, no longer in it. What is in today's words already stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from evomerge.common.errors import LogError
from evomerge.fitness.objectives import PARETO
from evomerge.search.journal import read_log
from evomerge.transforms.earlier import completed, missing

MOVED = {
    "evomerge.methods": "evomerge.merging.methods",
    "evomerge.fitness.lm_eval": "evomerge.fitness.lm_eval.harness",
}
"""Modules of classes that settings name."""
OTHERS = {"evomerge.methods.DareTies": "evomerge.merging.earlier.EarlierDareTies"}
"""Classes whose results were others."""
ADDED = {"evomerge.methods.Ties": {"elect": "sum", "over": "tensor", "scale": 1.0}}
"""Settings that a class has now, at the values that it had without them."""


NEGATED = "negated"
"""In the objective of an identity, the rows that the first constants take away; where there is none, all of them."""
EITHER = ("evomerge.searchers.tpe.Tpe", "evomerge.searchers.random.Random")
"""Searchers that hand over the best points of one value, or a front of several."""


def in_todays_words(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, or an identity as a log's header has it, in today's words.

    Args:
        given: plain containers, of any version from 0.2.
    """
    return _lifted(_renamed(given))


def with_missing(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings or the identity of a run, in today's words, with those settings of transforms that it does
    not name since there were none.

    Args:
        written: as the run's directory has them; what somebody asks for now has today's defaults instead.
    """
    chain = [completed(step) for step in written.get("transform") or ()]
    return {**written, **({"transform": chain} if chain else {})}


def identity_today(given: Mapping[str, Any]) -> dict[str, Any]:
    """Return an identity as a log's header has it, in today's words, and without what counts no more.

    Args:
        given: of any version from 0.2.
    """
    today = with_missing(in_todays_words(given))
    objective = today.get("objective") or {}
    many = objective.get("aggregate") == PARETO or bool(objective.get("values"))
    return {**today, "searcher": counted_of(today["searcher"], many)} if "searcher" in today else today


def after_it_ended(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return what of an identity counts when the search is over: how its first generation was made, and by which rule
    its samples grew, counts for one that goes on alone.

    Args:
        identity: in today's words.
    """
    objective = {name: value for name, value in (identity.get("objective") or {}).items() if name != NEGATED}
    grown = {"grow": identity["grow"][:2]} if "grow" in identity else {}
    return {**identity, **({"objective": objective} if objective else {}), **grown}


def counted_of(searcher: Mapping[str, Any], several: bool) -> dict[str, Any]:
    """Return the settings of a searcher that count: with one value, one of ours that keeps the best (`keep`) hands
    these over, and `incumbents` is of fronts alone.

    Args:
        searcher: its settings.
        several: whether there are several values.
    """
    unused = () if several or searcher.get("_target_") not in EITHER else ("incumbents",)
    return {name: value for name, value in searcher.items() if name not in unused}


def check_begun(directory: Path) -> None:
    """Refuse a run whose candidates this version would build otherwise, and the directory of a comparison.

    Args:
        directory: the run directory; it may be new.

    Raises:
        LogError: it is one of these.
    """
    if (directory / "comparison.jsonl").exists():
        raise LogError(f"{directory} holds a comparison of methods: name another directory for the search.")
    log = directory / "trials.jsonl"
    identity = next(read_log(log), {}).get("identity") if log.exists() else None
    if identity is not None and in_todays_words(identity)["method"]["_target_"] in OTHERS.values():
        from evomerge.merging.earlier import REFUSAL  # here, since settings are read without torch

        raise LogError(f"The run {directory} is of an earlier version. {REFUSAL}")


def check_negated(directory: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a run that began with constants which take all experts away, where those of some tasks are meant.

    Args:
        directory: the run directory; it may be new.
        identity: of the search.

    Raises:
        LogError: it is such a run.
    """
    log = directory / "trials.jsonl"
    before = (next(read_log(log), {}).get("identity") or {}).get("objective") or {} if log.exists() else {}
    if before.get("forget") and NEGATED not in before and NEGATED in identity["objective"]:
        raise LogError(
            f"The run {directory} began with constants that take all experts away, and this version takes away those "
            f"of the tasks to forget alone, so its first generation would be another. Search in another run directory "
            f"(hydra.run.dir=runs/another); report, export and evaluate read this one as it is."
        )


def as_begun(settings: Mapping[str, Any], directory: Path) -> tuple[dict[str, Any], list[str]]:
    """Return the settings of a search as its run began, and what is said of them: what a log does not name since there
    was no such setting is as it was then, which is no default any more.

    Args:
        settings: plain containers.
        directory: the run directory; it may be new.
    """
    log = directory / "trials.jsonl"
    before = in_todays_words(next(read_log(log), {}).get("identity") or {}) if log.exists() else {}
    searcher, first = _first_as_begun(settings["searcher"], before.get("searcher") or {})
    chain, then = _chain_as_begun(settings.get("transform") or [], before.get("transform") or [])
    return {**settings, "searcher": searcher, **({"transform": chain} if chain else {})}, [*first, *then]


def _first_as_begun(now: Mapping[str, Any], before: Mapping[str, Any]) -> tuple[Mapping[str, Any], list[str]]:
    """Return the settings of a searcher: one whose log knows no `first` began around the start, and one whose log knows
    no `akin` went by weights.
    """
    from evomerge.searchers.spread import EXPERTS, START  # here, since settings are read without scipy
    from evomerge.searchers.topk import TASK_VECTORS, WEIGHTS

    if before.get("_target_") != now["_target_"]:
        return now, []
    found, said = dict(now), list[str]()
    for name, new, then, how in (
        ("first", EXPERTS, START, "a generation around its start"),
        ("akin", TASK_VECTORS, WEIGHTS, "the kinship of weights"),
    ):
        if now.get(name) == new and name not in before:
            found[name] = then
            said.append(f"note: this run began with {how}, and goes on so: searcher.{name}={then}")
    return found, said


def _chain_as_begun(
    now: Sequence[Mapping[str, Any]], before: Sequence[Mapping[str, Any]]
) -> tuple[list[Mapping[str, Any]], list[str]]:
    """Return the settings of transforms, with those of the run that its log does not name."""
    if [step["_target_"] for step in now] != [step["_target_"] for step in before]:
        return [*now], []
    lacking = [missing(step) for step in before]
    said = [
        f"note: this run began with another form of a transform, and goes on so: {name}={str(value).lower()}"
        for step in lacking
        for name, value in step.items()
    ]
    return [{**step, **then} for step, then in zip(now, lacking, strict=True)], said


def _renamed(node: Any) -> Any:
    """Return the same with every class under its new module."""
    if isinstance(node, Mapping):
        named = {name: _class(value) if name == "_target_" else _renamed(value) for name, value in node.items()}
        return {**named, **ADDED.get(str(node.get("_target_")), {})}
    return [_renamed(value) for value in node] if isinstance(node, list) else node


def _class(target: str) -> str:
    if target in OTHERS:
        return OTHERS[target]
    module, _, name = str(target).rpartition(".")
    return f"{MOVED.get(module, module)}.{name}"


def _lifted(node: dict[str, Any]) -> dict[str, Any]:
    """Return the same with the transform beside the method."""
    method = node.get("method")
    if not isinstance(method, Mapping) or "transform" not in method:
        return node
    own = {name: value for name, value in method.items() if name != "transform"}
    chain = [method["transform"]] if method["transform"] else []
    return {**node, "method": own, **({"transform": chain} if chain else {})}
