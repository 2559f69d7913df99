"""The parameters of a merged model, one at a time, from the files of base and experts: no live model, no cache.

In: a recipe, and the `Checkpoint`s that it names. Out: each parameter, θ₀ + Σ λ_k τ_k or what else the method says, to
the bit as the merger builds it on a CPU, by the same `Builder`. Experts are kept as they are; a transform, or a store
that packs task vectors, holds the rows of one parameter.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.merging.builder import Builder
from evomerge.merging.method import Formed
from evomerge.merging.sites import Site, find_site
from evomerge.models.checkpoint import Checkpoint
from evomerge.recipes.catalog import make_chain, make_method
from evomerge.recipes.recipe import Recipe
from evomerge.space.named import array_coefficients
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.packing import pack
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors, exact_deltas
from evomerge.task_vectors.stores import FLOAT32, LOSSY
from evomerge.transforms.chain import Stage, streamed
from evomerge.transforms.store import kept_row


class Rebuild:
    """Merges parameters of a recipe one at a time.

    Args:
        recipe: what to build.
        base: θ₀.
        experts: θ_k by name, in any order.
        parameters: name -> shape of those that the recipe's groups are made of, in the order of the live model.
        exact: combine exact task vectors, also where the recipe says that what was scored was made of others.
        made: the rows of the recipe, where a search has made them; None to make them of the experts.

    Raises:
        ConfigError: the recipe's method or groups are not those of these parameters, or a coefficient is too large.
    """

    def __init__(
        self,
        recipe: Recipe,
        base: Checkpoint,
        experts: Mapping[str, Checkpoint],
        parameters: Mapping[str, tuple[int, ...]],
        exact: bool = False,
        made: TaskVectors | None = None,
    ) -> None:
        self._store = FLOAT32 if exact else recipe.kept_as
        self._method, self._made = make_method(recipe), made
        chain = () if made else make_chain(recipe, parameters)
        self._groups = groups = recipe.groups(parameters)
        self._coefficients = array_coefficients(recipe.coefficients, groups, recipe.row_names)
        for variable, values in self._coefficients.items():
            if np.abs(values).max() > np.finfo(np.float32).max:
                raise ConfigError(f"recipe: coefficients.{variable} has a number that float32 cannot hold.")
        self._spans: dict[str, list[tuple[int, Span]]] = {}
        for index, group in enumerate(groups):
            for span in group.spans:
                self._spans.setdefault(span.parameter, []).append((index, span))
        own = {name: experts[name] for name in recipe.experts}
        deltas = {name: exact_deltas(base, expert, parameters) for name, expert in own.items()}
        shapes = {name: tuple(shape) for name, shape in parameters.items()}
        self._exact = self._vectors = TaskVectors(base, own, shapes, deltas)
        self._stage: Stage | None = None
        for step in chain:
            self._vectors = streamed(self._vectors, self._stage) if self._stage else self._vectors
            self._stage = Stage(step, self._vectors)
        self._rows = self._stage.rows if self._stage else self._vectors.rows

    @torch.no_grad()
    def write(self, name: str, out: Tensor) -> None:
        """Write a merged parameter.

        Args:
            name: of the parameter.
            out: flat, (n,), of the floating dtype that it is cast to.
        """
        if isinstance(self._method, Formed) and self._method.whole:
            out.copy_(self._whole[name])
            return
        rows = self._rows_of(name)
        if not (sites := self._sites(name, out, rows)):
            out.copy_(self._vectors.base.tensor(name).reshape(-1))
            return
        Builder(sites, self._method).build(self._coefficients)

    @cached_property
    def _whole(self) -> dict[str, Tensor]:
        """All parameters in float32: a share over several tensors needs all of them at once."""
        merged = {name: self._vectors.base.tensor(name).reshape(-1).float().clone() for name in self._spans}
        spans = [(index, span) for index, group in enumerate(self._groups) for span in group.spans]  # as the merger has
        found = (find_site(index, span, merged[span.parameter], self._rows_of(span.parameter)) for index, span in spans)
        Builder([site for site in found if site], self._method).build(self._coefficients)
        return merged

    def _sites(self, name: str, out: Tensor, rows: TaskVectors) -> list[Site]:
        return [site for group, span in self._spans[name] if (site := find_site(group, span, out, rows))]

    def _rows_of(self, name: str) -> TaskVectors:
        """Return the rows that the method sees, of one parameter."""
        if self._made:
            return self._made
        if self._stage is None and self._store not in LOSSY:
            return self._vectors
        made = self._stage(name) if self._stage else _dense(self._exact, name)
        rows = {row: {name: self._kept(row, name, made[row])} if row in made else {} for row in self._rows}
        return replace(self._vectors, deltas=rows)

    def _kept(self, row: str, name: str, values: Tensor) -> Delta:
        """Return a row as the search kept it, to the bit."""
        exact = self._exact.deltas.get(row, {}).get(name) if self._stage and self._store in LOSSY else None
        below = None if exact is None else lambda: pack(exact.dense(), self._store)
        return kept_row(values, self._store, exact, below)


class Compared:
    """Writes one merge, and compares it with another one.

    Args:
        rebuild: what is written.
        other: what it is compared with.

    Attributes:
        difference: the largest difference of a parameter until now, in float32.
    """

    def __init__(self, rebuild: Rebuild, other: Rebuild) -> None:
        self._rebuild, self._other = rebuild, other
        self.difference = 0.0

    def write(self, name: str, out: Tensor) -> None:
        """Write a merged parameter; see `Rebuild.write`."""
        mine, theirs = (torch.empty(len(out)) for _ in range(2))
        self._rebuild.write(name, mine)
        self._other.write(name, theirs)
        out.copy_(mine)
        self.difference = max(self.difference, float(torch.linalg.vector_norm(theirs.sub_(mine), torch.inf)))


def _dense(vectors: TaskVectors, name: str) -> dict[str, Tensor]:
    """Return the rows of a parameter in float32, without those that are zero."""
    return {row: delta.dense() for row in vectors.rows if (delta := vectors.delta(row, name)) is not None}
