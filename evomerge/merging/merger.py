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
before it does anything (`Turn`). What a gradient search learns from is in `gradient.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.common.errors import CheckpointError
from evomerge.common.progress import Steps
from evomerge.merging.buffers import Buffers
from evomerge.merging.builder import Builder, as_rounded
from evomerge.merging.distance import relative, squares
from evomerge.merging.gradient import Gradient, check_gradient
from evomerge.merging.method import Method
from evomerge.merging.sites import Site, find_site
from evomerge.models.guard import Guard
from evomerge.models.live import Turn
from evomerge.space.groups import Group
from evomerge.task_vectors.places import Placed
from evomerge.task_vectors.store import TaskVectors


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

    Attributes:
        placed: where base and task vectors lie.
        buffers: writes floating buffers as well; None where they are the base's for all.

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
        self.placed = placed
        self.buffers: Buffers | None = None
        self._method, self._rounded = method, dict(rounded or {})
        self._model, self._vectors = model, vectors
        self._shape = (len(groups), len(vectors.rows))
        self._parameters = dict(model.named_parameters())
        self._loaded = False
        self._distance: float | None = None  # of what this one wrote last
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
        self._gradient: tuple[np.ndarray, Gradient] | None = None
        self._builder = Builder(self._sites, method, vectors, progress, placed.window if placed and far else None)

    @property
    def forms(self) -> frozenset[str]:
        """The forms that build candidates: `compiled`, `triton` or `plain`; more than one where sites differ."""
        return self._builder.forms

    @torch.no_grad()
    def apply(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite the model with a candidate.

        Args:
            coefficients: {variable: float64 (G, K)} as `CoefficientSpace.decode` gives them.
        """
        self._take_turn()
        self._builder.build(coefficients)
        if self.buffers is not None:
            self.buffers.merge()

    @torch.no_grad()
    def load(self, tensors: Iterable[tuple[str, Tensor]], buffers: Mapping[str, Tensor] | None = None) -> None:
        """Overwrite the model with another one, seen through the parameters that are merged.

        Args:
            tensors: of these parameters, by name, in any dtype; parameters without one are the base's.
            buffers: its floating buffers, by name; they are the base's where they are so for all.
        """
        self.restore()
        self._loaded = True
        for name, tensor in tensors:
            self._parameters[name].copy_(self._as_stored(name, tensor))
        if self.buffers is not None and buffers:
            self.buffers.write(buffers)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base back, bit for bit, whoever wrote into the model last."""
        self._take_turn()
        for site in self._sites:
            site.live.copy_(as_rounded(site.base, site.rounded))
        if self.buffers is not None:
            self.buffers.restore()

    @torch.no_grad()
    def _take_turn(self) -> None:
        """Put the base back everywhere after `load`, and after another merger: both write where this one never does."""
        self._distance = None
        if self._turn.taken is self._mark and not self._loaded:
            return
        if self._turn.taken is not None:
            self._put_base_back()
        self._turn.taken, self._loaded = self._mark, False

    @torch.no_grad()
    def distance(self) -> float:
        """Return how far what is in the model lies from the base, ‖θ − θ₀‖ / ‖θ₀‖ over all parameters that the base's
        files hold, whoever wrote last; floating buffers do not count. It is taken once of each candidate.
        """
        mine = self._turn.taken is self._mark
        if not mine or self._distance is None:
            pairs = self._apart() if mine and not self._loaded else self._everywhere()
            self._distance = relative((squares(live, base) for live, base in pairs), self._length)
        return self._distance

    def _apart(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield what candidates overwrite, and the base there."""
        for site in self._sites:
            yield site.live, as_rounded(site.base, site.rounded)

    def _everywhere(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield all parameters, and the base's."""
        for name in self._vectors.parameters:
            yield self._parameters[name].detach(), self._as_stored(name, self._vectors.base.tensor(name))

    @cached_property
    def _length(self) -> float:
        """‖θ₀‖."""
        return math.sqrt(math.fsum(squares(base) for _, base in self._everywhere()))

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
        if self._gradient is None or not np.array_equal(self._gradient[0], wanted):
            self._gradient = wanted.copy(), Gradient(self._sites, self._parameters, wanted)
        return {"weight": self._gradient[1].of(losses)}


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
