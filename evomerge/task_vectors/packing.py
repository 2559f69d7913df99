"""How task vectors are kept: the choices of `model.store`, and the delta that each makes of a task vector.

In: a task vector in float32. Out: a delta, by the name of the choice. Three of them keep every bit: float32, `expert`
(θ_k itself, from its own file) and `auto`, which takes one or the other. The others lose some, and their deltas say how
much at most. What a transform only set to zero in places is kept as a mask over the task vector, whatever the choice.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.quantised import LARGEST, quantised
from evomerge.task_vectors.spans import CHUNK, chunks

Store = Literal["auto", "float32", "bfloat16", "expert", "int8", "int4"]
AUTO: Store = "auto"
CHOICES: tuple[Store, ...] = ("auto", "float32", "bfloat16", "expert", "int8", "int4")
LOSSY: tuple[Store, ...] = ("bfloat16", "int8", "int4")
"""Those that make other candidates than the exact task vectors."""


def pack(values: Tensor, store: str) -> Delta:
    """Return a task vector as it is kept.

    Args:
        values: float32 (n,), finite, on a CPU.
        store: what is chosen; float32 where that loses nothing.

    Raises:
        CheckpointError: an element is too large.
    """
    if store not in LOSSY:
        return DenseDelta(values)
    if len(values) and not float(torch.linalg.vector_norm(values, torch.inf)) <= LARGEST:
        raise CheckpointError(
            f"A task vector has elements beyond {LARGEST:.2g}, which model.store={store} cannot keep: write "
            f"model.store=float32."
        )
    if store == "bfloat16":
        return DenseDelta(values.bfloat16())
    return quantised(values, 8 if store == "int8" else 4)


def mask_of(values: Tensor, delta: Delta | None) -> Tensor | None:
    """Return where a row is not zero, bool (n,), if it is the task vector there; None where it is something else.

    Args:
        values: the row, float32 (n,).
        delta: the exact task vector, n elements; None where it is zero.
    """
    if delta is None:
        return None
    mask = values != 0
    for chunk in chunks(len(values), CHUNK):
        some = values[chunk]
        if not torch.equal(torch.where(mask[chunk], delta[chunk].dense(), 0.0), some):
            return None
    return mask
