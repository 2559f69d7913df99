"""The parameters of a merged model, one at a time, from the files of base and experts: no live model, no cache.

In: a recipe, and the `Checkpoint`s that it names. Out: each parameter, θ₀ + Σ λ_k τ_k or what else the method says, to
the bit as the merger builds it on a CPU: deltas in float32, combined by the same `Method` in float32, cast once. Task
vectors are computed where they are needed and kept nowhere: a linear merge holds a few MiB, whatever the parameter; a
method or a transform that looks at a whole parameter holds that parameter's deltas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.merging.methods import only_sums
from evomerge.models.checkpoint import Checkpoint
from evomerge.recipes.catalog import make_method
from evomerge.recipes.recipe import Recipe
from evomerge.task_vectors.expert import ExpertDeltas, cut
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors, zeros


class Rebuild:
    """Merges parameters of a recipe one at a time.

    Args:
        recipe: what to build.
        base: θ₀.
        experts: θ_k by name, in any order.
        parameters: name -> shape of those that the recipe's groups are made of, in the order of the live model.

    Raises:
        ConfigError: the recipe's method or groups are not those of these parameters, or a coefficient is too large.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        parameters: Mapping[str, tuple[int, ...]],
    ) -> None:
        self._method = make_method(recipe)
        groups = recipe.groups(parameters)
        self._coefficients = {
            variable: np.array([[rows[group.name][expert] for expert in recipe.experts] for group in groups])
            for variable, rows in recipe.coefficients.items()
        }
        for variable, values in self._coefficients.items():
            if np.abs(values).max() > np.finfo(np.float32).max:
                raise ConfigError(f"recipe: coefficients.{variable} has a number that float32 cannot hold.")
        self._spans: dict[str, list[tuple[int, Span]]] = {}
        for row, group in enumerate(groups):
            for span in group.spans:
                self._spans.setdefault(span.parameter, []).append((row, span))
        self._deltas = {name: ExpertDeltas(base, experts[name], parameters) for name in recipe.experts}
        vectors = TaskVectors(
            base,
            {name: experts[name] for name in recipe.experts},
            {name: tuple(shape) for name, shape in parameters.items()},
            zeros(self._deltas, parameters),
            self._deltas,
        )
        self._base, self._transform = base, self._method.transform
        self._state = self._transform.prepare(vectors) if self._transform else None

    @torch.no_grad()
    def write(self, name: str, out: Tensor) -> None:
        """Write a merged parameter.

        Args:
            name: of the parameter.
            out: flat, (n,), of the floating dtype that it is cast to.
        """
        base, deltas = self._base.tensor(name).reshape(-1), self._found(name)
        if not deltas:
            out.copy_(base)
            return
        experts, names = list(deltas), list(self._deltas)
        for row, whole in self._spans[name]:
            chosen = {variable: values[row, experts] for variable, values in self._coefficients.items()}
            for span in self._cut(whole):
                before = base[span.start : span.stop].float()
                prepared = [self._method.prepare(names[k], span, delta(span)) for k, delta in deltas.items()]
                merged = torch.empty_like(before)
                self._method.merge(before, prepared, chosen, merged)
                out[span.start : span.stop] = merged

    def _found(self, name: str) -> dict[int, Callable[[Span], Tensor]]:
        """Return what gives the deltas of a parameter's spans, by the places of the experts that have one there."""
        if self._transform is None:
            return {k: deltas.span for k, deltas in enumerate(self._deltas.values()) if name in deltas}
        given = {expert: deltas[name] for expert, deltas in self._deltas.items() if name in deltas}
        changed = self._transform.apply(name, given, self._state)
        return {
            k: partial(_part, changed[expert].reshape(-1))
            for k, expert in enumerate(self._deltas)
            if expert in changed and torch.any(changed[expert])
        }

    def _cut(self, span: Span) -> Iterator[Span]:
        """Yield a span in pieces, if the method takes every element by itself, and the deltas are not there anyway."""
        return cut(span) if only_sums(self._method) else iter((span,))


def _part(delta: Tensor, span: Span) -> Tensor:
    return delta[span.start : span.stop]
