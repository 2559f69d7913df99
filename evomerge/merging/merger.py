"""The merger: one live model, the base and the task vectors; it builds candidates in place, and takes their gradients.

In: coefficients per variable, shape (G, K), for G groups and K rows. Out: the same model, its parameters overwritten
with θ = θ₀ + Σ_k λ[g, k] τ_k (or what else the method says). It never sees points of the search space. Every candidate
is rebuilt from θ₀, accumulated in float32 and cast once: patching by differences loses the whole update in bfloat16
within a few hundred candidates. A live model may hold its parameters in a wider dtype than the files that a merge is
written to: whatever is put into it is then rounded to that of the files first. Parameters in which all rows are zero
are never touched. Sites (`sites.py`) and a method make a `Builder`, which writes them without a temporary of the size
of a parameter.

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
from functools import cached_property, partial

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError, ConfigError
from evomerge.common.machine import memory_limit
from evomerge.common.progress import Steps
from evomerge.merging.builder import Builder, as_rounded
from evomerge.merging.kernels.products import inner_products, stack
from evomerge.merging.method import Method
from evomerge.merging.sites import Site, find_site
from evomerge.models.guard import Guard
from evomerge.models.live import Turn
from evomerge.space.groups import Group
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.places import Placed
from evomerge.task_vectors.store import TaskVectors

SHARE = 0.5
"""Of the memory that this process may have, that copies of task vectors may take."""


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
        progress: told what is prepared, such as sorted magnitudes.
        placed: where base and task vectors lie; None: on the device of the model.

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
        progress: Steps | None = None,
        placed: Placed | None = None,
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
        spans = [(index, span) for index, group in enumerate(groups) for span in group.spans]
        self._sites = [
            _laid(site, placed)
            for index, span in spans
            if (site := find_site(index, span, live[span.parameter], vectors, self._rounded.get(span.parameter)))
        ]
        far = any(site.base.device != site.live.device for site in self._sites)
        self._stacked: dict[Site, Tensor] = {}
        self._builder = Builder(self._sites, method, vectors, progress, placed.window if placed and far else None)

    @torch.no_grad()
    def apply(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite the model with a candidate.

        Args:
            coefficients: {variable: float64 (G, K)} as `CoefficientSpace.decode` gives them.
        """
        self._take_turn()
        self._builder.build(coefficients)

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
            site.live.copy_(as_rounded(site.base, site.rounded))

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
        return as_rounded(tensor, self._rounded.get(name))

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
        worth = [site for site in self._sites if site not in self._stacked and _is_worth_stacking(site, wanted)]
        if sum(each.nbytes for site in worth for each in site.deltas) > SHARE * memory_limit():
            return
        for site in worth:
            self._stacked[site] = stack(site.deltas, site.live.device)

    @contextmanager
    def _watched(self, taken: _Taken, wanted: np.ndarray) -> Iterator[None]:
        """Let the parameters with a wanted entry have gradients, each of which is taken and freed."""
        watched: dict[str, list[_Wanted]] = {}
        for site in self._sites:
            if wanted[site.group, site.rows].any():
                watched.setdefault(site.span.parameter, []).append(_wanted(site, wanted, self._stacked.get(site)))
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


def check_gradient(method: Method | type[Method]) -> None:
    """Refuse a method that is not linear in its weights.

    Raises:
        ConfigError: it has no gradient.
    """
    if not method.linear:
        raise ConfigError(
            f"The method {method.name} is no weighted sum of task vectors, so evomerge has no gradient of it: write "
            f"method=linear, or method=ties_frozen, which trims and elects once, before the search."
        )


def _is_worth_stacking(site: Site, wanted: np.ndarray) -> bool:
    """Whether all products of a span are wanted, and its deltas take no more bytes below each other than apart."""
    all_wanted = bool(wanted[site.group, site.rows].all())
    return all_wanted and all(each.nbytes >= len(each) * torch.float32.itemsize for each in site.deltas)


def _wanted(site: Site, wanted: np.ndarray, stacked: Tensor | None) -> _Wanted:
    """Return what `_take` needs of a span."""
    chosen = np.flatnonzero(wanted[site.group, site.rows])
    some = [site.deltas[i] for i in chosen]
    deltas = some if stacked is None or len(some) < len(site.deltas) else stacked
    return slice(site.span.start, site.span.stop), deltas, [(site.group, site.rows[i]) for i in chosen]


def _take(spans: Sequence[_Wanted], taken: _Taken, parameter: nn.Parameter) -> None:
    """Take the inner products of a parameter's gradient with its deltas, and free the gradient."""
    if parameter.grad is None:
        return
    gradient = parameter.grad.reshape(-1)
    parameter.grad = None
    for span, deltas, places in spans:
        taken += [(places, products) for products in inner_products(gradient[span], deltas)]


def _laid(site: Site, placed: Placed | None) -> Site:
    """Return a site with base and deltas where they are to lie."""
    on_cpu = site.live.device.type == "cpu"
    if placed is not None and placed.place == "host":
        return site.held(pinned=not on_cpu)
    return site if placed is not None and placed.place == "disk" else site.moved()


def _check_live(name: str, live: Tensor | None, base: Tensor) -> None:
    """Refuse a parameter that is not, but for a cast, what the base's files hold under its name."""
    if live is None or not torch.equal(live.cpu(), base.to(live.dtype)):
        raise CheckpointError(
            f"The parameter {name} of the loaded model is not the tensor that the base's files hold under that name: "
            f"this architecture is renamed or changed while it is loaded, which is not supported. Merge models of this "
            f"kind with the library that made them."
        )
