"""Whether a merge is a weighted sum of the factors of adapters, and its weights row by row.

In: a recipe and its opened sources. Out: the reason why it is none; or for each parameter the weights λ of the experts
that change it, one for each row of the matrix, with which factors are summed exactly (`combined.py`).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from evomerge.common.names import listed
from evomerge.merging.kernels.form import Form
from evomerge.merging.method import Formed
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.live import LiveModel
from evomerge.recipes.catalog import make_method
from evomerge.recipes.recipe import Recipe
from evomerge.task_vectors.spans import Span


class Share(NamedTuple):
    """Where an expert has a task vector and a weight.

    Attributes:
        group: its name.
        span: of it.
        expert: the name.
        weight: λ.
    """

    group: str
    span: Span
    expert: str
    weight: float


def recipe_reasons(recipe: Recipe) -> Iterator[str]:
    """Yield why a merge is no weighted sum of the experts' own task vectors."""
    method = make_method(recipe)
    if not (isinstance(method, Formed) and method.form == Form() and method.linear):
        yield f"the method {method.name} is no weighted sum of the experts, so the merge has no low rank"
    if recipe.transform:
        names = " and ".join(step["name"] for step in recipe.transform)
        yield (
            f"the task vectors of this recipe were transformed ({names}), and what comes of that is no product of the "
            f"adapters' factors"
        )
    if recipe.store:
        yield (
            f"this recipe was scored with task vectors in {recipe.kept_as}, and not with the adapters' own factors, as "
            f"model.store=auto keeps them"
        )


def expert_reasons(experts: Mapping[str, Checkpoint], shares: Sequence[Share], live: LiveModel) -> Iterator[str]:
    """Yield why experts are no factors, or not in whole rows, where they have a weight."""
    for expert in dict.fromkeys(share.expert for share in shares):
        own = experts[expert]
        if not own.adapted:
            yield f"the expert {expert} is a whole model, whose task vector has no low rank"
        places = dict.fromkeys(share.span.parameter for share in shares if share.expert == expert)
        if others := [name for name in places if name not in own.factors]:
            yield (
                f"the expert {expert} holds {listed(others)}, which are no products of factors (modules, biases or "
                f"embeddings that were trained as a whole, or DoRA), and PEFT cannot weigh them"
            )
    for share in shares:
        width = _width(live, share.span)
        if share.span.start % width or share.span.stop % width:
            yield (
                f"the group {share.group} ends within a row of {share.span.parameter}, and a product of factors has a "
                f"weight for each row, as other granularities have"
            )


def weight_shares(
    recipe: Recipe, live: LiveModel, base: Checkpoint, experts: Mapping[str, Checkpoint]
) -> Iterator[Share]:
    """Yield where experts have a task vector and a weight."""
    parameters = {name: shape for name, shape in live.parameters.items() if name not in base.missing}
    for group in recipe.groups(parameters):
        weights = recipe.coefficients["weight"][group.name]
        for span in group.spans:
            for expert in (name for name, one in experts.items() if weights[name] and span.parameter in one.keys):
                yield Share(group.name, span, expert, weights[expert])


def row_weights(shares: Sequence[Share], live: LiveModel) -> dict[str, dict[str, Tensor]]:
    """Return the weights of the experts row by row, float64 (m,), by parameter."""
    found: dict[str, dict[str, Tensor]] = {}
    for share in shares:
        span, width = share.span, _width(live, share.span)
        empty = torch.zeros(live.parameters[span.parameter][0], dtype=torch.float64)
        rows = found.setdefault(span.parameter, {}).setdefault(share.expert, empty)
        rows[span.start // width : span.stop // width] = share.weight
    return found


def _width(live: LiveModel, span: Span) -> int:
    """Return how many elements a row of a parameter has."""
    return math.prod(live.parameters[span.parameter][1:])
