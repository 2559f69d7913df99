"""The merger: one live model, the base and the task vectors; it builds candidates in place, and takes their gradients.

In: coefficients per variable, shape (G, K), for G groups and K rows. Out: the same model, its parameters overwritten
with θ = θ₀ + Σ_k λ[g, k] τ_k (or what else the method says). It never sees points of the search space. Every candidate
is rebuilt from θ₀, accumulated in float32 and cast once: patching by differences loses the whole update in bfloat16
within a few hundred candidates. A live model may hold its parameters in a wider dtype than the files that a merge is
written to: whatever is put into it is then rounded to that of the files first. Parameters in which all rows are zero
are never touched. A method that takes every element by itself merges chunk by chunk, so what is made on the way, sums
in float32 and task vectors that are not computed yet, takes some chunks and not a copy of the largest parameter.

Another model is put into the live model by `load`, and `restore` undoes that as well. Several mergers may share a live
model: each writes where its own task vectors are not zero, so one that did not write last puts the base back everywhere
before it does anything (`Turn`).

The gradient that AdaMerging (Yang et al. 2024) learns from is an inner product, by the chain rule of that sum:
∂L/∂λ[g, k] = ⟨∂L/∂θ_g, τ_k,g⟩. So an ordinary backward pass on the merged parameters is enough: no graph through the
merge, and no expert beside its task vector.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.machine import memory_limit
from evomerge.merging.kernels.products import inner_products, stack
from evomerge.merging.methods import Method
from evomerge.models.guard import Guard
from evomerge.models.live import Turn
from evomerge.space.groups import Group
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.spans import Span, chunks
from evomerge.task_vectors.store import TaskVectors

MERGED = 1 << 20
"""Elements that a CPU merges together, 4 MiB of float32: fewer take longer, since its threads meet more often."""
MERGED_FAR = 1 << 24
"""The same of other devices, where starting a kernel takes longer."""
SHARE = 0.5
"""Of the memory that this process may have, that copies of task vectors may take."""


@dataclass(frozen=True)
class _Site:
    """One span of the live model, with all that a candidate needs for it; tensors are flat views of n elements.

    Attributes:
        group: whose coefficients it has.
        span: which elements it is.
        live: its place in the model.
        base: θ₀ there.
        rows: the places, among the K, of those whose delta is not zero here.
        prepared: by the method, for each of these.
        chunks: of the n elements, merged one after the other; none: all of them at once.
        rounded: the dtype to which elements are rounded before they are stored; None for that of `live`.
        stacked: float32 (len(rows), n), where `prepared` are deltas that lie below each other.
    """

    group: int
    span: Span
    live: Tensor
    base: Tensor
    rows: list[int]
    prepared: list[Any]
    chunks: tuple[slice, ...]
    rounded: torch.dtype | None = None
    stacked: Tensor | None = None


_Wanted = tuple[slice, Tensor | Sequence[Delta], list[tuple[int, int]]]
"""Where in a gradient a span lies, its deltas of which products are wanted, and the (group, row) of each."""
_Taken = list[tuple[list[tuple[int, int]], Tensor]]
"""Inner products, (n,) each, and the (group, row) that each of the n belongs to."""


class Merger:
    """Builds candidates in one live model.

    Args:
        model: the model to overwrite; it must hold the base's parameters now, so that a wrong mapping of names cannot
            pass unseen.
        vectors: the base and the rows.
        groups: the groups of the coefficient space, in its order.
        method: how a span is built.
        turn: who wrote into the model last, if others write into it as well.
        rounded: parameter -> the dtype to which its values are rounded before they are stored, where the model holds it
            in a wider one.

    Raises:
        CheckpointError: a parameter of the model is not what the base's files say.
    """

    def __init__(
        self,
        model: nn.Module,
        vectors: TaskVectors,
        groups: Sequence[Group],
        method: Method,
        turn: Turn | None = None,
        rounded: Mapping[str, torch.dtype] | None = None,
    ) -> None:
        self._method, self._rounded = method, dict(rounded or {})
        self._model, self._vectors = model, vectors
        self._shape = (len(groups), len(vectors.rows))
        self._parameters = dict(model.named_parameters())
        self._loaded = False
        self._turn, self._mark = turn or Turn(), object()
        if self._turn.taken is not None:
            self._put_base_back()
            self._turn.taken = None
        live = {name: parameter.detach() for name, parameter in self._parameters.items()}  # tied parameters appear once
        for name in vectors.parameters:
            _check_live(name, live.get(name), self._as_stored(name, vectors.base.tensor(name)))
        self._sites = [
            site
            for index, group in enumerate(groups)
            for span in group.spans
            if (site := self._site(index, span, live[span.parameter]))
        ]

    @torch.no_grad()
    def apply(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite the model with a candidate.

        Args:
            coefficients: {variable: float64 (G, K)} as `CoefficientSpace.decode` gives them.
        """
        self._take_turn()
        for site in self._sites:
            chosen = {name: values[site.group, site.rows] for name, values in coefficients.items()}
            if not site.chunks:
                self._merge(site.live, site.base, site.prepared, chosen, site.rounded)
            for chunk in site.chunks:
                prepared = [each[chunk] for each in site.prepared]
                self._merge(site.live[chunk], site.base[chunk], prepared, chosen, site.rounded)

    def _merge(
        self,
        live: Tensor,
        base: Tensor,
        prepared: list[Any],
        chosen: Mapping[str, np.ndarray],
        rounded: torch.dtype | None,
    ) -> None:
        """Overwrite some elements: the sum is made in float32, in the live memory itself if it is that, and cast."""
        before = base.float()
        out = live if live.dtype == torch.float32 else torch.empty_like(before)
        self._method.merge(before, prepared, chosen, out)
        if rounded is not None or out is not live:
            live.copy_(_rounded(out, rounded))

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]]) -> None:
        """Overwrite the model with another one, seen through the parameters that are merged.

        Args:
            tensors: of these parameters, by name, in any dtype; parameters without one are the base's.
        """
        self.restore()
        self._loaded = True
        for name, tensor in tensors:
            self._parameters[name].copy_(self._as_stored(name, tensor))

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base back, bit for bit, whoever wrote into the model last."""
        self._take_turn()
        for site in self._sites:
            site.live.copy_(_rounded(site.base, site.rounded))

    @torch.no_grad()
    def _take_turn(self) -> None:
        """Put the base back everywhere after `load`, and after another merger: both write where this one never does."""
        if self._turn.taken is self._mark and not self._loaded:
            return
        if self._turn.taken is not None:
            self._put_base_back()
        self._turn.taken, self._loaded = self._mark, False

    @cached_property
    def guard(self) -> Guard:
        """What puts the model back where scoring has changed it; the first use must come before any scoring."""
        return Guard(self._model, self._put_base_back, self._vectors.parameters)

    @torch.no_grad()
    def _put_base_back(self) -> None:
        """Write the base into all parameters that its files hold, whether or not candidates overwrite them."""
        for name in self._vectors.parameters:
            self._parameters[name].copy_(self._as_stored(name, self._vectors.base.tensor(name)))

    def _as_stored(self, name: str, tensor: Tensor) -> Tensor:
        """Return the values of a parameter, rounded as a merge is written."""
        return _rounded(tensor, self._rounded.get(name))

    def gradient(self, losses: Iterable[Tensor], wanted: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the gradient of the sum of losses of the candidate that is in the model.

        That is the base where another merger wrote last.

        As soon as the gradient of a parameter is complete, its inner products with the deltas are taken (see
        `products.py`: in float32 or better, whatever the addresses) and it is freed. From the first call on, float32
        deltas of which all are wanted are in memory, below each other, and candidates are merged of these; but not
        where they would take more than half of the memory that this process may have.

        Args:
            losses: scalars that depend on the model, made one after the other while this runs: each is walked backward
                before the next is made, so there is one graph at a time. One that does not depend on any parameter with
                a wanted entry adds nothing.
            wanted: boolean (G, K), which entries are wanted; parameters without any take no part in the backward pass.
                None for all.

        Returns:
            {"weight": float64 (G, K)}; 0 where an entry is not wanted.

        Raises:
            ConfigError: the method is not linear in its weights, or no loss depends on a wanted entry.
        """
        check_gradient(self._method)
        if self._turn.taken is not self._mark:
            self._take_turn()
        wanted = np.ones(self._shape, dtype=bool) if wanted is None else wanted
        self._stack(wanted)
        taken: _Taken = []
        reached = False
        with self._watched(taken, wanted), torch.enable_grad():
            for loss in losses:
                if loss.requires_grad:
                    loss.backward()
                    reached = True
        if not reached:
            raise ConfigError(
                "The loss depends on none of the coefficients that are searched, so its gradient is 0 everywhere: "
                "free more of them (space, space.frozen), or use a searcher by values such as searcher=cmaes."
            )
        sums = np.zeros(self._shape)
        if taken:
            places = np.array([place for places, _ in taken for place in places])
            np.add.at(sums, tuple(places.T), torch.cat([products for _, products in taken]).double().cpu().numpy())
        return {"weight": sums}

    def _stack(self, wanted: np.ndarray) -> None:
        """Copy deltas below each other, so that every walk reads them in one pass."""
        worth = [i for i, site in enumerate(self._sites) if _is_worth_stacking(site, wanted)]
        mapped = [self._sites[i] for i in worth if self._sites[i].live.device.type == "cpu"]  # else copies anyway
        if worth and sum(each.nbytes for site in mapped for each in site.prepared) > SHARE * memory_limit():
            return
        mapped.clear()  # what was prepared is freed as it is copied
        for i in worth:
            rows = stack(self._sites[i].prepared, self._sites[i].live.device)
            self._sites[i] = replace(self._sites[i], prepared=[DenseDelta(row) for row in rows], stacked=rows)

    @contextmanager
    def _watched(self, taken: _Taken, wanted: np.ndarray) -> Iterator[None]:
        """Let the parameters with a wanted entry have gradients, each of which is taken and freed."""
        watched: dict[str, list[_Wanted]] = {}
        for site in self._sites:
            if wanted[site.group, site.rows].any():
                watched.setdefault(site.span.parameter, []).append(_wanted(site, wanted))
        hooks = []
        try:
            for name, spans in watched.items():
                parameter = self._parameters[name].requires_grad_(True)
                hooks.append(parameter.register_post_accumulate_grad_hook(partial(_take, spans, taken)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in watched:
                self._parameters[name].requires_grad_(False).grad = None  # a backward pass that failed may leave some

    def _site(self, group: int, span: Span, parameter: Tensor) -> _Site | None:
        """Return a span of the live model with what a candidate needs for it; None where all rows are zero."""
        place, rows = slice(span.start, span.stop), self._vectors.rows
        deltas = [self._vectors.delta(row, span.parameter) for row in rows]
        found = {k: delta for k, delta in enumerate(deltas) if delta is not None}
        if not found:
            return None
        base = self._vectors.base.tensor(span.parameter).reshape(-1)[place].to(parameter.device)
        prepared = [self._method.prepare(rows[k], span, delta[place].over(base)) for k, delta in found.items()]
        size = MERGED if parameter.device.type == "cpu" else MERGED_FAR
        some = tuple(chunks(len(base), size)) if self._method.elementwise else ()
        some = some if len(some) > 1 else ()
        rounded = self._rounded.get(span.parameter)
        return _Site(group, span, parameter.view(-1)[place], base, list(found), prepared, some, rounded)


def _rounded(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """Return values rounded to a dtype, half to even; as they are where there is none."""
    return tensor if dtype is None else tensor.to(dtype)


def check_gradient(method: Method | type[Method]) -> None:
    """Refuse a method that is not linear in its weights.

    Raises:
        ConfigError: it has no gradient.
    """
    if not method.linear:
        raise ConfigError(
            f"The method {method.name} elects signs anew for every candidate, so it has no gradient: write "
            f"method=linear, or method=ties_frozen, which elects them once."
        )


def _is_worth_stacking(site: _Site, wanted: np.ndarray) -> bool:
    """Whether all products of a span are wanted, and its deltas take no more bytes below each other than apart."""
    all_wanted = site.stacked is None and bool(wanted[site.group, site.rows].all())
    return all_wanted and all(each.nbytes >= len(each) * torch.float32.itemsize for each in site.prepared)


def _wanted(site: _Site, wanted: np.ndarray) -> _Wanted:
    """Return what `_take` needs of a span."""
    chosen = np.flatnonzero(wanted[site.group, site.rows])
    some = [site.prepared[i] for i in chosen]
    deltas = some if site.stacked is None or len(some) < len(site.prepared) else site.stacked
    return slice(site.span.start, site.span.stop), deltas, [(site.group, site.rows[i]) for i in chosen]


def _take(spans: Sequence[_Wanted], taken: _Taken, parameter: nn.Parameter) -> None:
    """Take the inner products of a parameter's gradient with its deltas, and free the gradient."""
    if parameter.grad is None:
        return
    gradient = parameter.grad.reshape(-1)
    parameter.grad = None
    for span, deltas, places in spans:
        taken += [(places, products) for products in inner_products(gradient[span], deltas)]


def _check_live(name: str, live: Tensor | None, base: Tensor) -> None:
    """Refuse a parameter that is not, but for a cast, what the base's files hold under its name."""
    if live is None or not torch.equal(live.cpu(), base.to(live.dtype)):
        raise CheckpointError(
            f"The parameter {name} of the loaded model is not the tensor that the base's files hold under that name: "
            f"this architecture is renamed or changed while it is loaded, which is not supported. Merge models of this "
            f"kind with the library that made them."
        )
