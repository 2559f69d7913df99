"""How task vectors are kept: the delta that each choice of `model.store` makes of a task vector.

In: a task vector in float32, and a choice (`stores.py`). Out: a delta. What a transform only set to zero in places is
kept as a mask over the task vector, whatever the choice; here it is found.
"""

from __future__ import annotations

import torch
from torch import Tensor

from evomerge.common.errors import CheckpointError
from evomerge.task_vectors.delta import Delta
from evomerge.task_vectors.dense import DenseDelta
from evomerge.task_vectors.quantised import GROUP, LARGEST, quantised
from evomerge.task_vectors.spans import CHUNK, chunks
from evomerge.task_vectors.stores import LOSSY


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
    return quantised(values, int(store.removeprefix("int")))


def packed_bytes(length: int, store: str) -> int:
    """Return the bytes that `pack` takes for a parameter of some elements."""
    if store in ("int8", "int4"):
        return -(-length // GROUP) * (8 * int(store.removeprefix("int")) + 5)
    return (2 if store in LOSSY else 4) * length


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
