"""What a transform is: a change of the task vectors that is frozen before the search.

In: the task vectors of all experts. Out: *rows*, deltas T_r over the same parameters, so that a candidate is
θ₀ + Σ_r λ_r T_r whatever was done to them; with λ = 1 everywhere (or the transform's own scale) that is the published
method. Rows are the experts' own, changed, unless `rows` says otherwise: one merged row, or a common row beside theirs.
What needs a look at the whole model, such as a global threshold, is found once by `prepare`; `apply` then works on one
parameter at a time.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

from torch import Tensor

from evomerge.task_vectors.store import TaskVectors


class Transform(ABC):
    """A pure function of the task vectors in two steps; it holds nothing but its settings.

    Attributes:
        name: what settings and recipes call it.
        title: what it does, in a few words, for a model's card.
        paper: where it was published, as one cites it.
        needs: what it learns from beside the task vectors.
        mergekit: what mergekit calls the method; None where it has nothing of the kind.
        alone: why it changes no merge whose rows all have one weight, so that none is held against others; empty for
            what does.
        unscaled: the rows that the paper's λ leaves as they are, so that one weight for everything is for the others.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    paper: ClassVar[str]
    needs: ClassVar[Literal["nothing", "inputs", "labels", "gradients"]] = "nothing"
    mergekit: ClassVar[str | None] = None
    alone: ClassVar[str] = ""
    unscaled: ClassVar[tuple[str, ...]] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """All settings as plain data: the recipe keeps them, and the cache is named by them. These are the arguments of
        the constructor, each of which the object keeps under its name.
        """
        return {name: getattr(self, name) for name in inspect.signature(type(self)).parameters}

    def rows(self, experts: Sequence[str]) -> Sequence[str]:
        """Return the names of the rows that it makes, in their order: those of its input, if not said otherwise.

        Args:
            experts: the names of the rows of its input: experts, or what an earlier transform made of them.
        """
        return list(experts)

    def prepare(self, store: TaskVectors, statistics: Any) -> Any:
        """Return what `apply` needs to know of the whole model: streamed, small, and never written to disk; None if
        that is nothing.

        Args:
            store: the task vectors of the parameters that this transform is for.
            statistics: what was learned from inputs, labels or gradients; None for a transform that needs nothing.
        """
        return None

    @abstractmethod
    def apply(self, name: str, deltas: Mapping[str, Tensor], state: Any) -> Mapping[str, Tensor]:
        """Return the rows of one parameter.

        Args:
            name: of the parameter.
            deltas: row of the input -> float32 delta of the parameter's shape, in their order, for reading only; a row
                whose delta is zero here is absent.
            state: what `prepare` returned.

        Returns:
            row -> float32 delta of the same shape; absent where it is zero (zeros will do as well).
        """
