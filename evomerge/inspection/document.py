"""An inspection as plain data, from which tables are drawn and which `--json` prints.

In: an `Inspection`, and `Costs` where the models can be merged. Out: one dictionary, `json.dumps` away from a document;
NaN stands where a number has no meaning (the cosine with a task vector that is zero), None where nothing is known.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from evomerge.inspection.estimates import Costs
from evomerge.inspection.facts import ModelFacts
from evomerge.inspection.geometry import Geometry, Signs
from evomerge.inspection.sources import Inspection, Member
from evomerge.models.vocabulary import compare_tokens


def document(found: Inspection, needs: Costs | None, budget: int) -> dict[str, Any]:
    """Return everything that is known.

    Args:
        found: the inspection.
        needs: what a search needs; None where the models cannot be merged.
        budget: candidates of a search.
    """
    names = found.compared
    experts = {member.name: _member(member, found) for member in found.experts}
    for k, name in enumerate(names):
        experts[name]["task_vector"] = _task_vector(found, k)
    cost = None if needs is None else {**asdict(needs), "budget": budget}
    if needs is not None and cost is not None:
        cost["search"] = None if needs.score is None else budget * (needs.merge + needs.score)
    return {
        "live": {
            "class": found.live,
            "auto_class": found.auto_class,
            "elements": found.whole.elements,
            "tensors": len(found.parameters),
        },
        "base": _member(found.base, found),
        "experts": experts,
        "compared": names,
        "density": found.density,
        "whole": _relations(found.whole, names),
        "clusters": found.clusters and asdict(found.clusters),
        "groups": [
            {"name": group.name, "depth": group.depth, **_relations(found.of(group), names)} for group in found.groups
        ],
        "needs": cost,
        "errors": [{"name": member.name, "error": member.error} for member in found.refused],
        "warnings": found.warnings,
    }


def _member(member: Member, found: Inspection) -> dict[str, Any]:
    """What a directory says of itself, and how that compares with the base; an expert misses what the base holds."""
    facts, checkpoint, base = member.facts, member.checkpoint, found.base
    result: dict[str, Any] = {"path": str(member.path), "fits": member.error is None}
    if facts is not None and base.facts is not None:
        result |= {
            "class": facts.architecture,
            "elements": facts.elements,
            "dtypes": facts.dtypes,
            "bytes": facts.bytes,
            "files": facts.files,
            "tied": facts.tied,
            "licence": facts.licence,
            "tokens": facts.vocabulary and len(facts.vocabulary),
            **_tokens(facts, base.facts),
            "chat_template": _likeness(facts.templates, base.facts.templates),
            "image_processor": _likeness(facts.pixels, base.facts.pixels),
        }
    if checkpoint is not None:
        missing = [name for name in checkpoint.missing if member is base or name in found.parameters]
        rows = {name: asdict(found) for name, found in checkpoint.rows.items()}
        result |= {"sha256": checkpoint.sha256, "missing": missing, "extra": checkpoint.spare, "rows": rows}
    return result


def _tokens(facts: ModelFacts, base: ModelFacts) -> dict[str, list[str] | None]:
    """Tokens that the base has not, that it alone has, and that have another id there."""
    if base.vocabulary is None or facts.vocabulary is None:
        return dict.fromkeys(("added", "lost", "moved"))
    return {**compare_tokens(base.vocabulary, facts.vocabulary)}


def _likeness(theirs: Any, ours: Any) -> str | None:
    """`same`, `other`, or `none` where only the base has one; None where neither has."""
    if theirs is None:
        return None if ours is None else "none"
    return "same" if theirs == ours else "other"


def _task_vector(found: Inspection, k: int) -> dict[str, Any]:
    """The k-th task vector by itself, and how much it changes each tensor.

    The most changed one is sought among matrices: a bias that is nearly zero in the base changes by any ratio.
    """
    ratios = {name: float(one.ratios[k]) for name, one in found.tensors.items()}
    matrices = [name for name, shape in found.parameters.items() if len(shape) > 1 and ratios[name] > 0]
    most = max(matrices, key=lambda name: ratios[name], default=None)
    return {
        "norm": float(found.whole.norms[k]),
        "ratio": float(found.whole.ratios[k]),
        "changed": float(found.whole.changed[k]),
        "tensors_changed": sum(bool(one.signs.shared[k, k]) for one in found.tensors.values()),
        "most_changed": most,
        "ratios": ratios,
    }


def _relations(one: Geometry, names: Sequence[str]) -> dict[str, Any]:
    """How long the task vectors are, and how they lie to each other, in some elements."""
    return {
        "elements": one.elements,
        "norms": one.norms.tolist(),
        "ratios": one.ratios.tolist(),
        "changed": one.changed.tolist(),
        "cosines": one.cosines.tolist(),
        "pearson": one.pearson.tolist(),
        "distances": one.distances.tolist(),
        "opposite": _opposite(one.signs),
        "opposite_of_largest": _opposite(one.top),
    }


def _opposite(signs: Signs) -> dict[str, Any]:
    """Shares of opposite signs: of each pair, of all pairs together, and of the elements that two or more have changed,
    where chance gives more than half.
    """
    upper = np.triu_indices(len(signs.shared), 1)
    shared = int(signs.shared[upper].sum())
    together = int(signs.opposite[upper].sum()) / shared if shared else math.nan
    elements, chance = signs.shares
    return {"pairs": signs.pairs.tolist(), "together": together, "elements": elements, "chance": chance}
