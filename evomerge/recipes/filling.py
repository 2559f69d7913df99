"""The values of the tensors of a merged model, as its files have them.

In: what makes merged parameters, the base's `Checkpoint`, and an entry of a weight file. Out: the values of that entry:
merged where it is a parameter, else the base's. Where transformers makes a parameter of several tensors, as it packs
the experts of a mixture, the merged parameter is converted back, once for all tensors that come of it one after the
other.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.models.checkpoint import Checkpoint
from evomerge.models.conversions import Conversion
from evomerge.models.weights import dtype_name
from evomerge.recipes.shards import Entry
from evomerge.task_vectors.spans import CHUNK


class Merged(Protocol):
    """Has the parameters of a merge."""

    def write(self, name: str, out: Tensor) -> None:
        """Write one into flat memory, (n,), rounded to its dtype."""
        ...


class Filling:
    """Writes the values of entries, as `write_shards` asks for them.

    Args:
        rebuild: makes merged parameters.
        base: θ₀.
        parameters: name -> shape of what is merged.
        others: key -> the values of a tensor that is no parameter, where they are not the base's.
    """

    def __init__(
        self,
        rebuild: Merged,
        base: Checkpoint,
        parameters: Mapping[str, tuple[int, ...]],
        others: Mapping[str, Tensor],
    ) -> None:
        self._rebuild, self._base, self._parameters, self._others = rebuild, base, parameters, others
        self._last: tuple[Conversion, dict[str, Tensor]] | None = None

    @torch.no_grad()
    def __call__(self, entry: Entry, out: Tensor) -> None:
        """Write the values of a tensor.

        Args:
            entry: which one.
            out: flat, (n,), of its dtype.

        Raises:
            CheckpointError: a value is not finite.
        """
        whole = self._base.tensors[entry.key].reshape(-1) if entry.parameter is None else out
        if entry.parameter is None:
            out.copy_(self._others.get(entry.key, whole).reshape(-1))
        elif entry.conversion is None:
            self._rebuild.write(entry.parameter, out)
        else:
            out.copy_(self._converted(entry.conversion, entry.dtype)[entry.key].reshape(-1))
        if entry.parameter is None and out.dtype == whole.dtype:
            return  # masks of earlier years hold -inf
        for some, before in zip(out.split(CHUNK), whole.split(CHUNK), strict=True):
            lost = ~torch.isfinite(some)
            if torch.any(lost if entry.parameter else lost & torch.isfinite(before)):
                kind = dtype_name(out.dtype)
                hint = " float16 ends at 65504: write --dtype bfloat16 or float32." if kind == "float16" else ""
                raise CheckpointError(
                    f"{entry.key} of the merged model is not finite in {kind}: a coefficient of the recipe is too "
                    f"large, or a source holds inf or NaN.{hint}"
                )

    def _converted(self, conversion: Conversion, dtype: torch.dtype) -> dict[str, Tensor]:
        """Return the tensors of a file that come of merged parameters, by key."""
        if self._last is None or self._last[0] is not conversion:
            self._last = None
            merged = {name: torch.empty(self._parameters[name], dtype=dtype) for name in conversion.names}
            for name, tensor in merged.items():
                self._rebuild.write(name, tensor.view(-1))
            self._last = conversion, conversion.write(merged)
        return self._last[1]
