"""How much memory there is; and where it does not suffice, the batches of a fitness are halved, and the same items are
scored again.

In: a fitness, items, and something to compute with both. Out: its result, the same as with small batches from the
beginning. How small they are depends on the items alone, not on what was scored before: so a search that is killed and
goes on, and one on workers, scores them in the same batches. A fitness without `batch_size` cannot be helped.
"""

from __future__ import annotations

import errno
import gc
import logging
import mmap
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import torch

from evomerge.common.digests import digest
from evomerge.common.errors import EvomergeError
from evomerge.fitness.capabilities import Batched

logger = logging.getLogger(__name__)

SIGNS = (
    "DefaultCPUAllocator: can't allocate memory",
    "DefaultCPUAllocator: not enough memory",
    "bad_alloc",
    "could not create a primitive",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "MPS backend out of memory",
)
"""What a RuntimeError says where torch has no class of its own for a lack of memory; oneDNN says the fourth."""
LACK = "OutOfMemoryError"
"""What a log says of one: which allocation failed, and how much was free, is another text every time."""
LEAST = 2**26
"""Bytes that a process must still be able to get, or what fails in it is taken to fail for lack of memory."""


T = TypeVar("T")


def lacks_memory(error: BaseException) -> bool:
    """Whether an error says that there is not enough memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in SIGNS)


def exhausted() -> bool:
    """Whether this process gets next to no memory any more."""
    try:
        mmap.mmap(-1, LEAST).close()
    except (OSError, MemoryError):
        return True
    return False


def recognised(error: Exception) -> Exception:
    """Return an error as it is or, where this process is out of memory and the error does not say so, as a lack of it.

    Without memory a library may say anything: Python a SystemError, torch half a sentence.
    """
    if lacks_memory(error) or isinstance(error, TimeoutError | EvomergeError):
        return error
    return MemoryError(f"no memory was left when it said {type(error).__name__}: {error}") if exhausted() else error


def bare(error: Exception) -> Exception:
    """Return a lack of memory as an error without frames, and so without the tensors of these; it is of torch's class,
    unless somebody has written what lacks memory, and why.
    """
    written = type(error) is MemoryError and str(error)
    return MemoryError(written) if written else torch.OutOfMemoryError(str(error))


class Halving:
    """Computes in batches for which memory suffices.

    Args:
        fitness: whose `batch_size` is halved meanwhile, down to 1.
    """

    def __init__(self, fitness: Any) -> None:
        self._fitness = fitness
        self._found: dict[str, int] = {}  # by the items, where batches were halved
        self._told: set[int] = set()

    def __call__(self, ids: Mapping[str, Sequence[str]], compute: Callable[[], T], whole: str | None = None) -> T:
        """Return what `compute` returns; where memory does not suffice, halve the batches and compute again.

        Args:
            ids: of the items; where they needed small batches before, they get them at once.
            compute: makes everything anew whenever it is called.
            whole: why batches must not be halved, and what to do instead; None where they may.

        Raises:
            MemoryError: there is not enough memory, and batches must not be halved.
        """
        fitness = self._fitness
        if whole is not None or not isinstance(fitness, Batched):
            return _or_say(whole, compute)
        given, key = fitness.batch_size, digest([[task, *chosen] for task, chosen in ids.items()])
        fitness.batch_size = size = self._found.get(key, given)
        try:
            while True:
                try:
                    return compute()
                except Exception as error:
                    if size <= 1 or not lacks_memory(recognised(error)):
                        raise
                free()  # out here: the error is gone, and with it the frames that held tensors
                fitness.batch_size = self._found[key] = size = size // 2
                self._tell(size)
        finally:
            fitness.batch_size = given

    def _tell(self, size: int) -> None:
        if size not in self._told:
            self._told.add(size)
            logger.warning(
                "There is not enough memory for batches of %d: the same items are scored again in batches of %d, and "
                "results are the same. In another search, fitness.batch_size=%d saves the attempts.",
                *(2 * size, size, size),
            )


def _or_say(whole: str | None, compute: Callable[[], T]) -> T:
    try:
        return compute()
    except Exception as error:
        if whole is None or not lacks_memory(recognised(error)):
            raise
    raise MemoryError(whole)  # out here: the error is gone, and with it the frames that held tensors


def free() -> None:
    """Give back what nothing refers to any more."""
    gc.collect()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()
