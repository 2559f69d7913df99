"""The merger: one live model, the base and the task vectors; it builds candidates in place, and takes their gradients.

In: coefficients per variable, shape (G, K), for G groups and K experts. Out: the same model, its parameters
overwritten with θ = θ₀ + Σ_k λ[g, k] τ_k (or what else the method says). It never sees points of the search space.
Every candidate is rebuilt from θ₀, accumulated in float32 and cast once: patching by differences loses the whole
update in bfloat16 within a few hundred candidates. Parameters that no expert changed are never touched. A method that
takes every element by itself merges piece by piece, so what is made on the way, sums in float32 and the task vectors of
experts that are kept as they are, takes some pieces and not a copy of the largest parameter.

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
from evomerge.merging.methods import Linear, Method
from evomerge.models.guard import Guard
from evomerge.space.groups import Group
from evomerge.task_vectors.expert import ExpertDelta, cut
from evomerge.task_vectors.spans import Span
from evomerge.task_vectors.store import TaskVectors

PIECE = 1 << 20
"""Elements that a CPU merges together, 4 MiB of float32: fewer take longer, since its threads meet more often."""
FAR_PIECE = 1 << 24
"""The same of other devices, where starting a kernel takes longer."""
SHARE = 0.5
"""Of the memory that this process may have, that copies of task vectors may take."""


@dataclass(frozen=True)
class _Piece:
    """One span with all that a candidate needs for it; tensors are flat views of n elements."""

    group: int
    span: Span
    live: Tensor
    base: Tensor
    prepared: list[Any]  # by the method, one per expert whose delta is not zero here
    experts: list[int]
    parts: list[slice] | None  # of the n, merged one after the other; None: all of them at once
    stacked: Tensor | None = None  # (K, n): `prepared` are its rows


_Part = tuple[slice, Tensor | Sequence[Any], list[tuple[int, int]]]
"""Where in a gradient a span lies, its deltas of which products are wanted, and the (group, expert) of each."""
_Taken = list[tuple[list[tuple[int, int]], Tensor]]
"""Inner products, (n,) each, and the (group, expert) that each of the n belongs to."""


class Merger:
    """Builds candidates in one live model.

    Args:
        model: the model to overwrite; it must hold the base's parameters now, so that a wrong mapping of names cannot
            pass unseen.
        vectors: the base and the task vectors.
        groups: the groups of the coefficient space, in its order.
        method: how a span is built.

    Raises:
        CheckpointError: a parameter of the model is not what the base's files say.
    """

    def __init__(self, model: nn.Module, vectors: TaskVectors, groups: Sequence[Group], method: Method) -> None:
        self._method = method
        self._model, self._vectors = model, vectors
        self._shape = (len(groups), len(vectors.experts))
        self._parameters = dict(model.named_parameters())
        live = {name: parameter.detach() for name, parameter in self._parameters.items()}  # tied parameters appear once
        for name in vectors.parameters:
            _check_live(name, live.get(name), vectors.base.tensor(name))
        self._pieces = [
            piece
            for index, group in enumerate(groups)
            for span in group.spans
            if (piece := self._piece(index, span, live, vectors))
        ]

    @torch.no_grad()
    def apply(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite the model with a candidate.

        Args:
            coefficients: {variable: float64 (G, K)} as `CoefficientSpace.decode` gives them.
        """
        for piece in self._pieces:
            chosen = {name: values[piece.group, piece.experts] for name, values in coefficients.items()}
            if piece.parts is None:
                self._merge(piece.live, piece.base, piece.prepared, chosen)
            for part in piece.parts or ():
                self._merge(piece.live[part], piece.base[part], [each[part] for each in piece.prepared], chosen)

    def _merge(self, live: Tensor, base: Tensor, prepared: list[Any], chosen: Mapping[str, np.ndarray]) -> None:
        """Overwrite a part of a span: the sum is made in float32, in the live memory itself if it is that, and cast."""
        before = base.float()
        deltas = [each.minus(before) if isinstance(each, ExpertDelta) else each for each in prepared]
        out = live if live.dtype == torch.float32 else torch.empty_like(before)
        self._method.merge(before, deltas, chosen, out)
        if out is not live:
            live.copy_(out)

    @cached_property
    def guard(self) -> Guard:
        """What puts the model back where scoring has changed it; the first use must come before any scoring."""
        return Guard(self._model, self._put_base_back, self._vectors.parameters)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base back, bit for bit."""
        for piece in self._pieces:
            piece.live.copy_(piece.base)

    @torch.no_grad()
    def _put_base_back(self) -> None:
        """Write the base into all parameters that its files hold, whether or not candidates overwrite them."""
        for name in self._vectors.parameters:
            self._parameters[name].copy_(self._vectors.base.tensor(name))

    def gradient(self, losses: Iterable[Tensor], wanted: np.ndarray | None = None) -> dict[str, np.ndarray]:
        """Return the gradient of the sum of losses of the candidate that is in the model.

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
        """Copy deltas below each other, so that every walk reads them in one pass; experts that are kept stay so."""
        apart = [i for i, piece in enumerate(self._pieces) if _is_apart(piece, wanted)]
        mapped = [self._pieces[i] for i in apart if self._pieces[i].live.device.type == "cpu"]  # else copies anyway
        if apart and sum(each.nbytes for piece in mapped for each in piece.prepared) > SHARE * memory_limit():
            return
        mapped.clear()  # what was prepared apart is freed as it is copied
        for i in apart:
            rows = stack(self._pieces[i].prepared)
            self._pieces[i] = replace(self._pieces[i], prepared=list(rows), stacked=rows)

    @contextmanager
    def _watched(self, taken: _Taken, wanted: np.ndarray) -> Iterator[None]:
        """Let the parameters with a wanted entry have gradients, each of which is taken and freed."""
        watched: dict[str, list[_Part]] = {}
        for piece in self._pieces:
            if wanted[piece.group, piece.experts].any():
                watched.setdefault(piece.span.parameter, []).append(_part(piece, wanted))
        hooks = []
        try:
            for name, parts in watched.items():
                parameter = self._parameters[name].requires_grad_(True)
                hooks.append(parameter.register_post_accumulate_grad_hook(partial(_take, parts, taken)))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for name in watched:
                self._parameters[name].requires_grad_(False).grad = None  # a backward pass that failed may leave some

    def _piece(self, group: int, span: Span, live: Mapping[str, Tensor], vectors: TaskVectors) -> _Piece | None:
        parameter = live[span.parameter]
        apart = isinstance(self._method, Linear)
        form = vectors.kept if apart else vectors.delta
        names = list(vectors.experts)
        found = {k: delta for k, name in enumerate(names) if (delta := form(name, span.parameter)) is not None}
        if not found:
            return None

        def flat(tensor: Tensor) -> Tensor:
            return tensor.reshape(-1)[span.start : span.stop].to(parameter.device)

        base = flat(vectors.base.tensor(span.parameter))

        def placed(delta: Tensor | ExpertDelta) -> Any:
            return ExpertDelta(base, flat(delta.expert)) if isinstance(delta, ExpertDelta) else flat(delta)

        prepared = [self._method.prepare(names[k], span, placed(delta)) for k, delta in found.items()]
        view = parameter.view(-1)[span.start : span.stop]
        size = PIECE if parameter.device.type == "cpu" else FAR_PIECE
        parts = [slice(part.start, part.stop) for part in cut(Span("", 0, len(view)), size)] if apart else None
        return _Piece(group, span, view, base, prepared, list(found), parts)


