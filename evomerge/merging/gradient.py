"""The gradient of losses with respect to the coefficients of the candidate that is in the model.

In: losses that depend on the model. Out: ∂L/∂λ, (G, K). What AdaMerging (Yang et al. 2024) learns from is an inner
product, by the chain rule of θ = θ₀ + Σ_k λ[g, k] τ_k: ∂L/∂λ[g, k] = ⟨∂L/∂θ_g, τ_k,g⟩. So an ordinary backward pass on
the merged parameters is enough: no graph through the merge, and no expert beside its task vector. As soon as the
gradient of a parameter is complete, its inner products with the deltas are taken, and it is freed.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.common.errors import ConfigError
from evomerge.merging.kernels.products import Part, Products
from evomerge.merging.method import Method
from evomerge.merging.sites import Site

_Taken = list[tuple[int, np.ndarray, Tensor]]
"""The place of a parameter, the (group, row) of each of its inner products, int64 (m, 2), and these, (m,)."""


class Gradient:
    """Takes gradients of the losses of one model.

    Args:
        sites: of the model.
        parameters: of the model, by name.
        wanted: boolean (G, K), which entries are wanted; parameters without any take no part in the backward pass.
    """

    def __init__(self, sites: Sequence[Site], parameters: Mapping[str, nn.Parameter], wanted: np.ndarray) -> None:
        self._shape, self._watched = wanted.shape, []
        chosen: dict[str, list[Site]] = {}
        for site in sites:
            if wanted[site.group, site.rows].any():
                chosen.setdefault(site.span.parameter, []).append(site)
        for name, some in chosen.items():
            places = [(site, np.flatnonzero(wanted[site.group, site.rows])) for site in some]
            parts = [Part(site.span, site.base, [site.deltas[i] for i in which]) for site, which in places]
            entries = np.array([(site.group, site.rows[i]) for site, which in places for i in which])
            self._watched.append((parameters[name], entries, Products(parts)))
        self._in_order = any(parameter.device.type != "cpu" for parameter, _, _ in self._watched)

    def of(self, losses: Iterable[Tensor]) -> np.ndarray:
        """Return the gradient of the sum of losses, float64 (G, K); 0 where an entry is not wanted.

        Args:
            losses: made one after the other while this runs: each is walked backward before the next is made.

        Raises:
            ConfigError: no loss depends on a wanted entry.
        """
        taken: _Taken = []
        sums = np.zeros(self._shape)
        reached = False
        with self._hooked(taken), torch.enable_grad():
            for loss in losses:
                if loss.requires_grad:
                    first = len(taken)
                    loss.backward()
                    reached = True
                    if self._in_order:  # threads of several devices come in any order, and one device sums as they do
                        taken[first:] = sorted(taken[first:], key=lambda some: some[0])
        if not reached:
            raise ConfigError(
                "The loss depends on none of the coefficients that are searched, so its gradient is 0 everywhere: "
                "free more of them (space, space.frozen), or use a searcher by values such as searcher=cmaes."
            )
        if taken:
            entries = np.concatenate([entries for _, entries, _ in taken])
            np.add.at(sums, tuple(entries.T), _on_host([products for _, _, products in taken]))
        return sums

    @contextmanager
    def _hooked(self, taken: _Taken) -> Iterator[None]:
        """Let the parameters have gradients, each of which is taken and freed."""
        hooks = []
        try:
            for place, (parameter, entries, products) in enumerate(self._watched):
                parameter.requires_grad_(True)
                take = partial(_take, place, entries, products, taken)
                hooks.append(parameter.register_post_accumulate_grad_hook(take))
            yield
        finally:
            for hook in hooks:
                hook.remove()
            for parameter, _, _ in self._watched:
                parameter.requires_grad_(False).grad = None  # a backward pass that failed may leave some


def check_gradient(method: Method | type[Method]) -> None:
    """Refuse a method that is not linear in its weights.

    Raises:
        ConfigError: it has no gradient.
    """
    if method.linear:
        return
    instead = "method=linear, or method=ties_frozen, which trims and elects once, before the search"
    if method.name == "average":
        instead = "method=linear space.sum=1, which is the same average with weights that sum to one (a learned soup)"
    raise ConfigError(
        f"The method {method.name} is no weighted sum of task vectors, so evomerge has no gradient of it: write "
        f"{instead}."
    )


def _on_host(products: Sequence[Tensor]) -> np.ndarray:
    """Return products one after the other, float64; each device is waited for once."""
    places: dict[torch.device, list[int]] = {}
    for place, some in enumerate(products):
        places.setdefault(some.device, []).append(place)
    found: list[np.ndarray] = [np.empty(0)] * len(products)
    for chosen in places.values():
        ends = np.cumsum([len(products[place]) for place in chosen])[:-1]
        values = torch.cat([products[place] for place in chosen]).cpu().numpy()
        for place, some in zip(chosen, np.split(values, ends), strict=True):
            found[place] = some
    return np.concatenate(found)


def _take(place: int, entries: np.ndarray, products: Products, taken: _Taken, parameter: nn.Parameter) -> None:
    """Take the inner products of a parameter's gradient, and free it."""
    if parameter.grad is not None:
        gradient, parameter.grad = parameter.grad, None
        taken.append((place, entries, products(gradient)))
