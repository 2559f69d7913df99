"""Where task vectors lie while a search runs: on the device of the model, in the memory of the host, or on disk.

In: how many bytes they have, and how many are free where. Out: a `Place`, and a sentence that says what was chosen,
why, and what it costs. A candidate reads every task vector once, so the farther they lie, the longer it takes: from the
device at the speed of its memory, from the host over the bus, from a disk at the disk's speed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from evomerge.common.errors import ConfigError

Place = Literal["device", "host", "disk"]
PLACES: tuple[Place, ...] = ("device", "host", "disk")
AUTO = "auto"
GIB = 2**30
ROOM = 0.1
"""The share of a device's memory that is left to the passes of the model."""
WINDOW = 1 << 30
"""Bytes of base and task vectors that are brought to a device at a time."""
HELD = 0.5
"""The share of the host's memory that task vectors may take."""


@dataclass(frozen=True)
class Sizes:
    """Bytes, all of one search.

    Attributes:
        model: of the live model.
        base: of θ₀, which candidates read as well.
        vectors: of all task vectors in the form in which they are kept.
        window: of the largest part of base and task vectors that is streamed at once, two of which are on the device.
    """

    model: int
    base: int
    vectors: int
    window: int

    @property
    def read(self) -> int:
        """What a candidate reads."""
        return self.base + self.vectors


@dataclass(frozen=True)
class Free:
    """Bytes that may be used.

    Attributes:
        device: of the device of the model, before the model is there; None for a model on the CPU.
        host: of the memory of this process.
    """

    device: int | None
    host: int


@dataclass(frozen=True)
class Placed:
    """Where task vectors lie.

    Attributes:
        place: there.
        window: bytes that are brought to the device of the model at a time, where they lie elsewhere.
        said: the same as a sentence for the user.
    """

    place: Place
    window: int
    said: str


def choose(asked: str, sizes: Sizes, free: Free, stored: str = "") -> Placed:
    """Choose where task vectors lie.

    Args:
        asked: the setting `model.place`.
        sizes: of what is there.
        free: of the memory.
        stored: the setting that would make them smaller, for the sentences; empty where there is none.

    Raises:
        ConfigError: the place is not known, or the memory that was asked for is too small.
    """
    if asked not in (AUTO, *PLACES):
        raise ConfigError(f"model.place={asked} is not known: write one of {', '.join((AUTO, *PLACES))}.")
    if free.device is None:
        return _on_cpu(asked, sizes, free)
    smaller = f", or {stored}, which makes them smaller" * bool(stored)
    whole, streamed = sizes.model + sizes.read, sizes.model + 2 * sizes.window
    least = free.device * (1 - ROOM)
    if asked == "device" and whole > least:
        raise ConfigError(
            f"model.place=device: model, base and task vectors take {_gib(whole)}, and the device has {_gib(least)} "
            f"for them: write model.place=auto{smaller}."
        )
    if streamed > least:
        raise ConfigError(
            f"The model and two windows of task vectors take {_gib(streamed)}, and the device has {_gib(least)} for "
            f"them: take a larger device, or model.device=cpu."
        )
    if asked == "device" or (asked == AUTO and whole <= least):
        said = f"task vectors on the device: {_gib(whole)} of {_gib(free.device)} with model and base"
        return Placed("device", sizes.window, said)
    why = "" if asked != AUTO else f"with model and base they take {_gib(whole)} and the device has {_gib(least)}; "
    fits = sizes.read <= HELD * free.host
    if asked == "host" and not fits:
        raise _too_large(sizes, free)
    if asked == "host" or (asked == AUTO and fits):
        said = f"task vectors in the host's memory: {why}each candidate moves {_gib(sizes.read)} over the bus"
        return Placed("host", sizes.window, said)
    said = f"task vectors on disk: {why}each candidate reads {_gib(sizes.read)} from there, unless cached"
    return Placed("disk", sizes.window, said)


def _on_cpu(asked: str, sizes: Sizes, free: Free) -> Placed:
    """A model on the CPU lies in the memory of the host, so `device` is the same as `host` there."""
    whole = sizes.model + sizes.read
    if asked in ("device", "host"):
        if whole > free.host:
            raise _too_large(sizes, free)
        return Placed("host", sizes.window, f"task vectors in memory: {_gib(sizes.read)} with the base")
    said = f"task vectors mapped from disk: {_gib(sizes.vectors)}, which stay in memory as long as it has room"
    if whole > free.host:
        said = (
            f"task vectors mapped from disk: model, base and task vectors take {_gib(whole)} and memory has "
            f"{_gib(free.host)}, so each candidate reads from the disk what does not fit"
        )
    return Placed("disk", sizes.window, said)


def _too_large(sizes: Sizes, free: Free) -> ConfigError:
    return ConfigError(
        f"model.place=host: base and task vectors take {_gib(sizes.read)}, and this process may have "
        f"{_gib(free.host)} of memory: write model.place=disk, or a smaller model.store."
    )


def _gib(size: float) -> str:
    return f"{size / GIB:.1f} GiB"