def check_gradient(method: Method | type[Method]) -> None:
    """Refuse a method that is not linear in its weights.

    Raises:
        ConfigError: it has no gradient.
    """
    if method is not Linear and not isinstance(method, Linear):
        raise ConfigError(
            f"The method {method.name} elects signs anew for every candidate, so it has no gradient: write "
            f"method=linear, or method=ties_frozen, which elects them once."
        )


def _is_apart(piece: _Piece, wanted: np.ndarray) -> bool:
    """Whether a span has float32 deltas of which all products are wanted, and which do not lie below each other yet."""
    all_wanted = piece.stacked is None and bool(wanted[piece.group, piece.experts].all())
    return all_wanted and all(isinstance(each, Tensor) for each in piece.prepared)


def _part(piece: _Piece, wanted: np.ndarray) -> _Part:
    """Return what `_take` needs of a span."""
    chosen = np.flatnonzero(wanted[piece.group, piece.experts])
    rows = [piece.prepared[i] for i in chosen]
    deltas = rows if piece.stacked is None or len(chosen) < len(piece.prepared) else piece.stacked
    return slice(piece.span.start, piece.span.stop), deltas, [(piece.group, piece.experts[i]) for i in chosen]


def _take(parts: Sequence[_Part], taken: _Taken, parameter: nn.Parameter) -> None:
    """Take the inner products of a parameter's gradient with its deltas, and free the gradient."""
    if parameter.grad is None:
        return
    gradient = parameter.grad.reshape(-1)
    parameter.grad = None
    for span, deltas, places in parts:
        taken += [(places, products) for products in inner_products(gradient[span], deltas)]


def _check_live(name: str, live: Tensor | None, base: Tensor) -> None:
    """Refuse a parameter that is not, but for a cast, what the base's files hold under its name."""
    if live is None or not torch.equal(live.cpu(), base.to(live.dtype)):
        raise CheckpointError(
            f"The parameter {name} of the loaded model is not the tensor that the base's files hold under that name: "
            f"this architecture is renamed or changed while it is loaded, which is not supported. Merge models of this "
            f"kind with the library that made them."
        )
