"""What a transform is: a change of the task vectors that is frozen before the search.

In: all task vectors. Out: other deltas T_k, of the same experts and parameters, so that a candidate is θ₀ + Σ_k λ_k T_k
whatever was done to them (`coupling: frozen`); with λ = 1 everywhere that is the published method. What needs a look at
the whole model, such as a global threshold, is found once by `prepare`; `apply` then works on one parameter at a time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from torch import Tensor

from evomerge.task_vectors.store import TaskVectors


class Transform(Protocol):
    """A pure function of the task vectors in two steps; it holds nothing but its settings."""

    name: str

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain data: the recipe keeps them, and the cache is named by them."""
        ...

    def prepare(self, vectors: TaskVectors) -> Any:
        """Return what `apply` needs to know of the whole model; streamed, small, and never written to disk."""
        ...

    def apply(self, parameter: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        """Return the transformed deltas of one parameter.

        Args:
            parameter: its name.
            deltas: expert -> float32 delta of the parameter's shape, in the order of the experts, for reading only; an
                expert whose delta is zero here is absent.
            state: what `prepare` returned.

        Returns:
            expert -> float32 delta of the same shape; absent where it is zero (zeros will do as well).
        """
        ...
