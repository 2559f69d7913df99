"""What transforms share: rows that are changed element by element, in chunks; and checks of their settings.

In: the deltas of one parameter by row. Out: the same rows, or others, of its shape.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence

import torch
from torch import Tensor

from evomerge.common.errors import ConfigError
from evomerge.task_vectors.spans import CHUNK, chunks

Parts = Mapping[str, Tensor]
"""Row -> float32 (n,)."""


def by_chunks(
    deltas: Mapping[str, Tensor], rows: Sequence[str], change: Callable[[int, Parts], Parts]
) -> dict[str, Tensor]:
    """Make rows of one parameter, some elements at a time, so that nothing but the rows themselves is in memory.

    Args:
        deltas: row of the input -> float32 delta of the parameter's shape.
        rows: that are made.
        change: (place of the first element, the same elements of all deltas) -> those of the rows; absent for zeros.
    """
    if not deltas:
        return {}
    first = next(iter(deltas.values()))
    flat = {row: delta.reshape(-1) for row, delta in deltas.items()}
    result = {row: torch.zeros(first.shape) for row in rows}
    for chunk in chunks(first.numel(), CHUNK):
        for row, values in change(chunk.start, {row: part[chunk] for row, part in flat.items()}).items():
            result[row].view(-1)[chunk] = values
    return result


def as_rows(delta: Tensor) -> Tensor:
    """Return a delta as a matrix whose last dimension is its own, so that one without dimensions or with one is a row;
    a view where it can be.
    """
    return delta.reshape(-1, delta.shape[-1]) if delta.dim() else delta.reshape(1, 1)


def share(transform: str, name: str, value: object, zero: bool = False, example: float = 0.2) -> float:
    """Return a setting that is a share, up to 1.

    Args:
        transform: whose setting it is.
        name: of the setting.
        value: what was written.
        zero: whether it may be 0.
        example: what one may write.

    Raises:
        ConfigError: it is no such number.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not 0 <= value <= 1
        or (value == 0 and not zero)
    ):
        span = "from 0" if zero else "above 0"
        raise ConfigError(
            f"The transform {transform} has {name}={value}: it is a share, so write a number {span}, up to 1, such as "
            f"{example} for {100 * example:g} %."
        )
    return float(value)


def whole(transform: str, name: str, value: object, least: int = 1) -> int:
    """Return a setting that is a whole number.

    Raises:
        ConfigError: it is none, or too small.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ConfigError(f"The transform {transform} has {name}={value}: write a whole number from {least} on.")
    return value


def one_of(transform: str, name: str, value: str, known: Collection[str]) -> str:
    """Return a setting that is one of a few words.

    Raises:
        ConfigError: it is none of them.
    """
    if value not in known:
        raise ConfigError(f"The transform {transform} has {name}={value}: write {' or '.join(known)}.")
    return value


def positive(transform: str, name: str, value: object, example: float) -> float:
    """Return a setting that is a number above 0.

    Raises:
        ConfigError: it is none.
    """
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1e6:
        raise ConfigError(f"The transform {transform} has {name}={value}: write a number above 0, such as {example:g}.")
    return float(value)
