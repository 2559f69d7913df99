"""How much memory there is; and where it does not suffice, the batches of a fitness are halved, and the same items are
scored again.

In: a fitness and something to compute with it. Out: its result, the same as with small batches from the beginning. The
smaller size stays, so that one candidate pays for it and not each. A fitness without `batch_size` cannot be helped.
"""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any, TypeVar

import torch

from evomerge.fitness.capabilities import Batched

logger = logging.getLogger(__name__)

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "bad_alloc",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What a RuntimeError says where torch has no class of its own for a lack of memory."""


T = TypeVar("T")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def with_smaller_batches(fitness: Any, compute: Callable[[], T], whole: str | None = None) -> T:
    """Return what `compute` returns; where memory does not suffice, halve the fitness's batches and compute again.

    Args:
        fitness: whose `batch_size` is halved, down to 1.
        compute: makes everything anew whenever it is called.
        whole: why its batches must not be halved, and what to do instead; None where they may.

    Raises:
        MemoryError: there is not enough memory, and batches must not be halved.
    """
    while True:
        try:
            return compute()
        except Exception as error:
            if not lacks_memory(error):
                raise
            if whole is not None:
                raise MemoryError(whole) from None
            if not isinstance(fitness, Batched) or (size := fitness.batch_size) <= 1:
                raise
        free()  # out here: the error is gone, and with it the frames that held tensors
        fitness.batch_size = size // 2
        logger.warning(
            "There is not enough memory for batches of %d: from now on they are of %d, and the same items are scored "
            "again; results are the same. In another search, fitness.batch_size=%d saves the attempt.",
            *(size, size // 2, size // 2),
        )


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
