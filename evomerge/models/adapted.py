"""What an adapter makes of its base: factors that stay factors, and tensors that are made when they are asked for.

In: nothing but what is kept. Out: the part of a `Checkpoint` that only one of an adapter has (`adapters.py`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from evomerge.models.factors import Factors

Make = Callable[[], Tensor]
"""Makes a tensor."""


class Computed(Mapping[str, Tensor]):
    """Tensors that are made when they are asked for, and not kept.

    Args:
        made: by name, what makes them.
    """

    def __init__(self, made: Mapping[str, Make]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._made

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


@dataclass(frozen=True, eq=False)
class Adapted:
    """What makes a checkpoint of an adapter: it holds θ₀ wherever the adapter says nothing.

    Attributes:
        factors: of the parameters whose change is a product of two factors.
        computed: the parameters that are made of base and adapter, in float32: these, and others.
        named_base: the base that the adapter was trained on, by the name that it had there; None where it says none.
    """

    factors: Mapping[str, Factors]
    computed: frozenset[str]
    named_base: str | None
