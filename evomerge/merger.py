"""The merger: one live model, the base and the task vectors; it builds candidates in place.

In: coefficients per variable, shape (G, K), for G groups and K experts. Out: the same model, its parameters
overwritten with θ = θ₀ + Σ_k λ[g, k] τ_k (or what else the method says). It never sees points of the search space.
Every candidate is rebuilt from θ₀, accumulated in float32 and cast once: patching by differences loses the whole
update in bfloat16 within a few hundred candidates. Parameters that no expert changed are never touched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from evomerge.errors import CheckpointError
from evomerge.groups import Group, Span
from evomerge.methods import Method
from evomerge.task_vectors import TaskVectors


@dataclass(frozen=True)
class _Piece:
    """One span with all that a candidate needs for it; tensors are flat views of n elements."""

    group: int
    live: Tensor
    base: Tensor
    prepared: list[Any]  # by the method, one per expert whose delta is not zero here
    experts: list[int]

    @property
    def exact(self) -> bool:
        """Whether the parameter itself is float32, so that the sum can be made in its memory."""
        return self.live.dtype == self.base.dtype == torch.float32


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
        live = {name: parameter.detach() for name, parameter in model.named_parameters()}  # tied parameters appear once
        for name in vectors.parameters:
            _check_live(name, live.get(name), vectors.base.tensor(name))
        self._pieces = [
            piece
            for index, group in enumerate(groups)
            for span in group.spans
            if (piece := self._piece(index, span, live, vectors))
        ]
        widest = max((piece.live.numel() for piece in self._pieces if not piece.exact), default=0)
        device = next(iter(live.values())).device
        self._base, self._out = (torch.empty(widest, dtype=torch.float32, device=device) for _ in range(2))

    @torch.no_grad()
    def apply(self, coefficients: Mapping[str, np.ndarray]) -> None:
        """Overwrite the model with a candidate.

        Args:
            coefficients: {variable: float64 (G, K)} as `CoefficientSpace.decode` gives them.
        """
        for piece in self._pieces:
            chosen = {name: values[piece.group, piece.experts] for name, values in coefficients.items()}
            if piece.exact:
                self._method.merge(piece.base, piece.prepared, chosen, piece.live)
            else:  # sum in float32, cast once
                base, out = self._base[: len(piece.live)].copy_(piece.base), self._out[: len(piece.live)]
                self._method.merge(base, piece.prepared, chosen, out)
                piece.live.copy_(out)

    @torch.no_grad()
    def restore(self) -> None:
        """Put the base back, bit for bit."""
        for piece in self._pieces:
            piece.live.copy_(piece.base)

    def _piece(self, group: int, span: Span, live: Mapping[str, Tensor], vectors: TaskVectors) -> _Piece | None:
        parameter = live[span.parameter]
        found = {
            k: delta
            for k, expert in enumerate(vectors.experts)
            if (delta := vectors.delta(expert, span.parameter)) is not None
        }
        if not found:
            return None

        def flat(tensor: Tensor) -> Tensor:
            return tensor.reshape(-1)[span.start : span.stop].to(parameter.device)

        names = list(vectors.experts)
        prepared = [self._method.prepare(names[k], span, flat(delta)) for k, delta in found.items()]
        view = parameter.view(-1)[span.start : span.stop]
        return _Piece(group, view, flat(vectors.base.tensor(span.parameter)), prepared, list(found))


def _check_live(name: str, live: Tensor | None, base: Tensor) -> None:
    """Refuse a parameter that is not, but for a cast, what the base's files hold under its name."""
    if live is None or not torch.equal(live.cpu(), base.to(live.dtype)):
        raise CheckpointError(
            f"The parameter {name} of the loaded model is not the tensor that the base's files hold under that name: "
            f"this architecture is renamed or changed while it is loaded, which is not supported. Merge models of this "
            f"kind with the library that made them."
        )
