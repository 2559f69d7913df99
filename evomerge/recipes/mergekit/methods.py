"""Which method is which: the one table of mergekit 0.1.5's methods and evomerge's, for writing and for reading.

In: a recipe's method, or a name in a YAML. Out: a `Peer`, with mergekit's defaults; or why there is none. mergekit has
a method of its own where evomerge has a setting (`breadcrumbs_ties`, `della_linear`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from evomerge.common.names import nearest

Base = Literal["always", "listed", "deltas"]


@dataclass(frozen=True)
class Peer:
    """A method of mergekit, and what it is here.

    Attributes:
        name: mergekit's.
        method: evomerge's.
        own: settings of evomerge's method that tell it from others of mergekit's.
        shared: settings of all models in mergekit, with its defaults; None: it must be given.
        each: settings of each model, alike.
        drawn: whether elements are dropped at random.
        transform: what evomerge does to the task vectors before a sum with weights of 1, where that is the method.
        base: when mergekit is given one: `always`; if it is one of the models that are merged (`listed`); or if the
            method is to take differences to it (`deltas`).
    """

    name: str
    method: str
    own: Mapping[str, Any] = field(default_factory=dict)
    shared: Mapping[str, Any] = field(default_factory=dict)
    each: Mapping[str, float | None] = field(default_factory=dict)
    drawn: bool = False
    transform: str | None = None
    base: Base = "always"


def _sum(normalize: bool = False, rescale: bool = False) -> dict[str, Any]:
    return {"normalize": normalize, "rescale": rescale, "lambda": 1.0, "int8_mask": False}


_THINNED = {"weight": None, "density": 1.0}
_CIRCLE = {"nuslerp_row_wise": False, "nuslerp_flatten": True}
PEERS = (
    Peer("linear", "average", shared={"normalize": True}, each={"weight": None}, base="listed"),
    Peer("task_arithmetic", "linear", shared=_sum(), each={"weight": None}),
    Peer("ties", "ties", {"elect": "sum"}, _sum(normalize=True), _THINNED),
    Peer("dare_linear", "dare", {}, _sum(rescale=True), _THINNED, drawn=True),
    Peer("dare_ties", "dare_ties", {"elect": "sum"}, _sum(rescale=True), _THINNED, drawn=True),
    Peer("breadcrumbs", "breadcrumbs", {"elect": None}, _sum(), {**_THINNED, "gamma": 0.01}),
    Peer("breadcrumbs_ties", "breadcrumbs", {"elect": "sum"}, _sum(), {**_THINNED, "gamma": 0.01}),
    Peer("della", "della", {"elect": "sum"}, _sum(True, True), {**_THINNED, "epsilon": 0.15}, drawn=True),
    Peer("della_linear", "della", {"elect": None}, _sum(rescale=True), {**_THINNED, "epsilon": 0.15}, drawn=True),
    Peer("slerp", "slerp", shared={"t": None}),
    Peer("model_stock", "linear", shared={"filter_wise": False}, transform="model_stock"),
    Peer("sce", "linear", shared={"select_topk": 1.0, "int8_mask": False}, transform="sce"),
    Peer("nuslerp", "nuslerp", {}, _CIRCLE, {"weight": None}, base="deltas"),
    Peer("multislerp", "multislerp", {}, {"normalize_weights": True, "eps": 1e-8}, {"weight": None}, base="deltas"),
    Peer("karcher", "karcher", shared={"max_iter": 10, "tol": 1e-5}, base="listed"),
)
NEARLY = {
    "sce": "mergekit adds up in another order here, so the last bits differ",
    **dict.fromkeys(("karcher", "multislerp"), "mergekit adds up in another order here, so the last bits differ"),
    "model_stock": (
        "where the task vectors of a tensor point away from each other, mergekit goes beyond the base, and evomerge "
        "stays at it; elsewhere the last bits differ"
    ),
}
"""What mergekit does otherwise where evomerge comes to the same by another way."""
_ELECTS = {"breadcrumbs": None}
"""What `elect` is where a recipe does not say it; else the sum."""
ABSENT = {
    "passthrough": "copies layers, which makes another model; evomerge merges models of one architecture",
    "nearswap": "moves the base to elements that are near; slerp goes between two models",
    "arcee_fusion": "takes elements over by their importance; ties keeps the largest differences",
    "ram": "tells elements that experts share from their own; ties elects between them",
    "ramplus_tl": "tells elements that experts share from their own; ties elects between them",
}
"""Methods of mergekit that evomerge has not, and what comes near."""


def peer_named(name: str) -> Peer | str:
    """Return mergekit's method of a name, or why evomerge has none."""
    if found := next((peer for peer in PEERS if peer.name == name), None):
        return found
    known = ", ".join(peer.name for peer in PEERS)
    if name in ABSENT:
        return f"evomerge has no method {name}, which {ABSENT[name]}. It reads {known}"
    near = "".join(f"; is {one} meant?" for one in nearest(name, [*ABSENT, *(peer.name for peer in PEERS)]))
    return f"mergekit 0.1.5 has no method {name}{near or '.'} evomerge reads {known}"


def peer_of(method: Mapping[str, Any]) -> Peer | None:
    """Return what mergekit has for the method of a recipe with its settings; None if nothing.

    Args:
        method: `name` and settings, as a recipe has them.
    """
    elect = method.get("elect", _ELECTS.get(str(method["name"]), "sum"))
    alike = (peer for peer in PEERS if peer.method == method["name"] and not peer.transform)
    return next((peer for peer in alike if peer.own.get("elect", elect) == elect), None)


def peer_of_transform(
    method: Mapping[str, Any], transform: Sequence[Mapping[str, Any]], weights: Mapping[str, Mapping[str, float]]
) -> Peer | None:
    """Return what mergekit has for a sum of transformed task vectors with weights of 1; None if nothing.

    Args:
        method: `name` and settings, as a recipe has them.
        transform: the same of each transform, in order.
        weights: by group and row.
    """
    if len(transform) != 1 or dict(method) != {"name": "linear"} or transform[0].get("only"):
        return None
    ones = all(value == 1 for row in weights.values() for value in row.values())
    return next((peer for peer in PEERS if ones and peer.transform == transform[0]["name"]), None)
